"""How much arithmetic a training step is, by the model's shape: what the share of the matrix rate rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat.renderer import Rendered
from tunesmith.learn.tree import build_tree
from tunesmith.models.size import ModelSize


@dataclass(frozen=True)
class StepWork:
    """One step's rows in numbers.

    Attributes:
        row_tokens: the rows' tokens, shared or not.
        longest_tokens: of its longest row.
        tree_tokens: tokens that are computed once all that the rows share is computed once.
        targets: different (prefix, token) pairs that are learnt.
        operations: floating-point operations of the matrix products that LoRA needs; see `count_operations`.
    """

    row_tokens: int
    longest_tokens: int
    tree_tokens: int
    targets: int
    operations: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def count_operations(size: ModelSize, rank: int, tree_tokens: int, targets: int) -> int:
    """Return a step's operations: what must be multiplied, however it is computed.

    A product with a frozen weight costs two operations a weight and token forward, and two for the gradient of the
    activations. A LoRA weight costs two more, for its own gradient. The projection to the vocabulary (V x H) is needed
    at learnt tokens alone. Attention, norms and recomputation aren't counted.
    """
    linear = 4 * size.linear_parameters * tree_tokens
    lora = 6 * size.lora_parameters(rank) * tree_tokens
    return linear + lora + 4 * size.vocabulary * size.hidden * targets


def step_work(rows: Sequence[Rendered], size: ModelSize, rank: int) -> StepWork:
    """Count one step's rows."""
    tree = build_tree(rows)
    tree_tokens, targets = len(tree.token_ids), len(tree.target_ids)
    return StepWork(
        row_tokens=sum(len(row.token_ids) for row in rows),
        longest_tokens=max(len(row.token_ids) for row in rows),
        tree_tokens=tree_tokens,
        targets=targets,
        operations=count_operations(size, rank, tree_tokens, targets),
    )
