"""The managers of the server's pools, kept alive from generation to generation for as long as one of them needs them.

A pool that a reload leaves unchanged stays, with its processes. One that is changed is another pool: it listens at an
address of its own before the first request is sent there, and the old one ends when the last worker that knows it has.
Where the configuration says the address, both listen on one socket, and the old one ends as soon as the new one serves.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fcgi_pool.config import ConfigError
from fcgi_pool.lifecycle import Ladder, Rung
from fcgi_pool.listener import Address
from fcgi_pool.told import Board
from gateway.fastcgi.tokens import Tokens
from gateway.listeners import Listener
from gateway.parent import Child, Parent
from gateway.pool_listeners import PoolListeners
from gateway.pools import become_manager, config_of
from gateway.settings import FastCgiServer, Pool, Settings

# Generations that there can be at once: one that serves or starts, and those that drain. The next waits for the oldest
# of them to end, which --stop-timeout bounds.
GENERATIONS = 3
_SIGNALS = {Rung.QUIT: signal.SIGQUIT, Rung.TERM: signal.SIGTERM, Rung.KILL: signal.SIGKILL}


class NotStarted(ValueError):
    """What was to be served cannot be; the text says why."""


@dataclass(slots=True, eq=False)
class Managed:
    """A pool, what it needs of the master, and its manager over all its lives."""

    pool: Pool
    server: FastCgiServer  # where it listens in fact
    lent: dict[str, Listener]  # its sockets at addresses of its own, by the option that takes each
    workers: int  # front workers of each generation, for which there are places
    child: Child
    board: Board
    users: int = 0  # generations
    listens: bool = False
    has_failed: bool = False
    report: socket.socket | None = None  # of the manager that starts: whether it listens
    ladder: Ladder | None = None  # it is to end
    tokens: Tokens | None = None


class Managers:
    """All pools. `sockets`: the directory for those without an address of their own; `listeners`: of those with one."""

    def __init__(self, parent: Parent, sockets: str, listeners: PoolListeners) -> None:
        self.listeners = listeners
        self._parent = parent
        self._sockets = sockets
        self._all: list[Managed] = []
        self._made = 0
        self._graceful = 0.0
        self._end_by = float("inf")

    # -- who needs which

    def hire(self, settings: Settings) -> list[Managed]:
        """Return the pools that `settings` need: those that are there, the others started. Raise NotStarted.

        Each is to be released.
        """
        self._graceful = settings.timeouts.stop
        hired: list[Managed] = []
        try:
            for pool in settings.pools:
                managed = self._find(pool, settings.workers) or self._make(pool, settings.workers)
                managed.users += 1
                hired.append(managed)
        except (NotStarted, OSError):
            self.release(hired)
            raise
        return hired

    def release(self, pools: Iterable[Managed]) -> None:
        """A generation needs pools no longer; those that nobody needs end."""
        for managed in pools:
            managed.users -= 1
            if not managed.users and not managed.ladder:
                now = time.monotonic()
                self._set(managed, Ladder.graceful(now, min(self._graceful, max(self._end_by - now, 1.0))))
        self._drop_ended()

    def _find(self, pool: Pool, workers: int) -> Managed | None:
        for managed in self._all:
            if managed.pool == pool and managed.workers == workers and not managed.ladder:
                return managed
        return None

    def _make(self, pool: Pool, workers: int) -> Managed:
        server = pool.server
        number, self._made = self._made, self._made + 1
        lent = self._lend(pool)
        if "--listen-fd" not in lent and any(managed.server.address == server.address for managed in self._all):
            # A short name: what is longer than the one before might be too long for a socket (unix(7)).
            server = replace(server, address=Address(path=os.path.join(self._sockets, f"{number}.sock")))
        board = Board(GENERATIONS * workers, server.connections)
        managed = Managed(pool, server, lent, workers, Child("pool", number, label=server.name), board)
        try:
            self._parent.start(managed.child, lambda _: self._begin(managed))
        except OSError:
            board.close()
            self._close_unused()
            raise
        self._all.append(managed)
        return managed

    def _lend(self, pool: Pool) -> dict[str, Listener]:
        """Return the sockets at addresses that the configuration says; raise NotStarted."""
        path = pool.server.address.path
        keys = {"--status-fd": "status_listen"}
        if not path or not self._sockets or os.path.dirname(path) != self._sockets:
            keys["--listen-fd"] = "listen"
        try:
            config = config_of(pool)
            managers = [managed.child.pid for managed in self._all if managed.child.pid]
            lent = {option: self.listeners.lend(config, key, managers) for option, key in keys.items()}
        except ConfigError as error:
            self._close_unused()
            raise NotStarted(str(error)) from None
        return {option: listener for option, listener in lent.items() if listener}

    def supersede(self, pools: Iterable[Managed]) -> None:
        """`pools` serve: those that they share a socket with end, and leave who waits there to them."""
        pools = list(pools)
        shared = [listener for managed in pools for listener in managed.lent.values()]
        for managed in self._all:
            if managed not in pools and not managed.ladder and any(one in shared for one in managed.lent.values()):
                self._set(managed, Ladder.graceful(time.monotonic(), self._graceful))
        self._close_unused()

    def hand_over(self) -> None:
        """A successor has pools of its own, on the same sockets: those here that share them end."""
        self.listeners.leave()
        for managed in self._all:
            if managed.lent and not managed.ladder:
                self._set(managed, Ladder.graceful(time.monotonic(), self._graceful))

    def _close_unused(self) -> None:
        self.listeners.close(self.listeners.unused(one for managed in self._all for one in managed.lent.values()))

    # -- their lives

    def _lend_again(self, managed: Managed) -> None:
        """Have a pool listen where it is reached, if the file of a socket was removed meanwhile; raise OSError."""
        try:
            managed.lent = self._lend(managed.pool)
        except NotStarted as error:
            raise OSError(errno.EADDRINUSE, str(error)) from None
        self._close_unused()

    def _begin(self, managed: Managed) -> None:
        if not all(map(self.listeners.has_file, managed.lent.values())):
            self._lend_again(managed)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        lent = {option: listener.socket.fileno() for option, listener in managed.lent.items()}
        told = managed.board.fileno()
        pool = replace(managed.pool, server=managed.server)
        managed.listens = managed.has_failed = False
        try:
            managed.child.pid = self._parent.fork(
                lambda: become_manager(pool, theirs.fileno(), told, lent),
                [listener.socket for listener in managed.lent.values()],
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        managed.report = ours
        self._parent.watch(ours, lambda: self._take_report(managed))

    def _take_report(self, managed: Managed) -> None:
        report, managed.report = managed.report, None
        assert report
        try:
            managed.listens = bool(report.recv(64))
        except OSError:
            managed.listens = False
        self._parent.drop(report)
        managed.has_failed = not managed.listens
        if managed.listens:
            managed.child.was_ready = True
            pool = managed.pool
            self._parent.log.say(f"{managed.child.name}: {pool.server.connections} × {pool.program}")

    def reaped(self, pid: int, status: int) -> bool:
        """Take the end of a process; return whether it was a manager."""
        for managed in self._all:
            child = managed.child
            if child.pid == pid:
                child.pid = 0
                if managed.report:
                    self._take_report(managed)
                managed.listens = False
                # One that has never listened is given up by those who wait for it.
                if not managed.ladder and child.was_ready:
                    self._parent.replace_later(child, pid, status)
                self._drop_ended()
                return True
        return False

    @property
    def due(self) -> float:
        """When something has to be done, `time.monotonic()` seconds."""
        moments = [managed.ladder.deadline for managed in self._all if managed.ladder]
        moments += [managed.child.restart_at for managed in self._all if managed.child.restart_at]
        return min(moments, default=float("inf"))

    def act(self, now: float) -> None:
        """Do what is due."""
        for managed in self._all:
            child = managed.child
            if managed.ladder:
                if managed.ladder.climb(now) is not managed.ladder:
                    self._set(managed, managed.ladder.climb(now))
            elif child.restart_at and now >= child.restart_at:
                self._parent.start(child, lambda _, managed=managed: self._begin(managed))  # type: ignore[misc]

    # -- their end

    def _set(self, managed: Managed, ladder: Ladder) -> None:
        managed.ladder = ladder
        managed.child.restart_at = 0.0
        # Before it learns: whether there is still a file tells it whether others serve those who wait.
        going = [one for other in self._all if not other.ladder for one in other.lent.values()]
        self.listeners.withdraw(one for one in managed.lent.values() if one not in going)
        managed.child.signal(_SIGNALS[ladder.rung])

    def end_by(self, moment: float) -> None:
        """Whoever is released from now on has ended by then."""
        self._end_by = moment

    def stop(self, rung: Rung) -> None:
        """End all now."""
        now = time.monotonic()
        for managed in self._all:
            ladder = managed.ladder.hurried(now, rung) if managed.ladder else Ladder.fast(now).hurried(now, rung)
            self._set(managed, ladder)
        self._drop_ended()

    def _drop_ended(self) -> None:
        for managed in [managed for managed in self._all if managed.ladder and not managed.child.pid]:
            managed.board.close()
            self._all.remove(managed)
            self._close_unused()

    @property
    def is_empty(self) -> bool:
        """Whether no pool is left."""
        return not self._all
