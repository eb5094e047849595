"""The proof for documents: how well unseen text is foretold, before and after, passage by passage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.data.examples import Conversation, Document, Message
from tunesmith.evaluate.arms import Arm
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.likelihood import PassageLoss, score_passages
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.load import LoadedModel
from tunesmith.record.observer import Observer
from tunesmith.runs.windows import PASSAGE_TOKENS, thinned
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.pretrain import cut_documents

#: A shorter rest belongs to the passage before.
_SHORTEST_TOKENS = PASSAGE_TOKENS // 4


@dataclass(frozen=True)
class _Passage:
    """Tokens `start` to `end` of a piece of a document, all of them learnt ones."""

    piece: Rendered
    document: Document
    start: int
    end: int


class PerplexityProof:
    """Measures one model on the passages of the same test documents.

    Each piece of a document goes through the model once; a passage of it is foretold from all of the piece before it.

    Args:
        loaded: the model; its weights may change between two measurements.
        renderer: knows the tokens' texts.
        documents: the locked test documents.
        spec: the resolved spec.
        observer: sees progress.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: ChatRenderer,
        documents: Sequence[Document],
        spec: TuneSpec,
        observer: Observer,
    ) -> None:
        assert not isinstance(spec.limits.max_tokens, str)
        self._loaded = loaded
        self._renderer = renderer
        self._confidence = spec.evaluation.confidence
        self._observer = observer
        pieces = [
            _passages(piece.sequence, documents[piece.document])
            for piece in cut_documents(documents, renderer.tokenizer, spec.limits.max_tokens)
        ]
        most = spec.data.max_test_rows
        self._pieces = thinned(pieces, most / max(1, sum(len(passages) for passages in pieces)))
        #: The passages as rows: what the model has to say, asked nothing.
        self.rows = [self._row(passage) for passages in self._pieces for passage in passages]

    def measure_arm(self, arm: Arm) -> ArmResult:
        """Measure the model as it is now; the arm gives its name, and asks nothing."""
        model = TreeModel.of(self._loaded.model)
        losses: list[PassageLoss] = []
        for done, passages in enumerate(self._pieces, start=1):
            losses += self._losses(model, passages)
            self._observer.progress(f"asking {arm.name}", done, len(self._pieces))
        return score_passages(arm.name, "", losses, self._confidence)

    @torch.no_grad()
    def _losses(self, model: TreeModel, passages: Sequence[_Passage]) -> list[PassageLoss]:
        started = time.perf_counter()
        piece = passages[0].piece
        context = piece.learnt.index(True)
        # One sequence alone: its targets stand in the order of its learnt tokens.
        losses = model.loss(build_tree([piece]))[1].double().cpu()
        seconds = time.perf_counter() - started
        return [
            PassageLoss(
                nats=float(losses[passage.start - context : passage.end - context].sum()),
                tokens=passage.end - passage.start,
                bytes=self._bytes(passage),
                context_tokens=passage.start,
                seconds=seconds * (passage.end - passage.start) / len(losses),
            )
            for passage in passages
        ]

    def _bytes(self, passage: _Passage) -> int:
        ids = passage.piece.token_ids[passage.start : passage.end]
        special = self._renderer.special_ids
        return max(1, sum(len(self._renderer.token_bytes(i)) for i in ids if i not in special))

    def _row(self, passage: _Passage) -> Conversation:
        text = self._renderer.decode(passage.piece.token_ids[passage.start : passage.end])
        return Conversation((Message("assistant", text),), place=passage.document.place, source=passage.document.source)


def _passages(piece: Rendered, document: Document) -> list[_Passage]:
    """Cut a piece's learnt tokens, which all stand at its end, into passages."""
    starts = list(range(piece.learnt.index(True), len(piece.token_ids), PASSAGE_TOKENS))
    if len(starts) > 1 and len(piece.token_ids) - starts[-1] < _SHORTEST_TOKENS:
        starts.pop()
    ends = [*starts[1:], len(piece.token_ids)]
    return [_Passage(piece, document, start, end) for start, end in zip(starts, ends, strict=True)]
