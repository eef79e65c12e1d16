"""The master as a parent: how it forks, what it waits for, and what a new child gives up of that.

What the master alone has, its ends of channels above all, must be nobody else's: the end of a channel is how the others
learn of a death. So whatever it waits for is watched here, and closed in each child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from fcgi_pool.loop import Loop
from gateway.diagnosis import exit_word
from gateway.error_log import ErrorLog
from gateway.supervision import Restarts

HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)  # fmt: skip
# From a start that failed, for want of processes say, to the next try, in seconds.
_START_AGAIN = 1.0
# The longest sleep, in seconds: the clocks of the kernel's calls are finite.
_LONGEST = 3600.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """One place in the tree: a worker, a spawner or the manager of a pool, over all its lives.

    `pid` is 0 between two lives.
    """

    kind: str
    number: int
    pid: int = 0
    born: float = 0.0
    restart_at: float = 0.0
    restarts: Restarts = field(default_factory=Restarts)
    control: socket.socket | None = None  # to a worker
    was_ready: bool = False
    has_closed: bool = False  # a worker that drains: it accepts no more
    label: str = ""  # a pool's name, or which of a worker's spawners
    part: int = 0  # of a worker's spawners, which
    whose: str = ""  # as whom it runs, if not as all others

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"{self.kind} {self.label or self.number}{f' of {self.whose}' if self.whose else ''}"

    def signal(self, number: int) -> None:
        """Send it a signal if it lives."""
        send_signal(self.pid, number)


class Parent:
    """What all who start children of the master share: its log, its loop, and the fork."""

    def __init__(self, log: ErrorLog) -> None:
        self.log = log
        self._loop = Loop()
        self._watched: dict[int, socket.socket] = {}
        self.pid = os.getpid()
        self._ignored = {number for number in HANDLED if signal.getsignal(number) is signal.SIG_IGN}
        self._signals, self._wakeup = socket.socketpair()
        # Returns all listeners that the master has, of which a child keeps its own.
        self.listeners: Callable[[], Iterable[socket.socket]] = tuple

    # -- waiting

    def watch(self, watched: socket.socket, ready: Callable[[], None]) -> None:
        """Call `ready` whenever a socket, which is the master's alone, is readable."""
        self._watched[watched.fileno()] = watched
        self._loop.watch(watched.fileno(), ready)

    def drop(self, watched: socket.socket) -> None:
        """Watch a socket no longer, and close it."""
        self._loop.ignore(watched.fileno())
        del self._watched[watched.fileno()]
        watched.close()

    def wait(self, until: float) -> None:
        """Wait until a moment, `time.monotonic()` seconds, or for what is watched, and call back."""
        self._loop.wait(min(until - time.monotonic(), _LONGEST))

    def catch_signals(self, take: Callable[[int], None]) -> None:
        """Call `take` with the number of each signal, from the loop. A handler only leaves a byte in a socket."""
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            # nohup(1) ignores HUP, and means it.
            if number not in self._ignored or number != signal.SIGHUP:
                signal.signal(number, _leave_a_mark)

        def take_all() -> None:
            for number in self._signals.recv(4096):
                take(number)

        self.watch(self._signals, take_all)

    def ignore_signals(self) -> None:
        """Take none any more: what they would end has ended, and one that comes now must not change the exit status.

        A handler would be taken away by Python's own end, and not what is ignored.
        """
        for number in HANDLED:
            if number != signal.SIGCHLD:
                signal.signal(number, signal.SIG_IGN)

    # -- children

    def fork(self, serve: Callable[[], None], keeps: Sequence[socket.socket] = ()) -> int:
        """Return the pid of a child that runs `serve` alone, and has the listeners `keeps`; raise OSError."""
        # A signal for the child must not come while its handler is the master's: that tells the master.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if pid:
            return pid
        status = 1
        try:
            self._forget(keeps)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            serve()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(status)

    def _forget(self, keeps: Sequence[socket.socket]) -> None:
        """In a new child: give up what is the master's, so that its end is seen by those who wait for it."""
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            ignored = number == signal.SIGHUP and number in self._ignored
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        self.log.close()
        self._loop.close()
        self._wakeup.close()
        for watched in self._watched.values():
            watched.close()
        # One that a reload has removed would stay open, and clients would wait in its queue for ever.
        for listener in self.listeners():
            if listener not in keeps:
                listener.close()

    def die_with_me(self) -> None:
        """In a child: have the kernel kill it when the master dies, even if it is stopped or stuck (prctl(2))."""
        _set_death_signal(signal.SIGKILL)
        if os.getppid() != self.pid:
            os._exit(1)  # it died before it was asked

    def start(self, child: Child, begin: Callable[[Child], None]) -> None:
        """Begin a life of `child`; if that is not its first and fails, try again later. Raise OSError."""
        child.restart_at = 0.0
        try:
            begin(child)
        except OSError as error:
            if not child.born:
                raise
            self.log.error(f"{child.name} could not be started: {error.strerror}; tried again in {_START_AGAIN:g} s")
            child.restart_at = time.monotonic() + _START_AGAIN
            return
        child.born = time.monotonic()

    def replace_later(self, child: Child, pid: int, status: int) -> None:
        """A life of `child` has ended, as `pid`: log it, and say when the next begins."""
        now = time.monotonic()
        delay = child.restarts.delay(now - child.born)
        again = f"in {delay:g} s" if delay else "at once"
        self.log.error(f"{child.name} (pid {pid}) died: {end_in_words(status)}; it is replaced {again}")
        child.restart_at = now + delay


def outlive_parent() -> None:
    """Stay when the parent dies, though it was asked otherwise before (see `Parent.die_with_me`)."""
    _set_death_signal(0)


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that has not been reaped; pid 0 is none."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_in_words(status: int) -> str:
    """Return what a wait status says."""
    word = exit_word(status)
    return f"killed by {word}" if os.WIFSIGNALED(status) else f"exit status {word}"


def _leave_a_mark(_number: int, _frame: object) -> None:
    """Do nothing: the signal's number is in the wake-up socket already."""


def _set_death_signal(number: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _leave(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
