"""How attempts tell their worker what came of them."""

from __future__ import annotations

#: The job has ended, well or not, and the record says how.
DONE = 0
#: Something unexpected; another attempt may have more luck.
CRASHED = 1
#: The job isn't this attempt's any more.
STALE = 70
#: It was told to stop, and its work is kept.
INTERRUPTED = 75
#: The machine had no memory for it.
OUT_OF_MEMORY = 77
