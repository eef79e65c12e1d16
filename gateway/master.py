"""The master: owns the listening sockets, keeps workers and spawners alive, and sees no request.

Signals are nginx's: TERM and INT stop fast, QUIT drains, USR1 reopens logs. A handler only leaves a byte in a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shlex
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from fcgi_pool.listener import unlink_socket
from fcgi_pool.told import Board
from gateway import worker as front
from gateway.cgi.process import signal_group
from gateway.cgi.roll import Roll
from gateway.cgi.spawner import Spawner
from gateway.cgi.variables import mount_variables
from gateway.cgi.warm.keeper import WarmMount
from gateway.cgi.wire import channel
from gateway.clients.table import ClientShare, ClientTable
from gateway.diagnosis import exit_word
from gateway.error_log import ErrorLog
from gateway.fastcgi.tokens import Share, Tokens
from gateway.pools import become_manager, start_and_wait
from gateway.settings import CgiMount, Pool, Settings
from gateway.supervision import Restarts

# From TERM until what is left is killed, beyond the programs' own time, in seconds.
_STOP_GRACE = 2.0
# From a start that failed, for want of processes say, to the next try, in seconds.
_START_AGAIN = 1.0
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
    label: str = ""  # a pool's name

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"{self.kind} {self.label or self.number}"


class Master:
    """Runs one server from its start to its stop."""

    def __init__(self, settings: Settings, listeners: list[socket.socket], error_log: ErrorLog) -> None:
        self._settings = settings
        self._listeners = listeners
        self._log = error_log
        # Of each worker, and of its spawners while it lives.
        self._rolls = [Roll(settings.max_programs) for _ in range(settings.workers)]
        self._workers = [Child("worker", number + 1) for number in range(settings.workers)]
        self._spawners = [Child("spawner", number + 1) for number in range(settings.workers)]
        self._pools = [Child("pool", number, label=pool.server.name) for number, pool in enumerate(settings.pools)]
        self._boards = {pool.server: Board(settings.workers, pool.server.connections) for pool in settings.pools}
        self._tokens = {
            server: Tokens(server.connections, settings.workers, self._boards.get(server))
            for server in settings.fastcgi_servers
            if server.connections
        }
        clients = settings.clients
        self._clients = ClientTable(clients.addresses, settings.workers) if clients.are_counted else None
        self._selector = selectors.DefaultSelector()
        self._stopping = ""  # "", "drain" or "stop"
        self._stop_by = 0.0
        self._killed = False
        self._leaving: dict[int, Roll] = {}  # spawners whose worker died, while they end their programs
        self._pid = os.getpid()

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        self._catch_signals()
        for child in self._pools:
            if not self._start_pool(child):
                self._log.say(f"{child.name} did not start; nothing is served")
                return 1
            child.born = time.monotonic()
        for pair in zip(self._workers, self._spawners, strict=True):
            for child in pair:
                self._start(child)
        self._announce()
        self._selector.register(self._signals, selectors.EVENT_READ)
        while self._alive() or not self._stopping:
            if self._selector.select(self._until_next()):
                self._take_signals()
            self._act_on_time()
        for listener in self._listeners:
            unlink_socket(listener)
        self._log.say("stopped")
        return 0

    def _announce(self) -> None:
        scheme = "https" if self._settings.tls else "http"
        for listener in self._listeners:
            name = listener.getsockname()
            if isinstance(name, tuple):
                host = f"[{name[0]}]" if ":" in name[0] else name[0]
                self._log.say(f"listening on {scheme}://{host}:{name[1]}/")
            else:
                self._log.say(f"listening on unix:{name}")
        count = len(self._workers)
        self._log.say(f"ready, {count} worker{'s' if count > 1 else ''}, pid {os.getpid()}")

    # -- signals

    def _catch_signals(self) -> None:
        self._signals, self._wakeup = socket.socketpair()
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in _HANDLED:
            # nohup(1) ignores HUP, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _leave_a_mark)

    def _take_signals(self) -> None:
        for number in self._signals.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._stop()
            elif number == signal.SIGQUIT:
                self._drain()
            elif number == signal.SIGUSR1:
                self._log.reopen()
                self._tell_workers(front.REOPEN)
        self._reap()

    def _tell_workers(self, message: bytes) -> None:
        for child in self._workers:
            if child.control:
                with contextlib.suppress(OSError):
                    child.control.send(message)

    def _drain(self) -> None:
        if not self._stopping:
            self._stopping = "drain"
            self._stop_by = time.monotonic() + self._settings.timeouts.stop
            self._close_listeners()
            self._tell_workers(front.DRAIN)
            self._end_pools_if_alone()

    def _stop(self) -> None:
        if self._stopping == "stop":
            self._kill()
            return
        self._stopping = "stop"
        self._stop_by = time.monotonic() + self._settings.timeouts.kill + _STOP_GRACE
        self._close_listeners()
        self._tell_workers(front.STOP)
        for child in self._pools:
            _signal(child.pid, signal.SIGTERM)

    def _end_pools_if_alone(self) -> None:
        """Let the pools go once no worker needs them any more."""
        if not any(child.pid for child in self._workers):
            for child in self._pools:
                _signal(child.pid, signal.SIGQUIT)

    def _kill(self) -> None:
        """End everything now. A spawner, told by TERM, kills its programs first; one that does not is killed, too."""
        for child in self._workers + self._pools:
            _signal(child.pid, signal.SIGKILL)
        for pid in [*self._leaving, *(child.pid for child in self._spawners)]:
            _signal(pid, signal.SIGKILL if self._killed else signal.SIGTERM)
            _signal(pid, signal.SIGCONT)
        self._killed = True
        self._stop_by = time.monotonic() + _STOP_GRACE

    def _close_listeners(self) -> None:
        # Workers hold copies; nobody is accepted any more once they have closed theirs, too.
        for listener in self._listeners:
            unlink_socket(listener)
            listener.close()
        self._listeners = []

    # -- children

    @property
    def _children(self) -> list[Child]:
        return self._workers + self._spawners + self._pools

    def _alive(self) -> bool:
        return bool(self._leaving) or any(child.pid for child in self._children)

    def _until_next(self) -> float | None:
        moments = [child.restart_at for child in self._children if child.restart_at]
        if self._stopping:
            moments = [self._stop_by]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _act_on_time(self) -> None:
        now = time.monotonic()
        if self._stopping:
            if now >= self._stop_by:
                if self._stopping == "drain":
                    self._log.warning(f"not drained within {self._settings.timeouts.stop:g} s: stopping")
                    self._stop()
                else:
                    self._kill()
            return
        for child in self._children:
            if child.restart_at and now >= child.restart_at:
                self._start(child)

    def _reap(self) -> None:
        while self._alive():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid in self._leaving:
                _end_programs(self._leaving.pop(pid))
            for child in self._children:
                if child.pid == pid:
                    self._died(child, status)

    def _died(self, child: Child, status: int) -> None:
        now = time.monotonic()
        pid, child.pid = child.pid, 0
        if child.control:
            child.control.close()
            child.control = None
        if child.kind == "spawner":
            # It ends them itself unless it was killed.
            _end_programs(self._rolls[child.number - 1])
        if child.kind == "worker":
            for tokens in self._tokens.values():
                tokens.recover(child.number - 1)
            if self._clients:
                self._clients.recover(child.number - 1)
        if self._stopping:
            self._end_pools_if_alone()
            return
        worker_gone = child.kind == "spawner" and not self._workers[child.number - 1].pid
        if worker_gone:
            return  # it left because its worker did; it comes back with it
        delay = child.restarts.delay(now - child.born)
        again = f"in {delay:g} s" if delay else "at once"
        self._log.error(f"{child.name} (pid {pid}) died: {_end_in_words(status)}; it is replaced {again}")
        child.restart_at = now + delay

    def _start(self, child: Child) -> None:
        child.restart_at = 0.0
        try:
            start: dict[str, Callable[[Child], object]] = {
                "worker": self._start_worker,
                "spawner": self._start_spawner,
                "pool": self._start_pool,
            }
            start[child.kind](child)
        except OSError as error:
            if not child.born:
                raise
            self._log.error(f"{child.name} could not be started: {error.strerror}; tried again in {_START_AGAIN:g} s")
            child.restart_at = time.monotonic() + _START_AGAIN
            return
        child.born = time.monotonic()

    def _start_worker(self, child: Child) -> None:
        number = child.number - 1
        spawner = self._spawners[number]
        if spawner.pid:
            # It serves one worker in its life, and ends now. The new worker gets a new one, and a new roll.
            self._leaving[spawner.pid] = self._rolls[number]
            spawner.pid = 0
        roll = self._rolls[number] = Roll(self._settings.max_programs)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child.control = ours
        try:
            child.pid = self._fork(lambda: self._be_worker(number, theirs, roll))
        except OSError:
            child.control = None
            ours.close()
            raise
        finally:
            theirs.close()
        if spawner.born:
            self._start(spawner)

    def _start_spawner(self, child: Child) -> None:
        number = child.number - 1
        roll = self._rolls[number]
        to_worker, theirs = channel()
        try:
            child.pid = self._fork(lambda: self._be_spawner(theirs, to_worker, roll))
            control = self._workers[number].control
            if control:
                with contextlib.suppress(OSError):
                    socket.send_fds(control, [front.SPAWNER], [to_worker.fileno()])
        finally:
            theirs.close()
            to_worker.close()

    def _start_pool(self, child: Child) -> bool:
        """Start the manager of a pool; return whether it listens."""
        pool = self._settings.pools[child.number]
        child.pid, listens = start_and_wait(lambda ready: self._fork(lambda: self._be_pool(pool, ready)))
        if listens:
            self._log.say(f"{child.name}: {pool.server.connections} × {shlex.join(pool.command)}")
        return listens

    def _fork(self, serve: Callable[[], None]) -> int:
        """Return the pid of a child that runs `serve` and nothing else."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._forget()
            serve()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(status)

    def _forget(self) -> None:
        """In a new child: give up what is the master's, so that its end is seen by those who wait for it."""
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        self._log.close()
        self._selector.close()
        self._signals.close()
        self._wakeup.close()
        for child in self._workers:
            if child.control:
                child.control.close()

    def _be_worker(self, number: int, control: socket.socket, roll: Roll) -> None:
        _die_with_parent(self._pid)
        shares = {server: Share(tokens, number) for server, tokens in self._tokens.items()}
        counted = ClientShare(self._clients, number) if self._clients else None
        front.run_worker(self._settings, self._listeners, control, roll, shares, counted)

    def _be_pool(self, pool: Pool, ready: int) -> None:
        for listener in self._listeners:
            listener.close()
        become_manager(pool, ready, self._boards[pool.server].fileno())

    def _be_spawner(self, to_worker: socket.socket, worker_end: socket.socket, roll: Roll) -> None:
        # While anybody but the worker holds the worker's end, its death would not be seen.
        worker_end.close()
        for listener in self._listeners:
            listener.close()
        Spawner(to_worker, roll, self._settings.timeouts.kill, _warm_mounts(self._settings)).run()


def _warm_mounts(settings: Settings) -> dict[int, WarmMount]:
    return {
        number: WarmMount(
            mount_variables(os.fsencode(mount.directory), mount.env), mount.warm == "require", mount.preload
        )
        for number, mount in enumerate(settings.mounts)
        if isinstance(mount, CgiMount) and mount.warm
    }


_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD)


def _leave_a_mark(_number: int, _frame: object) -> None:
    """Do nothing: the signal's number is in the wake-up socket already."""


def _signal(pid: int, number: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end_programs(roll: Roll) -> None:
    """Kill the programs that a dead spawner has left."""
    for pid in roll.clear():
        signal_group(pid, signal.SIGKILL)


def _end_in_words(status: int) -> str:
    word = exit_word(status)
    return f"killed by {word}" if os.WIFSIGNALED(status) else f"exit status {word}"


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, even if it is stopped or stuck (prctl(2))."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before it was asked


def _leave(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
