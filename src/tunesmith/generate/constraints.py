"""The form that an answer must have, token by token."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Matcher(Protocol):
    """Follows one answer and says which tokens may come next."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end may follow."""

    def allowed(self, mask: Tensor) -> None:
        """Fill one row of a bit mask, int32 (ceil(V/32),): bit `i % 32` of word `i // 32` says whether i may come."""

    def accept(self, token_id: int) -> None:
        """Go on with a token that was chosen."""
