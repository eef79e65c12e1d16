"""Whether a client is too slow. Pure: the clock and the count are arguments."""

from __future__ import annotations


class Pace:
    """Holds one direction of a connection against `rate` bytes a second, over windows of `window` seconds.

    Of a total deadline with credit for what came, as Apache's RequestReadTimeout has it, a client that was fast at
    first could live for long; a window forgets.
    """

    __slots__ = ("_began", "_count", "_rate", "_window")

    def __init__(self, rate: int, window: float) -> None:
        self._rate = rate
        self._window = window
        self._began = -1.0
        self._count = 0

    def __repr__(self) -> str:
        return f"<Pace: {self._rate} B/s over {self._window:g} s, {'at rest' if self._began < 0 else 'measured'}>"

    def rest(self) -> None:
        """There is nothing for the client to send or take: what it does not do now is not held against it."""
        self._began = -1.0

    def is_too_slow(self, now: float, count: int) -> bool:
        """Take that `count` bytes have been transferred in all by `now`; return whether that was too slow."""
        if self._began < 0:
            self._began, self._count = now, count
            return False
        took = now - self._began
        if took < self._window:
            return False
        is_slow = count - self._count < self._rate * took
        self._began, self._count = now, count
        return is_slow
