"""Noise on the embeddings of training passes (NEFTune: Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import TokenTree

#: Seeds are drawn below this bound.
_SEEDS = 2**62


@contextmanager
def embedding_noise(model: TreeModel, tree: TokenTree, alpha: float) -> Iterator[None]:
    """Add noise to the embeddings of one forward pass over `tree`, the next within the context.

    A token of a sequence of L tokens gets uniform noise from [-1, 1] x alpha / sqrt(L H), H being the embeddings'
    width. A token that several sequences share is computed once, so it has one noise; its 1 / L is the mean of the
    sequences' own. Added up over all sequences, the noise's expected square is then what it is without sharing.

    The noise depends on torch's random state alone, which checkpoints keep: a resumed run draws the same. With `alpha`
    0 nothing is drawn and nothing is added.
    """
    if not alpha:
        yield
        return
    embedding = model.model.get_input_embeddings()
    # The seed comes from the CPU's generator, so that the device's own need not be in the same state.
    seed = int(torch.randint(_SEEDS, ()).item())
    strength = _strengths(tree) * alpha
    places = iter(_places(model, tree))
    noise: Tensor | None = None

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        nonlocal noise
        if noise is None:
            generator = torch.Generator(output.device).manual_seed(seed)
            shape = len(strength), output.shape[-1]
            noise = torch.empty(shape, dtype=torch.float32, device=output.device).uniform_(-1, 1, generator=generator)
            noise *= strength.to(output.device)[:, None] * output.shape[-1] ** -0.5
        place = next(places)
        return output + (noise if place is None else noise[place.to(noise.device)]).to(output.dtype)

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _strengths(tree: TokenTree) -> Tensor:
    """Return (N,): the square root of each token's mean 1 / L."""
    lengths = torch.tensor([segment.length for segment in tree.segments])
    return torch.tensor(tree.inverse_lengths, dtype=torch.float32).sqrt().repeat_interleave(lengths)


def _places(model: TreeModel, tree: TokenTree) -> list[Tensor | None]:
    """Return which of the tree's tokens each call of the embedding holds; None: all in order."""
    if model.one_by_one_because is None:
        return [None]
    segments = [torch.arange(segment.start, segment.start + segment.length) for segment in tree.segments]
    return [torch.cat([segments[number] for number in path]) for path in tree.paths()]
