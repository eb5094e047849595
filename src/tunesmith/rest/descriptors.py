"""File descriptors: how many a server may use, and how many connections that leaves room for."""

from __future__ import annotations

import errno
import resource

from tunesmith.rest.errors import WireError

#: More connections than any one process answers.
_WANTED = 65_536
#: What a server needs beside its connections: the record's own (two for each of SQLite's 17), content that is written,
#: models that are read, the pipes of workers.
_OWN = 56
#: A connection's own, and the file that is sent or received through it.
_FOR_EACH = 2
_FEWEST_CONNECTIONS = 4

NO_ROOM = WireError(
    503,
    "The server is busy: it has as many connections as it can hold.",
    "busy",
    can_retry=True,
    headers={"retry-after": "2"},
)


def most_connections() -> int:
    """Return how many connections this process can answer at once, once its limit is as high as the system lets it.

    Without a bound, a process that has no descriptors left can't accept connections, read its record or write a file;
    with one, whoever comes too many is told so, and the others go on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # a system may have bounds that it doesn't tell
            wanted = soft
    return max(_FEWEST_CONNECTIONS, (wanted - _OWN) // _FOR_EACH)


def is_out_of_descriptors(error: BaseException) -> bool:
    """Whether the system refused a descriptor; it may have one again in a moment."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
