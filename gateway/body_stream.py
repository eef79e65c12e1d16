"""A request's body that is passed on while it comes, where a route asks for that: nothing of it is kept.

Who feeds it stops reading from the client while something of it waits; who takes it is told when something has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class BodyStream:
    """The body of one request, of `length` bytes, on its way.

    `on_data` is called when there is something to be taken, or nothing more comes; `on_room` when all of it was taken,
    after `is_congested`. It ends well when `has_ended`; where it `is_cut_off`, the rest never comes, and what was taken
    must not pass for the whole.
    """

    __slots__ = ("_discards", "_on_room", "_pieces", "has_ended", "is_cut_off", "length", "on_data", "received")

    def __init__(self, length: int, on_room: Callable[[], None]) -> None:
        self._pieces: deque[bytes] = deque()
        self._discards = False
        self._on_room = on_room
        self.length = length
        self.received = 0
        self.has_ended = False
        self.is_cut_off = False
        self.on_data: Callable[[], None] = _nothing

    # -- the client's side, as of `Body`

    @property
    def is_congested(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._pieces)

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        self.received += len(data)
        if not self._discards:
            self._pieces.append(data)
            self.on_data()

    def finish(self) -> None:
        """The body has ended."""
        self.has_ended = True
        self.on_data()

    def close(self) -> None:
        """The request has been answered, or given up: what has not come by now does not come any more."""
        if not self.has_ended and not self.is_cut_off:
            self.is_cut_off = True
            self.on_data()

    # -- the program's side

    @property
    def is_awaited(self) -> bool:
        """Whether it is the client's turn: nothing waits, and more is to come."""
        return not (self._pieces or self.has_ended or self.is_cut_off or self._discards)

    def is_readable(self, offset: int) -> bool:
        """Whether there is something to be read at `offset`, a piece or the end."""
        return bool(self._pieces) or self.is_cut_off or offset >= self.length

    def read(self, _offset: int, _size: int) -> bytes:
        """Return the next piece, which is taken with it; b"" if there is none."""
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if not self._pieces:
            self._on_room()
        return piece

    def discard(self) -> None:
        """Nobody takes it any more: drop what comes."""
        self._discards = True
        self.on_data = _nothing
        if self._pieces:
            self._pieces.clear()
            self._on_room()


def _nothing() -> None:
    pass
