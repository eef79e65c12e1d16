"""When a process that died is started again. Pure: times in, a delay out."""

from __future__ import annotations

# A process that lived this long, in seconds, was healthy: its successor starts at once.
HEALTHY = 10.0
# The longest wait between two starts of one that keeps dying, in seconds. systemd waits 0.1 s and gives up at the
# fifth time; we slow down and never give up.
LONGEST = 10.0
_FIRST = 0.1


class Restarts:
    """The history of one place in the tree of processes."""

    def __init__(self) -> None:
        self._early_deaths = 0

    def delay(self, lifetime: float) -> float:
        """Return the seconds to wait after a death at the age of `lifetime` seconds: none at first, then doubling."""
        if lifetime >= HEALTHY:
            self._early_deaths = 0
            return 0.0
        self._early_deaths += 1
        # One early death is an accident, such as a kill; it costs nothing.
        if self._early_deaths == 1:
            return 0.0
        return float(min(_FIRST * 2 ** (self._early_deaths - 2), LONGEST))
