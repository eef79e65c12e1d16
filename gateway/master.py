"""The master: owns the listening sockets, keeps generations of workers alive, and sees no request.

Signals are nginx's: TERM and INT stop fast, QUIT drains, HUP reloads, USR1 reopens logs, USR2 upgrades.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable

from fcgi_pool.lifecycle import Rung
from gateway import control_words
from gateway.confinement.confines import leave_cgroups, with_cgroup
from gateway.error_log import ErrorLog
from gateway.generation import Generation
from gateway.listeners import Listener
from gateway.managers import GENERATIONS, Managers
from gateway.parent import Parent
from gateway.pool_listeners import PoolListeners
from gateway.prepare import Prepared, prepare
from gateway.privileges import as_root, own_logs
from gateway.settings import Settings
from gateway.succession import Succession
from gateway.systemd import Notifier
from gateway.upgrade import Predecessor, Successor
from gateway.usage import UsageError

# A worker that is told to drain accepts no more within milliseconds; one that is stuck is not waited for, in seconds.
_CLOSING = 1.0


class Master:
    """Runs one server from its start to its stop.

    `reread`: returns the settings as they are now, for a reload; raises ValueError or OSError. `sockets`: the directory
    that pools listen in. `predecessor`: whose place this program takes. `notifier`: whom to tell.
    """

    def __init__(
        self,
        prepared: Prepared,
        reread: Callable[[], Settings],
        sockets: str,
        predecessor: Predecessor,
        notifier: Notifier,
    ) -> None:
        self._served = prepared
        self._reread = reread
        self._predecessor = predecessor
        self._notifier = notifier
        self._log = ErrorLog(prepared.settings.error_log)
        self._parent = Parent(self._log)
        self._parent.listeners = self._all_listeners
        inherited = PoolListeners(predecessor.pool_listeners, lambda: predecessor.is_there)
        self._managers = Managers(self._parent, sockets, inherited)
        self._current: Generation | None = None
        self._leaving: list[Generation] = []
        self._succession: Succession | None = None
        self._successor: Successor | None = None
        # Until the old workers accept no more, or for a moment: then what was reloaded holds for every new connection.
        self._closing: Generation | None = None
        self._closing_until = 0.0
        self._wants: set[str] = set()  # "reload", "upgrade": asked for, and not begun
        self._stopping = ""  # "", "drain" or "stop"
        self._terminals = [number for number in range(3) if os.isatty(number)]
        self._status = 0

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        self._parent.catch_signals(self._take_signal)
        if not self._predecessor.is_there:
            self._write_pid()
        self._begin(self._served, is_first=True)
        while not self._is_over:
            self._parent.wait(self._due)
            self._reap()
            self._act(time.monotonic())
        self._served.pid_file.remove()
        if with_cgroup(self._served.settings.confinements):
            leave_cgroups()
        self._parent.ignore_signals()
        self._log.say("stopped")
        return self._status

    def _write_pid(self) -> None:
        """Have the pid in its file before anything is started; raise UsageError."""
        pid_file = self._served.pid_file
        try:
            pid_file.write()
        except OSError as error:
            self._served.undo()
            name = self._served.settings.named("--pid-file")
            raise UsageError(f"{name} {pid_file.path}: {error.strerror}; make room, or name another") from None

    @property
    def _generations(self) -> list[Generation]:
        coming = self._succession.generation if self._succession else None
        return [generation for generation in (*self._leaving, self._current, coming) if generation]

    def _all_listeners(self) -> list[socket.socket]:
        found = [*self._served.listeners, *(self._predecessor.listeners if self._predecessor.is_there else ())]
        if self._succession:
            found += self._succession.prepared.listeners
        found += self._managers.listeners.all
        return [listener.socket for listener in found]

    @property
    def _is_over(self) -> bool:
        is_alone = self._successor is None or not self._successor.pid or self._successor.is_ready
        return bool(self._stopping) and not self._generations and self._managers.is_empty and is_alone

    @property
    def _due(self) -> float:
        dues = [self._managers.due, self._notifier.due, *(generation.due for generation in self._generations)]
        if self._succession:
            dues.append(self._succession.due)
        if self._successor:
            dues.append(self._successor.due)
        if self._closing:
            dues.append(self._closing_until)
        return min(dues)

    def _act(self, now: float) -> None:
        """Do what is due, or possible by now."""
        for generation in self._generations:
            generation.act(now)
        self._managers.act(now)
        self._notifier.act(now)
        if self._succession:
            self._advance(self._succession, now)
        if self._closing and (self._closing.has_closed or now >= self._closing_until):
            self._closing = None
            self._say_ready("reloaded")
        if self._successor:
            self._successor.act(now)
            if self._successor.is_ready and not self._stopping:
                self._hand_over(self._successor.pid)
        for generation in [*self._leaving]:
            if generation.has_gone:
                self._leaving.remove(generation)
                generation.close()
                self._managers.release(generation.pools)
        self._do_what_is_wanted()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status):
                for generation in self._generations:
                    generation.stopped(pid)
                continue
            if self._successor and self._successor.reaped(pid, status):
                if not self._successor.is_ready:
                    self._successor = None
                    self._tell_ready("the upgrade failed; serving")
            elif not self._managers.reaped(pid, status):
                for generation in self._generations:
                    if generation.reaped(pid, status):
                        break

    # -- signals

    def _take_signal(self, number: int) -> None:
        if number == signal.SIGHUP and self._has_lost_its_terminal:
            number = signal.SIGTERM
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGQUIT:
            self._drain()
        elif number == signal.SIGUSR1:
            self._log.reopen()
            own_logs(self._served.settings)
            for generation in self._generations:
                generation.tell_workers(control_words.REOPEN)
        elif number in (signal.SIGHUP, signal.SIGUSR2):
            self._want("reload" if number == signal.SIGHUP else "upgrade")

    @property
    def _has_lost_its_terminal(self) -> bool:
        """Whether HUP means that the terminal was closed, from which this program was started, and nothing else."""
        return bool(self._terminals) and not any(map(os.isatty, self._terminals))

    def _want(self, what: str) -> None:
        if self._stopping:
            self._log.notice(f"no {what}: the server stops")
            return
        self._wants.add(what)
        if what == "reload":
            self._notifier.reloading()
            if len(self._generations) >= GENERATIONS:
                self._log.notice("the reload waits for the processes of an earlier one to end")

    def _do_what_is_wanted(self) -> None:
        """Begin what was asked for, one after the other."""
        if not self._wants or self._stopping or self._succession or self._successor or self._closing:
            return
        if "upgrade" in self._wants:
            # The new program reads the configuration anyway; should it fail, a reload that was asked for follows.
            self._wants.remove("upgrade")
            self._upgrade()
        elif len(self._generations) < GENERATIONS:
            self._wants.remove("reload")
            self._reload()

    # -- from one generation to the next

    def _reload(self) -> None:
        try:
            settings = self._reread()
            prepared = prepare(settings, self._served.listeners, self._served.credentials)
        except (ValueError, OSError) as error:
            self._not_reloaded(str(error))
        except Exception:
            self._log.error(f"unexpected, please report: {traceback.format_exc()}")
            self._not_reloaded("the configuration could not be read")
        else:
            self._begin(prepared, is_first=False)

    def _begin(self, prepared: Prepared, is_first: bool) -> None:
        before = self._current.tokens if self._current else {}
        try:
            self._succession = Succession(self._parent, prepared, self._managers, before, is_first)
        except (ValueError, OSError) as error:
            self._not_begun(prepared, is_first, str(error))
        else:
            # Where all its pools are there, nothing else would tell that it can go on.
            self._advance(self._succession, time.monotonic())

    def _advance(self, succession: Succession, now: float) -> None:
        try:
            if succession.advance(now):
                self._succession = None
                self._switch(succession)
        except (ValueError, OSError) as error:
            self._give_up(succession)
            self._not_begun(succession.prepared, succession.is_first, str(error))

    def _give_up(self, succession: Succession) -> None:
        self._succession = None
        generation = succession.give_up()
        if generation:
            self._leaving.append(generation)

    def _not_begun(self, prepared: Prepared, is_first: bool, why: str) -> None:
        if is_first:
            self._log.say(f"{why}; nothing is served")
            self._status = 1
            self._stop()
        else:
            prepared.undo(keep=self._served.listeners)
            self._not_reloaded(why)

    def _not_reloaded(self, why: str) -> None:
        self._log.error(f"not reloaded, all stays as it was: {why}")
        self._tell_ready(f"not reloaded: {why}")

    def _switch(self, succession: Succession) -> None:
        """The new generation serves: let the old one go."""
        old, new = self._served, succession.prepared
        before, self._current = self._current, succession.generation
        self._served = new
        self._take_files(old, new, succession.is_first)
        if before:
            for listener in old.listeners:
                if listener not in new.listeners:
                    self._log.say(f"no longer listening on {old.url(listener)}")
                    listener.close()
            before.drain()
            self._leaving.append(before)
            self._closing, self._closing_until = before, time.monotonic() + _CLOSING
        # One that is kept may speak TLS from now on, or no longer.
        known = [] if succession.is_first else [one for one in old.listeners if one in new.listeners]
        self._announce([one for one in new.listeners if one not in known or old.url(one) != new.url(one)])
        if warning := as_root(new.settings):
            self._log.warning(warning)
        if succession.is_first:
            self._say_ready("ready")
            self._predecessor.relieve(new.listeners)
        if succession.generation:
            self._managers.supersede(succession.generation.pools)

    def _say_ready(self, word: str) -> None:
        count = self._served.settings.workers
        self._log.say(f"{word}, {count} worker{'s' if count > 1 else ''}, pid {os.getpid()}")
        self._tell_ready("serving")

    def _take_files(self, old: Prepared, new: Prepared, is_first: bool) -> None:
        """Have the pid and the log in the files of the new settings."""
        try:
            new.pid_file.write()
        except OSError as error:
            self._log.error(f"pid file {new.pid_file.path}: {error.strerror}")
        if is_first:
            return
        if old.pid_file.path != new.pid_file.path:
            old.pid_file.remove()
        if old.settings.error_log != new.settings.error_log:
            self._log.move(new.settings.error_log)

    def _announce(self, listeners: list[Listener]) -> None:
        for listener in listeners:
            self._log.say(f"listening on {self._served.url(listener)}")

    def _tell_ready(self, status: str) -> None:
        if self._current and not self._stopping:
            self._notifier.ready(status)

    # -- upgrade

    def _upgrade(self) -> None:
        try:
            self._successor = Successor(
                self._parent, self._served.listeners, self._managers.listeners.all, self._notifier
            )
        except OSError as error:
            self._log.error(f"upgrade failed: {error.strerror}; this program goes on")
            return
        self._log.notice(f"upgrade: the new program is started, pid {self._successor.pid}")

    def _hand_over(self, pid: int) -> None:
        """The new program serves: let this one go. What listens and the pid file are the new one's by now."""
        self._log.notice(f"upgrade: pid {pid} serves; pid {os.getpid()} ends what is under way, and leaves")
        self._notifier.hand_over(pid)
        for listener in self._served.listeners:
            listener.leave()
        self._served.listeners.clear()
        self._managers.hand_over()
        self._drain()

    # -- the end

    def _drain(self) -> None:
        if self._stopping:
            return
        self._stopping = "drain"
        self._managers.end_by(time.monotonic() + self._served.settings.timeouts.stop)
        self._end_all(Generation.drain, "draining")

    def _stop(self) -> None:
        if self._stopping == "stop":
            for generation in self._generations:
                generation.kill()
            self._managers.stop(Rung.KILL)
            return
        self._stopping = "stop"
        self._end_all(Generation.stop, "stopping")
        self._managers.stop(Rung.TERM)

    def _end_all(self, end: Callable[[Generation], None], status: str) -> None:
        self._notifier.stopping(status)
        self._closing = None
        if self._succession:
            self._succession.prepared.undo(keep=self._served.listeners)
            self._give_up(self._succession)
        if self._successor and not self._successor.is_ready:
            self._successor.end()
        # Workers hold copies; nobody is accepted any more once they have closed theirs, too.
        for listener in self._served.listeners:
            if self._predecessor.needs(listener):
                listener.leave()
            else:
                listener.close()
        self._served.listeners.clear()
        if self._current:
            self._leaving.append(self._current)
            self._current = None
        for generation in self._leaving:
            end(generation)
