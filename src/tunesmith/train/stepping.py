"""One step's loss and gradients, computed in passes that fit the memory. When memory runs out, the passes shrink."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tunesmith.chat.renderer import Rendered
from tunesmith.errors import RunError
from tunesmith.learn.noise import embedding_noise
from tunesmith.learn.passes import Passes
from tunesmith.learn.randomness import random_state, restore_random_state
from tunesmith.learn.recompute import recomputable_layers, recompute_layers
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import TokenTree, build_tree
from tunesmith.specs.tune import LearningSpec
from tunesmith.train.memory import PeakMemory, is_out_of_memory
from tunesmith.train.packing import microbatches

_Result = TypeVar("_Result")
#: A sequence's loss and its hits, each summed over its learnt tokens.
_Sums = tuple[float, float]
#: Told the old way, the new way and what the failure said, each time that passes shrink.
Replanned = Callable[[Passes, Passes, str], None]


@dataclass(frozen=True, slots=True)
class Computed:
    """What computing some sequences came to.

    `loss` is the mean over the `learnt_tokens`, in nats, without label smoothing; `sequence_losses` are its parts, the
    sum over each sequence's learnt tokens, in the sequences' order. `tokens` counts the sequences' tokens as if nothing
    were shared; `seconds` is the time of the attempt that worked. `accuracy` is the share of learnt tokens for which no
    other was likelier.
    """

    loss: float
    sequence_losses: tuple[float, ...]
    learnt_tokens: int
    tokens: int
    seconds: float
    accuracy: float


class Stepper:
    """Computes losses and gradients of one model. Weights and optimiser are never touched.

    Args:
        model: computes the loss of a token tree.
        parameters: what is trained; gradients are left there.
        passes: how to begin.
        on_replanned: told when memory ran out and smaller passes are tried.
        learning: label smoothing and noise of the passes that train; those that only measure have neither.
    """

    def __init__(
        self,
        model: TreeModel,
        parameters: Sequence[torch.nn.Parameter],
        passes: Passes,
        on_replanned: Replanned,
        learning: LearningSpec | None = None,
    ) -> None:
        self._model = model
        self._parameters = list(parameters)
        self._on_replanned = on_replanned
        self._learning = learning or LearningSpec()
        self.device = model.projection.weight.device
        #: Layers that could be computed twice.
        self.layers = len(recomputable_layers(model.model))
        self.use(passes)

    @property
    def passes(self) -> Passes:
        """How steps are computed now."""
        return self._passes

    def use(self, passes: Passes) -> None:
        """Compute this way from now on. Copies of weights are made or dropped when the next computation begins."""
        self._passes = passes
        recompute_layers(self._model.model, passes.recomputed_layers)

    def lower(self) -> Passes | None:
        """Return the next way that needs less memory, or None."""
        return self._passes.lower(self.layers, self.device.type)

    def prepare(self) -> None:
        """Make copies of weights now, if they are wanted, so that no step takes the time."""
        self._replanning(lambda: None, "the beginning")

    def rest(self) -> None:
        """Drop copies of weights until the next computation: others may need the memory."""
        self._model = self._model.with_copied_weights(False)

    def gradients(self, sequences: Sequence[Rendered], where: str) -> Computed:
        """Leave the gradient of the sequences' mean loss in the parameters, which must have none yet.

        Args:
            sequences: all that the optimiser step learns from.
            where: names the step in errors.

        Raises:
            RunError: memory ran out, and no smaller passes are left (`out_of_memory`).
        """
        return self._replanning(lambda: self._sum_gradients(sequences), where)

    def mean_loss(self, sequences: Sequence[Rendered], on_progress: Callable[[int], None]) -> Computed:
        """Return the sequences' mean loss without dropout and without gradients.

        Args:
            sequences: at least one, with something learnt.
            on_progress: told how many sequences are done.

        Raises:
            RunError: memory ran out, and no smaller passes are left (`out_of_memory`).
        """
        return self._replanning(lambda: self._sum_losses(sequences, on_progress), "validation")

    def forget_gradients(self) -> None:
        """Throw the gradients away."""
        for parameter in self._parameters:
            parameter.grad = None

    def gradient_norm(self) -> float:
        """Return the Euclidean norm of all gradients; not finite if one of them isn't."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def try_out(self, parts: Sequence[Sequence[Rendered]]) -> float | None:
        """Compute passes forward and backward and forget them: random numbers and gradients are as before.

        Returns:
            The seconds that it took, or None if memory ran out.
        """
        began_with = random_state(self.device)
        started = time.perf_counter()
        failure = self._out_of_memory(lambda: [self._add_gradients(part, 1) for part in parts])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        self._clear(began_with)
        return seconds if failure is None else None

    def _replanning(self, compute: Callable[[], _Result], where: str) -> _Result:
        """Compute; when memory runs out, begin again from the same random state with smaller passes."""
        began_with = random_state(self.device)
        results: list[_Result] = []
        while (failure := self._out_of_memory(lambda: results.append(compute()))) is not None:
            self._clear(began_with)
            lower = self.lower()
            if lower is None:
                raise _out_of_memory(where, self._passes, self.device, failure)
            self._on_replanned(self._passes, lower, failure)
            self.use(lower)
        return results[0]

    def _out_of_memory(self, compute: Callable[[], object]) -> str | None:
        """Compute; return None, or what the failure said if memory ran out.

        The error itself stays here: its traceback would keep the failed pass's tensors alive.
        """
        try:
            # Each time: others who compute with the same model may want it otherwise.
            self._model = self._model.with_copied_weights(self._passes.copied_weights)
            compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _first_line(error)
        return None

    def _clear(self, random: Mapping[str, Tensor]) -> None:
        """Forget what was computed and go back to a random state."""
        self.forget_gradients()
        restore_random_state(random, self.device)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sum_gradients(self, sequences: Sequence[Rendered]) -> Computed:
        started = time.perf_counter()
        learnt = sum(sequence.learnt_tokens for sequence in sequences)
        losses: dict[int, _Sums] = {}
        for part in microbatches(sequences, self._passes.tokens_per_pass):
            losses |= self._add_gradients(part, learnt)
        return _computed(losses, sequences, started)

    def _add_gradients(self, part: Sequence[Rendered], learnt: int) -> dict[int, _Sums]:
        """Add one pass's share of the gradient of a mean over `learnt` tokens; return the sequences' sums."""
        tree = build_tree(part)
        hits = self._room_for_hits(tree)
        with embedding_noise(self._model, tree, self._learning.embedding_noise):
            total, singles = self._model.loss(
                tree,
                chunk_tokens=self._passes.loss_chunk_tokens,
                label_smoothing=self._learning.label_smoothing,
                hits=hits,
            )
            (total / learnt).backward()  # type: ignore[no-untyped-call]
        return _by_identity(part, tree, singles, hits)

    def _room_for_hits(self, tree: TokenTree) -> Tensor:
        return torch.empty(len(tree.target_ids), dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def _sum_losses(self, sequences: Sequence[Rendered], on_progress: Callable[[int], None]) -> Computed:
        started = time.perf_counter()
        model = self._model.model
        was_training = model.training
        model.eval()
        losses: dict[int, _Sums] = {}
        done = 0
        try:
            for part in microbatches(sequences, self._passes.tokens_per_pass):
                tree = build_tree(part)
                hits = self._room_for_hits(tree)
                _, singles = self._model.loss(tree, chunk_tokens=self._passes.loss_chunk_tokens, hits=hits)
                losses |= _by_identity(part, tree, singles, hits)
                done += len(part)
                on_progress(done)
        finally:
            model.train(was_training)
        return _computed(losses, sequences, started)


def _by_identity(part: Sequence[Rendered], tree: TokenTree, losses: Tensor, hits: Tensor) -> dict[int, _Sums]:
    """Return each sequence's sums by the sequence's identity: passes have an order of their own."""
    sums = zip(tree.by_sequence(losses).tolist(), tree.by_sequence(hits).tolist(), strict=True)
    return {id(sequence): both for sequence, both in zip(part, sums, strict=True)}


def _computed(losses: Mapping[int, _Sums], sequences: Sequence[Rendered], started: float) -> Computed:
    sums = tuple(losses[id(sequence)][0] for sequence in sequences)
    hits = sum(losses[id(sequence)][1] for sequence in sequences)
    learnt = sum(sequence.learnt_tokens for sequence in sequences)
    tokens = sum(len(sequence.token_ids) for sequence in sequences)
    return Computed(sum(sums) / learnt, sums, learnt, tokens, time.perf_counter() - started, hits / learnt)


@contextmanager
def told_when_out_of_memory(where: str, passes: Passes, device: torch.device) -> Iterator[None]:
    """Tell that memory ran out where smaller passes are of no use.

    Raises:
        RunError: it ran out (`out_of_memory`).
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(where, passes, device, _first_line(error)) from error


def _out_of_memory(where: str, passes: Passes, device: torch.device, failure: str) -> RunError:
    """Return the error for a run whose memory ran out, with nothing left to lower."""
    peak_bytes = PeakMemory(device).bytes()
    return RunError(
        f"Memory ran out at {where}, at {peak_bytes / 1e9:.1f} GB, with {passes} and nothing to lower ({failure}).",
        fix="Free memory or lower limits.max_tokens, then resume the run; a smaller base or rank needs less, too.",
        code="out_of_memory",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
