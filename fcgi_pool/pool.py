"""One pool: its socket, its generations of workers, and what its phase asks for.

While it is reloaded, a new generation comes up beside the old one, which serves until the new one does, and for good if
the new one cannot. While it finishes, the address is taken away first, and who waits is still served.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping

from fcgi_pool.generation import Generation
from fcgi_pool.lifecycle import Ladder, Phase, Rung
from fcgi_pool.listener import file_of
from fcgi_pool.log import Log
from fcgi_pool.loop import Loop
from fcgi_pool.policy import End, describe
from fcgi_pool.prepare import Prepared, Sockets
from fcgi_pool.probe import signal_group
from fcgi_pool.process import start_helper
from fcgi_pool.refusal import refuser
from fcgi_pool.snapshot import Snapshot
from fcgi_pool.status import Counters, Page, render
from fcgi_pool.status_server import StatusServer, respond
from fcgi_pool.told import Reader

# Seconds between two looks, at most.
LOOK = 0.25
# Between two looks while workers come up or go, and between a look and the next one that a waiting connection causes.
_SOON = 0.02
_EAGER_LOOK = 0.05


class Pool:
    """A pool as it was prepared; its sockets are its own from now on. Raises OSError.

    `told`: reads what a web server says of its connections to the pool.
    """

    def __init__(self, prepared: Prepared, loop: Loop, log: Log, told: Reader | None = None) -> None:
        self.config = prepared.config
        self.sockets = prepared.sockets
        self.counters = Counters(time.monotonic())
        self.due = 0.0
        self._loop = loop
        self._log = log
        self._told = told
        self._listener = self.sockets.listener
        self._file = file_of(self._listener)
        self._current = Generation(prepared, loop, log, self.counters, told)
        self._next: Generation | None = None
        self._old: list[Generation] = []
        self._phase = Phase.NORMAL
        self._refuser = 0
        self._is_watching = False
        self._looked = float("-inf")
        self._finish_by = float("inf")
        self._crashes: deque[float] = deque()
        self._status: StatusServer | None = None
        self._open_status()

    def __repr__(self) -> str:
        return f"<Pool {self.config.name}: {describe(self.snapshot)}>"

    @property
    def snapshot(self) -> Snapshot:
        """All workers as they were seen last, of every generation."""
        current = self._current.snapshot
        others = [worker for generation in self._others for worker in generation.snapshot.workers]
        if not others:
            return current
        workers = sorted([*current.workers, *others], key=lambda worker: worker.pid)
        return Snapshot(tuple(workers), current.queue, current.queue_limit, current.requests)

    @property
    def has_ended(self) -> bool:
        """Whether no process of the pool is left, and none will be started."""
        return self._phase >= Phase.FINISHING and not self._refuser and not any(g.workers for g in self._all)

    @property
    def pids(self) -> list[int]:
        """The pids of all processes of the pool."""
        pids = [pid for generation in self._all for pid in generation.workers]
        return [*pids, self._refuser] if self._refuser else pids

    @property
    def _others(self) -> list[Generation]:
        return [*self._old, self._next] if self._next else list(self._old)

    @property
    def _all(self) -> list[Generation]:
        return [self._current, *self._others]

    @property
    def has_lost_its_file(self) -> bool:
        """Whether nobody can connect any more, though the pool listens: the file of its Unix socket was removed, or
        another's is in its place."""
        return self._file is not None and self._phase < Phase.FINISHING and file_of(self._listener) != self._file

    # -- time passes

    def tick(self, now: float) -> None:
        """Do what is due at `now`, monotonic seconds; sets `due` to when it has to be called again."""
        self._looked = now
        self._current.step(now)
        for generation in list(self._old):
            generation.step(now)
            generation.push(now)
            if not generation.workers:
                generation.close()
                self._old.remove(generation)
        if self._next:
            self._try_next(self._next, now)
        if self._phase is Phase.FINISHING and not self._current.ladder:
            self._finish(now)
        self._current.push(now)
        self.counters.note(self.snapshot)
        self._refuse_or_not()
        if self._status:
            self._status.tick(now)
        is_waiting = any(generation.is_waiting for generation in self._all)
        self.due = now + (_SOON if is_waiting else LOOK)
        not_before = self._current.failures.not_before
        if now < not_before < self.due:
            self.due = not_before
        self._watch_listener()

    def _watch_listener(self) -> None:
        """Be told when somebody waits, where a worker could be started for it."""
        current = self._current
        wants = self.config.pm != "static" and not current.is_full and not current.failures.is_broken
        if wants and self._phase < Phase.FINISHING and not self._is_watching:
            self._is_watching = True
            self._loop.watch(self._listener.fileno(), self._somebody_waits)

    def _somebody_waits(self) -> None:
        self._ignore_listener()
        # Somebody free takes it, nearly always; looks now and then do, or a busy socket would keep us busy.
        self.due = max(time.monotonic(), self._looked + _EAGER_LOOK) if self._current.snapshot.idle else 0.0

    def _ignore_listener(self) -> None:
        if self._is_watching:
            self._loop.ignore(self._listener.fileno())
            self._is_watching = False

    # -- refusing

    def _refuse_or_not(self) -> None:
        failures = self._current.failures
        is_up = any(generation.is_up for generation in self._all)
        is_broken = failures.is_broken and not is_up and self._phase < Phase.FINISHING
        self.counters.trouble = failures.reason if failures.is_broken else ""
        if is_broken and not self._refuser:
            reason = f"the pool {self.config.name} cannot start: {failures.reason}\n"
            try:
                self._refuser = start_helper(refuser(reason), self._listener.fileno(), "fcgi_pool")
            except OSError as error:
                self._log.write("error", f"nobody can be told: {error.strerror}", self.config.name)
        elif self._refuser and not is_broken:
            signal_group(self._refuser, signal.SIGTERM)

    # -- the status page

    def _open_status(self) -> None:
        if self.sockets.status:
            self._status = StatusServer(self.sockets.status, self._answer)
            self._loop.watch(self._status.fileno(), self._status.serve)

    def _close_status(self) -> None:
        if self._status and self.sockets.status:
            self._loop.ignore(self._status.fileno())
            self._status.close()
            self.sockets.unlink(self.sockets.status)
            self.sockets.status.close()
            self._status = None

    def give_status(self) -> socket.socket | None:
        """Let another pool answer at the status socket."""
        status = self.sockets.status
        if self._status and status:
            self._loop.ignore(self._status.fileno())
            self._status.close()
            self._status = None
        self.sockets = Sockets(self._listener, None, self.sockets.lent)
        return status

    def take_status(self, status: socket.socket | None) -> None:
        """Answer at the status socket that was given away."""
        self.sockets = Sockets(self._listener, status, self.sockets.lent)
        self._open_status()

    def _answer(self, variables: Mapping[str, str]) -> bytes:
        return respond(self.config, variables, self._page)

    def _page(self, query: str) -> Page:
        now = time.monotonic()
        if now - self._looked >= _EAGER_LOOK:
            self._looked = now
            for generation in self._all:
                generation.look(now)
            self.counters.note(self.snapshot)
        return render(query, self.config, self.snapshot, self.counters, now)

    def reopen(self) -> None:
        """Open the slow log again, after it was moved away; raise OSError."""
        for generation in self._all:
            generation.reopen()

    # -- reloading and ending

    def reload(self, prepared: Prepared, now: float) -> None:
        """Start workers of a new configuration; the old ones end when the new ones serve. Raises OSError."""
        if self._next:
            self._discard(self._next, now)
        config = prepared.config
        if prepared.sockets.status is not self.sockets.status:
            self._close_status()
            self.sockets = prepared.sockets
            self._open_status()
        self._phase = Phase.RELOADING
        self._next = Generation(prepared, self._loop, self._log, self.counters, self._told)
        self._next.begin_with(min(max(config.first, self._current.snapshot.busy), config.max_children), now)
        self.due = 0.0

    def _try_next(self, coming: Generation, now: float) -> None:
        coming.step(now)
        if coming.failures.is_broken and not coming.is_up and self._current.is_up:
            reason = coming.failures.reason
            self._log.write("error", f"not reloaded, the old workers go on: {reason}", self.config.name)
            self._discard(coming, now)
            self._next = None
            self._phase = Phase.NORMAL
        elif coming.failures.is_broken or (not coming.booting and (coming.is_up or not coming.wanted)):
            old = self._current
            self._current, self._next, self.config = coming, None, coming.config
            old.descend(Ladder.graceful(now, old.config.process_control_timeout))
            self._old.append(old)
            self._phase = Phase.NORMAL
            self._log.write("notice", "reloaded", self.config.name)

    def _discard(self, generation: Generation, now: float) -> None:
        generation.descend(Ladder.graceful(now, generation.config.process_control_timeout))
        self._old.append(generation)
        self._next = None

    def ask(self, phase: Phase, rung: Rung, now: float) -> None:
        """Finish (what has begun, and who waits), or terminate on `rung`."""
        if phase is Phase.FINISHING and self._phase < Phase.FINISHING:
            self._withdraw()
            self._finish_by = now + self.config.process_control_timeout
        elif phase is Phase.TERMINATING:
            if self._phase < Phase.FINISHING:
                self._withdraw()
            for generation in self._all:
                ladder = generation.ladder or Ladder.fast(now)
                generation.descend(ladder.hurried(now, rung))
        self._phase = max(self._phase, phase)
        self.due = 0.0

    def _withdraw(self) -> None:
        """Let nobody new come."""
        self._ignore_listener()
        if file_of(self._listener) == self._file:
            self.sockets.unlink(self._listener)
        if self.sockets.status:
            self.sockets.unlink(self.sockets.status)
        if self._next:
            self._discard(self._next, time.monotonic())

    def _finish(self, now: float) -> None:
        """Begin to end the workers, once nobody waits whom they could serve."""
        current = self._current
        # At a TCP port there is no end of new ones.
        can_serve = self._listener.family == socket.AF_UNIX and not current.failures.is_broken
        # Where a lent socket still has its file, it is another manager's by now, and so are those who wait.
        if can_serve and self._listener in self.sockets.lent:
            can_serve = file_of(self._listener) != self._file
        if not (can_serve and current.snapshot.queue and now < self._finish_by):
            timeout = max(0.0, self._finish_by - now)
            current.descend(Ladder.graceful(now, timeout))

    def reaped(self, pid: int, status: int, now: float) -> bool:
        """Take note that a process has ended with `status`; return whether it was one of this pool."""
        if pid == self._refuser:
            self._refuser = 0
            self.due = 0.0
            return True
        for generation in self._all:
            if pid in generation.workers:
                end = generation.ended(pid, status, now)
                if end is End.CRASH:
                    self._crashed(now)
                self.due = 0.0
                return True
        return False

    def _crashed(self, now: float) -> None:
        """Start all anew if too many crash: what they share may be spoilt (php-fpm's emergency restart)."""
        config = self.config
        if not config.emergency_restart_threshold:
            return
        self._crashes.append(now)
        while self._crashes[0] < now - config.emergency_restart_interval:
            self._crashes.popleft()
        if len(self._crashes) >= config.emergency_restart_threshold and self._phase is Phase.NORMAL:
            count = len(self._crashes)
            self._log.write("alert", f"{count} workers have crashed: all are started anew", config.name)
            self._crashes.clear()
            self.reload(self._current.prepared, now)

    def close(self) -> None:
        """Give the descriptors back; all processes have ended."""
        self._ignore_listener()
        for generation in self._all:
            generation.close()
        self._close_status()
        self._listener.close()


def reap_one() -> tuple[int, int] | None:
    """Reap a child that has ended; return its pid and wait status, None if there is none.

    What is left of its process group ends with it: until it is reaped, the group's number cannot be another's.
    """
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if found is None:
        return None
    signal_group(found.si_pid, signal.SIGKILL)
    return os.waitpid(found.si_pid, 0)
