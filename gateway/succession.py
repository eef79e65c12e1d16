"""The way from one generation to the next: its pools listen, then its workers accept; only then does the old one go.

Nothing here waits: `advance` is called whenever something has happened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from gateway.fastcgi.tokens import Tokens
from gateway.generation import Generation
from gateway.managers import Managers, NotStarted
from gateway.parent import Parent
from gateway.pools import PATIENCE
from gateway.prepare import Prepared
from gateway.settings import FastCgiServer

# From the start of the workers until all accept, at a reload, in seconds.
_PATIENCE = 30.0


class Succession:
    """Starts what `prepared` needs; raises NotStarted or OSError. `is_first`: there is none that serves meanwhile."""

    def __init__(
        self,
        parent: Parent,
        prepared: Prepared,
        managers: Managers,
        before: Mapping[FastCgiServer, Tokens],
        is_first: bool,
    ) -> None:
        self.prepared = prepared
        self.is_first = is_first
        self.generation: Generation | None = None
        self._parent = parent
        self._managers = managers
        self._before = before
        self._pools = managers.hire(prepared.settings)
        self.due = time.monotonic() + PATIENCE

    def advance(self, now: float) -> bool:
        """Go on as far as it goes; return whether the new generation serves. Raise NotStarted or OSError."""
        generation = self.generation
        if generation is None:
            late = [managed for managed in self._pools if not managed.listens]
            failed = [managed for managed in late if managed.has_failed or now >= self.due]
            if failed:
                raise NotStarted(f"{failed[0].child.name} did not start")
            if late:
                return False
            generation = self.generation = Generation(
                self._parent,
                self.prepared.settings,
                [listener.socket for listener in self.prepared.listeners],
                self._pools,
                self._before,
                self.prepared.tls,
            )
            # Without one that serves meanwhile there is nothing to go back to: those who die are replaced.
            self.due = float("inf") if self.is_first else now + _PATIENCE
            generation.start()
        if generation.is_ready:
            return True
        if not self.is_first and generation.trouble:
            raise NotStarted(generation.trouble)
        if now >= self.due:
            raise NotStarted(f"the workers are not ready within {_PATIENCE:g} s")
        return False

    def give_up(self) -> Generation | None:
        """Undo what was begun; return the generation that is to be waited for, and whose pools are released then."""
        if self.generation:
            self.generation.stop()
        else:
            self._managers.release(self._pools)
        return self.generation
