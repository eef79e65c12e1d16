"""One supervisor for all pools: waits, reaps, passes time on to each pool, and does what signals ask.

A signal handler only leaves a byte in a socket. The pools share the loop and nothing else: what goes wrong in one is
logged as its own and the others go on.
"""

from __future__ import annotations

import signal
import socket
import time
import traceback
from collections.abc import Callable

from fcgi_pool.config import ConfigError, ManagerConfig, PoolConfig
from fcgi_pool.lifecycle import Lifecycle, Phase
from fcgi_pool.log import Log
from fcgi_pool.loop import Loop
from fcgi_pool.pool import LOOK, Pool, reap_one
from fcgi_pool.prepare import Prepared, Sockets, prepare
from fcgi_pool.told import Reader

# php-fpm's, and HUP, since a terminal that is closed is no reason to leave workers and sockets behind.
_PHASES = {
    signal.SIGQUIT: Phase.FINISHING,
    signal.SIGTERM: Phase.TERMINATING,
    signal.SIGINT: Phase.TERMINATING,
    signal.SIGHUP: Phase.TERMINATING,
}
_SIGNALS = (*_PHASES, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


# A socket whose file was removed is not made anew more often, in seconds.
_LISTEN_AGAIN = 1.0


class Manager:
    """Runs pools that were prepared.

    `reread`: returns the configuration as it is now, for a reload; raises ConfigError. `told`: reads what a web server
    says of its connections, to the one pool there is then.
    """

    def __init__(
        self, prepared: list[Prepared], log: Log, reread: Callable[[], ManagerConfig], told: Reader | None = None
    ) -> None:
        self._log = log
        self._told = told
        self._reread = reread
        self._signals = _catch_signals()
        self._loop = Loop()
        self._loop.watch(self._signals.fileno(), self._take_signals)
        self._lifecycle = Lifecycle()
        self._listen_again = float("-inf")
        self._pools: dict[str, Pool] = {}
        self._leaving: list[Pool] = []
        for entry in prepared:
            self._add(entry)

    def run(self) -> int:
        """Serve until told to end; return the exit status, 0."""
        while self._pools or self._leaving:
            self._loop.wait(self._until_due())
            self._reap()
            now = time.monotonic()
            for pool in [*self._pools.values(), *self._leaving]:
                if now >= pool.due:
                    self._guarded(pool, pool.tick, now)
                    if pool.has_lost_its_file and now >= self._listen_again:
                        self._listen_again = now + _LISTEN_AGAIN
                        self._guarded(pool, self._listen_anew, pool)
            self._drop_ended()
        # A signal that still comes has nobody to wake.
        signal.set_wakeup_fd(-1)
        self._signals.close()
        self._loop.close()
        self._log.write("notice", "ended")
        return 0

    def _until_due(self) -> float:
        pools = [*self._pools.values(), *self._leaving]
        return min((pool.due for pool in pools), default=0.0) - time.monotonic()

    def _guarded(self, pool: Pool, act: Callable[..., object], *arguments: object) -> None:
        """Do something for one pool; a fault there stays there."""
        try:
            act(*arguments)
        except ConfigError as error:
            self._log.write("error", str(error), pool.config.name)
        except OSError as error:
            self._log.write("error", f"{error.strerror}; tried again", pool.config.name)
            pool.due = time.monotonic() + LOOK
        except Exception:
            for line in traceback.format_exc().splitlines():
                self._log.write("error", f"unexpected, please report: {line}", pool.config.name)
            pool.due = time.monotonic() + LOOK

    def _reap(self) -> None:
        while (reaped := reap_one()) is not None:
            now = time.monotonic()
            for pool in [*self._pools.values(), *self._leaving]:
                if pool.reaped(*reaped, now):
                    break

    # -- pools come and go

    def _add(self, entry: Prepared) -> None:
        config = entry.config
        self._pools[config.name] = Pool(entry, self._loop, self._log, self._told)
        text = f"{config.pm}, {config.max_children} workers at most, on {config.listen}"
        self._log.write("notice", text, config.name)

    def _remove(self, name: str) -> None:
        pool = self._pools.pop(name)
        self._leaving.append(pool)
        pool.ask(Phase.FINISHING, self._lifecycle.rung, time.monotonic())

    def _listen_anew(self, lost: Pool) -> None:
        """Put a pool with a new socket in place of one that nobody reaches any more; raise ConfigError.

        A bound socket cannot be bound again, and workers have it for life; so they end after what they are at.
        """
        config = lost.config
        self._log.write("warning", f"the file of {config.listen} was removed: it is made anew", config.name)
        status = lost.give_status()
        try:
            entry = prepare(config, None, status, lost.sockets.lent)
        except ConfigError:
            lost.take_status(status)
            raise
        self._remove(config.name)
        self._add(entry)

    def _drop_ended(self) -> None:
        for name, pool in list(self._pools.items()):
            if pool.has_ended:
                pool.close()
                del self._pools[name]
        for pool in list(self._leaving):
            if pool.has_ended:
                pool.close()
                self._leaving.remove(pool)

    # -- signals

    def _take_signals(self) -> None:
        try:
            received = self._signals.recv(4096)
        except BlockingIOError:
            return
        for number in received:
            if number in _PHASES:
                self._end(signal.Signals(number))
            elif number == signal.SIGUSR1:
                self._log.reopen()
                for pool in self._pools.values():
                    self._guarded(pool, pool.reopen)
                self._log.write("notice", "logs reopened")
            elif number == signal.SIGUSR2 and not self._lifecycle.is_ending:
                self._reload()

    def _end(self, number: signal.Signals) -> None:
        self._lifecycle = self._lifecycle.ask(_PHASES[number])
        self._log.write("notice", f"{number.name}: {self._lifecycle.phase.name.lower()}")
        now = time.monotonic()
        for pool in [*self._pools.values(), *self._leaving]:
            self._guarded(pool, pool.ask, self._lifecycle.phase, self._lifecycle.rung, now)

    def _reload(self) -> None:
        """Take the configuration as it is now, if it has no mistake; else all stays as it is."""
        self._log.write("notice", "SIGUSR2: reloading")
        prepared: list[Prepared] = []
        try:
            config = self._reread()
            for pool in config.pools:
                prepared.append(self._prepare_anew(pool))  # noqa: PERF401 - those before a mistake are undone
            self._log.change(config.error_log, config.log_level)
        except (ConfigError, OSError) as error:
            for entry in prepared:
                entry.undo(self._sockets_of(entry.config))
            self._log.write("error", f"not reloaded, all stays as it was: {error}")
            return
        for name in self._pools.keys() - {entry.config.name for entry in prepared}:
            self._remove(name)
        for entry in prepared:
            there = self._pools.get(entry.config.name)
            if there and there.sockets.listener is entry.sockets.listener:
                self._guarded(there, there.reload, entry, time.monotonic())
                continue
            if there:
                # Another address: another pool, of the same name.
                self._remove(entry.config.name)
            self._add(entry)

    def _sockets_of(self, config: PoolConfig) -> Sockets | None:
        pool = self._pools.get(config.name)
        return pool.sockets if pool else None

    def _prepare_anew(self, config: PoolConfig) -> Prepared:
        """Prepare a pool, with the sockets that the present one has where the addresses are the same."""
        pool = self._pools.get(config.name)
        if not pool:
            return prepare(config)
        listener = pool.sockets.listener if pool.config.listen == config.listen else None
        has_status = listener and pool.config.status_listen == config.status_listen
        return prepare(config, listener, pool.sockets.status if has_status else None, pool.sockets.lent)


def _catch_signals() -> socket.socket:
    """Return a socket that tells signals, a byte each (signal.set_wakeup_fd)."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    # Kept for the life of the process: the wake-up descriptor is the signal handler's.
    _catch_signals.writing = writing  # type: ignore[attr-defined]
    for number in _SIGNALS:
        signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reading


def _do_nothing(_number: int, _frame: object) -> None:
    pass
