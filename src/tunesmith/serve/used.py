"""How many tokens models have read and written, since the server started."""

from __future__ import annotations

import threading


class UsedTokens:
    """Counts tokens; the threads of all models share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.prompt_tokens = 0
        self.answer_tokens = 0

    def add(self, *, prompt_tokens: int = 0, answer_tokens: int = 0) -> None:
        """Count some more."""
        with self._lock:
            self.prompt_tokens += prompt_tokens
            self.answer_tokens += answer_tokens
