"""How a pool ends, all of it or the workers of an old configuration: in steps, each with its deadline. Pure.

NORMAL < RELOADING < FINISHING < TERMINATING: what was asked for is only ever made more urgent. Workers that are to go
climb a ladder: QUIT, end when you are idle; TERM, end now; KILL. Who does not leave a rung within its time is pushed to
the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

# Seconds from TERM to KILL where a fast end was asked for.
FAST = 3.0
# Seconds from TERM to KILL after a graceful end took too long, unless process_control_timeout is shorter.
_LAST = 3.0


class Phase(IntEnum):
    """What the whole is doing."""

    NORMAL = 0
    RELOADING = 1
    FINISHING = 2
    TERMINATING = 3


class Rung(IntEnum):
    """What workers that are to go have been told."""

    QUIT = 0
    TERM = 1
    KILL = 2


@dataclass(frozen=True, slots=True)
class Ladder:
    """Workers on their way out. `deadline`: when the next rung follows, `time.monotonic()` seconds."""

    rung: Rung
    deadline: float

    @classmethod
    def graceful(cls, now: float, timeout: float) -> Ladder:
        """Begin with QUIT; TERM follows after `timeout` seconds (process_control_timeout)."""
        return cls(Rung.QUIT, now + timeout)

    @classmethod
    def fast(cls, now: float) -> Ladder:
        """Begin with TERM."""
        return cls(Rung.TERM, now + FAST)

    def climb(self, now: float) -> Ladder:
        """Return the next rung if the deadline has passed, else this one. KILL is repeated: it cannot fail for good."""
        if now < self.deadline:
            return self
        if self.rung is Rung.QUIT:
            return Ladder(Rung.TERM, now + _LAST)
        return Ladder(Rung.KILL, now + FAST)

    def hurried(self, now: float, rung: Rung) -> Ladder:
        """Return a ladder on `rung` if this one is below it."""
        return self if self.rung >= rung else Ladder(rung, now + FAST)


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The phase of a manager, and how urgent its end is."""

    phase: Phase = Phase.NORMAL
    rung: Rung = Rung.QUIT

    def ask(self, phase: Phase) -> Lifecycle:
        """Return what follows when `phase` is asked for: the more urgent of both. A second TERM is KILL."""
        if phase is Phase.TERMINATING:
            rung = Rung.KILL if self.phase is Phase.TERMINATING else Rung.TERM
            return Lifecycle(phase, rung)
        return replace(self, phase=max(self.phase, phase))

    def reloaded(self) -> Lifecycle:
        """Return what follows when a reload has ended."""
        return replace(self, phase=Phase.NORMAL) if self.phase is Phase.RELOADING else self

    @property
    def is_ending(self) -> bool:
        """Whether no worker is to be started any more."""
        return self.phase >= Phase.FINISHING
