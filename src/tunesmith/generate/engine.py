"""The generator: continuous batching over one loaded model.

Requests join and leave at any step. A step computes one new token of every answer in flight together with a bounded
piece of the prompts that wait, in one forward pass over a flat batch. Keys and values lie in pages; a text that begins
like one that was computed before finds that beginning in the prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Texts
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError
from tunesmith.generate.answer import Answer
from tunesmith.generate.chunks import Piece
from tunesmith.generate.decoder import Decoder, DecoderStatus, busy_adapter, known_adapter, unknown_adapter
from tunesmith.generate.forward import AdapterRows, Forward
from tunesmith.generate.layout import StepLayout
from tunesmith.generate.pages import PAGE_TOKENS, PageMemory, PagePool, pages_for
from tunesmith.generate.request import Delta, Request, ScoreDone, ScoreRequest
from tunesmith.generate.room import PageSize, cache_bytes_by_default, pages_taken_at_once
from tunesmith.generate.sampling import Choice, choose
from tunesmith.generate.scheduler import Scheduler, StepPlan
from tunesmith.generate.scoring import token_scores
from tunesmith.generate.sequence import Scoring, Sequence
from tunesmith.models.adapters.served import ServedAdapter
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.load import LoadedModel

#: Tokens of growing answers in a step, up to which some of them are guessed. Reading the weights is what such a step
#: costs: with SmolLM2 in bfloat16 on two CPU cores, 1 row takes 6 ms, 8 take 8 and 32 take 15.
LOOKAHEAD_ROWS = 8


@dataclass(frozen=True, slots=True)
class _Growing:
    """An answer whose next tokens are chosen: `row` is that of its last token in the flat batch, guesses follow."""

    sequence: Sequence
    answer: Answer
    row: int
    guesses: Texts[int]


class Engine(Decoder):
    """Decodes with one model. One thread at a time may use it.

    What is guaranteed: an answer depends on its request alone, up to rounding. Which other requests are in the batch,
    what the caches hold, how prompts are cut into chunks, whether the request was put back for lack of memory: none of
    it changes what is computed, only how sums are split. In float32 that is a relative error of about 1e-6 in the
    logits: greedy answers, and sampled ones with a seed, come out the same unless two tokens are as close as that. In
    bfloat16 single numbers may be rounded to the neighbouring value, some 0.4 % away, and answers may part where two
    tokens are nearly as likely. On CPUs whose bfloat16 products give a row the same result in any batch (those with
    AVX-512), a request that computes its own prompt gives bit for bit the same alone and among others.

    While few answers grow, their next tokens are guessed from their own texts (see `generate.lookahead`) and computed
    in the same step, each as a decoding row of its own, as those of other answers are. A guess counts only if the very
    same token is then chosen in its place, by the request's own rules and random numbers. So guesses are company like
    any other: what is guaranteed holds with and without them.

    Args:
        loaded: the model; its attention is switched to this engine's.
        renderer: decodes tokens and knows which ones end a turn.
        max_batch: requests computed side by side.
        cache_bytes: memory for keys and values; None: a share of what is free. On CPUs it is taken as it is used.
        max_prefill_tokens: prompt tokens computed in one step at most.
        prefill_beside_tokens: the same, while answers grow: a smaller number lets them wait less for others' prompts.
        owned: nobody else computes with the model from now on, see `Forward.of`.
        lookahead_rows: tokens of growing answers in a step, up to which some of them are guessed; 0: none ever.

    Raises:
        ModelError: the memory doesn't hold a single page.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: ChatRenderer,
        *,
        max_batch: int = 32,
        cache_bytes: int | None = None,
        max_prefill_tokens: int = 1024,
        prefill_beside_tokens: int = 256,
        owned: bool = False,
        lookahead_rows: int = LOOKAHEAD_ROWS,
    ) -> None:
        use_layout_attention(loaded.model)
        self._forward = Forward.of(loaded, owned=owned)
        page = PageSize.of(self._forward, loaded.device)
        room = cache_bytes_by_default(loaded.device) if cache_bytes is None else cache_bytes
        # More than that, nobody could fill.
        most = 4 * max_batch * pages_for(loaded.context_tokens)
        total = min(room // page.bytes, most)
        if total == 0:
            raise ModelError(
                f"The memory for keys and values ({room:,} bytes) doesn't hold {PAGE_TOKENS} tokens of this model "
                f"({page.bytes:,} bytes).",
                fix="Give it more (cache_bytes).",
                code="cache_too_small",
            )
        self._vocabulary: int = loaded.model.get_output_embeddings().weight.shape[0]
        super().__init__(loaded, renderer, total * PAGE_TOKENS, self._vocabulary)
        self._memory = PageMemory(total)
        self._memory.take(page.layers, pages_taken_at_once(page.bytes, total, max_batch))
        self._scheduler = Scheduler(
            PagePool(total),
            max_batch=max_batch,
            max_prefill_tokens=max_prefill_tokens,
            prefill_beside_tokens=prefill_beside_tokens,
            lookahead_rows=lookahead_rows,
        )
        self._sequences: dict[int, Sequence] = {}
        #: Set once something wasn't a finite number: pages are cleared before they are used again from then on.
        self._is_tainted = False

    @property
    def has_work(self) -> bool:
        """See `Decoder`."""
        return bool(self._sequences)

    @property
    def status(self) -> DecoderStatus:
        """See `Decoder`."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        return DecoderStatus(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages=pool.total,
            held_pages=pool.total - pool.free - pool.idle,
            cached_pages=pool.idle,
            found_tokens=scheduler.found_tokens,
            computed_tokens=scheduler.computed_tokens,
            preemptions=scheduler.preemptions,
            guessed_tokens=scheduler.guessed_tokens,
            accepted_tokens=scheduler.accepted_tokens,
        )

    def cancel(self, request_id: int) -> None:
        """See `Decoder`."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.end(sequence)

    def weight(self, name: str) -> Tensor:
        """See `Decoder`."""
        return self._forward.weight(name)

    def add_adapter(self, name: str, adapter: ServedAdapter) -> None:
        """See `Decoder`."""
        if name in self._adapters:
            raise known_adapter(name)
        self._forward.expect_adapters()
        self._adapters[name] = adapter

    def remove_adapter(self, name: str) -> None:
        """See `Decoder`; what was computed with it leaves the prefix cache."""
        if name not in self._adapters:
            raise unknown_adapter(name)
        if any(sequence.adapter == name for sequence in self._sequences.values()):
            raise busy_adapter(name)
        del self._adapters[name]
        self._scheduler.cache.forget(name)

    @torch.inference_mode()
    def step(self) -> list[Delta | ScoreDone]:
        """See `Decoder`."""
        plan = self._scheduler.plan()
        if not plan.advances:
            return []
        self._prepare_pages(plan)
        layout = StepLayout(
            self._memory,
            [
                Piece(one.pages, one.computed + turn, 1)
                for one, count in plan.advances[: len(plan.decoding)]
                for turn in range(count)
            ],
            [Piece(one.pages, one.computed, count) for one, count in plan.chunks],
            self._device,
        )
        tokens = plan.tokens
        tokens += tokens[:1] * layout.padding
        hidden = self._forward.hidden(torch.tensor(tokens, device=self._device), layout, self._adapter_rows(plan))
        self._is_tainted = self._is_tainted or not bool(hidden.isfinite().all())
        self._scheduler.advance(plan)
        return [*self._score(plan, hidden), *self._extend(plan, hidden)]

    def _queue_answer(self, request: Request, answer: Answer) -> None:
        tokens = [*request.prompt_ids]
        self._queue(Sequence(request.adapter, tokens, len(tokens), answer))

    def _queue_score(self, request_id: int, request: ScoreRequest) -> None:
        tokens = [*request.prompt_ids, *request.continuation_ids[:-1]]
        self._queue(Sequence(request.adapter, tokens, len(request.prompt_ids), Scoring(request_id, request)))

    def _queue(self, sequence: Sequence) -> None:
        self._sequences[sequence.request_id] = sequence
        self._scheduler.waiting.append(sequence)

    def _prepare_pages(self, plan: StepPlan) -> None:
        """Fill pages that were given out with what they begin with."""
        targets = [target for _, target in plan.copies]
        if targets:
            self._memory.copy([source for source, _ in plan.copies], targets)
        if self._is_tainted:
            # Attention gives keys that it doesn't see no weight, but no weight times NaN is NaN.
            self._memory.clear([page for page in plan.taken if page not in targets])

    def _adapter_rows(self, plan: StepPlan) -> list[AdapterRows]:
        """Return which rows of the flat batch go through which adapter."""
        rows: list[AdapterRows] = []
        start = 0
        for one, count in plan.advances:
            if one.adapter is not None:
                adapter = self._adapters[one.adapter]
                if rows and rows[-1].end == start and rows[-1].adapter is adapter:
                    start_of_rows = rows.pop().start
                else:
                    start_of_rows = start
                rows.append(AdapterRows(start_of_rows, start + count, adapter))
            start += count
        if start == 1 and rows:  # the row is computed twice, see `StepLayout`
            return [AdapterRows(0, 2, rows[0].adapter)]
        return rows

    def _extend(self, plan: StepPlan, hidden: Tensor) -> list[Delta]:
        """Choose the next tokens of each answer whose tokens are all computed: one, and one after each right guess."""
        growing = _growing(plan)
        if not growing:
            return []
        turns = 1 + max(len(one.guesses) for one in growing)
        rows = [one.row + turn for turn in range(turns) for one in growing if turn <= len(one.guesses)]
        # Never a single row: see StepLayout.
        logits = self._forward.logits(hidden.index_select(0, torch.tensor([*rows, rows[0]], device=self._device)))
        place_of = {row: place for place, row in enumerate(rows)}
        deltas: list[Delta] = []
        turn = 0
        while growing:
            places = [place_of[one.row + turn] for one in growing]
            # All answers take the first turn, and theirs are the first rows.
            own = logits[: len(places)] if turn == 0 else logits[torch.tensor(places, device=self._device)]
            choices = choose(own, [one.answer.sampler for one in growing])
            told = [self._take(one, choice, turn) for one, choice in zip(growing, choices, strict=True)]
            deltas += [delta for delta, _ in told]
            growing = [one for one, (_, goes_on) in zip(growing, told, strict=True) if goes_on]
            turn += 1
        return deltas

    def _take(self, growing: _Growing, choice: Choice, turn: int) -> tuple[Delta, bool]:
        """Add a token to an answer; return its delta, and whether the token was guessed and the next is known too."""
        sequence, guesses = growing.sequence, growing.guesses
        sequence.tokens.append(choice.token_id)
        delta = growing.answer.take(choice)
        has_ended = delta.completion is not None
        if not has_ended and turn < len(guesses) and guesses[turn] == choice.token_id:
            return delta, True
        if guesses:
            self._scheduler.accept(sequence, len(guesses), turn)
        if has_ended:
            self.cancel(sequence.request_id)
        return delta, False

    def _score(self, plan: StepPlan, hidden: Tensor) -> Texts[ScoreDone]:
        """Take what the step says about the tokens that are scored."""
        rows: list[int] = []
        targets: list[int] = []
        scored: list[tuple[Sequence, Scoring, int]] = []
        start = 0
        for one, count in plan.advances:
            if isinstance(one.job, Scoring):
                own = one.job.targets(one.computed)
                # The chunk ends before `computed`; the last of its rows are those that the targets follow.
                rows += range(start + count - len(own), start + count)
                targets += own
                scored.append((one, one.job, len(own)))
            start += count
        logprobs, is_likeliest, top = (
            token_scores(
                hidden.index_select(0, torch.tensor(rows, device=self._device)),
                targets,
                self._forward.logits,
                self._vocabulary,
                max(job.top for _, job, _ in scored),
            )
            if targets
            else ([], [], [])
        )
        done, begin = [], 0
        for one, job, count in scored:
            end = begin + count
            job.take(logprobs[begin:end], is_likeliest[begin:end], top[begin:end])
            begin = end
            if job.score is not None:
                self.cancel(one.request_id)
                done.append(ScoreDone(job.request_id, job.score))
        return done


def _growing(plan: StepPlan) -> list[_Growing]:
    """Return the answers whose tokens are all computed."""
    found, start = [], 0
    for one, count in plan.advances:
        if one.missing == 0 and isinstance(one.job, Answer):
            guesses = plan.guesses.get(one.request_id, [])
            found.append(_Growing(one, one.job, start + count - 1 - len(guesses), guesses))
        start += count
    return found
