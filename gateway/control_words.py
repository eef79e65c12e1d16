"""The words that the master and a worker have for each other, one a message, on the channel between them.

The channel's end means that the other side is gone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

# The master's. After SPAWNER comes the spawner's number; with it comes its channel, with CERTIFICATES a file of them.
STOP, DRAIN, REOPEN, SPAWNER, CERTIFICATES = b"t", b"q", b"u", b"s", b"x"
# A worker's: from now on it accepts connections; no longer. After LEFT, see `left`.
READY, CLOSED, LEFT = b"r", b"c", b"l"

_NUMBER = struct.Struct("=Q")
_NUMBERS_AT_ONCE = 500
# No message is longer, in bytes.
LONGEST = 1 + _NUMBER.size * (1 + _NUMBERS_AT_ONCE)


def left(spawner: int, pipes: Iterable[int]) -> Iterator[bytes]:
    """Yield messages, as many as it takes: a spawner died, and its programs have pipes of these inodes."""
    inodes = list(pipes)
    for start in range(0, len(inodes), _NUMBERS_AT_ONCE):
        yield LEFT + b"".join(map(_NUMBER.pack, (spawner, *inodes[start : start + _NUMBERS_AT_ONCE])))


def left_in(message: bytes) -> tuple[int, set[int]]:
    """Return what a message of `left` says; raise ValueError.

    It comes from a process that talks to clients: it may be anything.
    """
    if len(message) % _NUMBER.size != 1 or len(message) == 1:
        raise ValueError("no word of a worker")
    spawner, *pipes = (number for (number,) in _NUMBER.iter_unpack(message[1:]))
    return spawner, set(pipes)
