"""The workers and spawners of one reading of the settings: they start together, serve, drain and end together.

A reload makes another generation; the one before drains beside it. What both need at the same time, listeners, pools
and the count of connections, is not a generation's but lent to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping

from gateway import control_words as words
from gateway import worker as front
from gateway.cgi.process import groups_at, signal_group
from gateway.cgi.roll import Roll
from gateway.cgi.wire import channel
from gateway.clients.table import ClientShare, ClientTable
from gateway.confinement.confines import Confines
from gateway.fastcgi.tokens import Share, Tokens
from gateway.managers import GENERATIONS, Managed
from gateway.parent import Child, Parent, end_in_words, send_signal
from gateway.settings import FastCgiServer, Settings
from gateway.spawning import be_spawner
from gateway.tls.share import TlsShare

# From TERM until what is left is killed, beyond the programs' own time, in seconds.
_STOP_GRACE = 2.0


class Generation:
    """The processes that serve `settings` on `listeners`, with the pools `pools`, and TLS where `tls` says.

    `before`: the tokens of the generation that these share the FastCGI servers with.
    """

    def __init__(
        self,
        parent: Parent,
        settings: Settings,
        listeners: list[socket.socket],
        pools: list[Managed],
        before: Mapping[FastCgiServer, Tokens],
        tls: TlsShare | None,
    ) -> None:
        self.settings = settings
        self._tls = tls
        self.pools = pools
        self.tokens = _tokens(settings, pools, before)
        self._parent = parent
        self._log = parent.log
        self._listeners = listeners
        self._actual = {managed.pool.server: managed.server for managed in pools}
        numbers = range(settings.workers)
        self._confines = Confines(settings.confinements, parent.log)
        self._workers = [Child("worker", number + 1) for number in numbers]
        # Of each worker, one for each confinement; and the roll of each, while the worker lives.
        self._spawners = [self._crew(number + 1) for number in numbers]
        self._rolls = [self._new_rolls() for _ in numbers]
        self._places = [{server: tokens.join() for server, tokens in self.tokens.items()} for _ in numbers]
        clients = settings.clients
        self._clients = ClientTable(clients.addresses, settings.workers) if settings.counts_clients else None
        # Spawners whose worker died, while they end their programs: their part, and their roll.
        self._leaving: dict[int, tuple[int, Roll]] = {}
        self._ending = ""  # "", "drain" or "stop"
        self._end_by = float("inf")
        self._killed = False
        self._trouble = ""

    def _crew(self, number: int) -> list[Child]:
        """Return the spawners of a worker, by the number of their confinement."""
        confinements = self.settings.confinements
        several = len(confinements) > 1
        return [
            Child("spawner", number, 0, label=f"{number}.{part + 1}", part=part, whose=confinement.who)
            if several
            else Child("spawner", number)
            for part, confinement in enumerate(confinements)
        ]

    def _new_rolls(self) -> list[Roll]:
        return [Roll(self.settings.max_programs) for _ in self.settings.confinements]

    def start(self) -> None:
        """Start all processes; raise OSError."""
        self._confines.prepare()
        for worker, spawners in zip(self._workers, self._spawners, strict=True):
            for child in (worker, *spawners):
                self._start(child)

    @property
    def is_ready(self) -> bool:
        """Whether all workers have come to the point of accepting connections."""
        return all(child.was_ready for child in self._workers)

    @property
    def has_closed(self) -> bool:
        """Whether no worker accepts connections any more, after they were told to drain."""
        return all(child.has_closed or not child.pid for child in self._workers)

    @property
    def trouble(self) -> str:
        """Why the generation will not get ready: a worker gave up by itself; '' if none did."""
        return self._trouble

    @property
    def has_gone(self) -> bool:
        """Whether all processes have ended, after they were told to."""
        return bool(self._ending) and not self._leaving and not any(child.pid for child in self._children)

    def close(self) -> None:
        """Give back what was lent, once all processes have gone."""
        for places in self._places:
            for server, place in places.items():
                self.tokens[server].leave(place)
        self._places = []
        self._confines.leave()

    # -- the end

    def drain(self) -> None:
        """Let the workers answer what is under way, and end; those that do not in time are stopped."""
        if not self._ending:
            self._ending = "drain"
            self._end_by = time.monotonic() + self.settings.timeouts.stop
            self._let_go()
            self.tell_workers(words.DRAIN)

    def stop(self) -> None:
        """End what is under way, and the workers."""
        if self._ending == "stop":
            return
        self._ending = "stop"
        self._end_by = time.monotonic() + self.settings.timeouts.kill + _STOP_GRACE
        self._let_go()
        self.tell_workers(words.STOP)

    def _let_go(self) -> None:
        self._listeners = []
        for child in self._children:
            child.restart_at = 0.0

    def kill(self) -> None:
        """End everything now. A spawner, told by TERM, kills its programs first; one that does not is killed, too."""
        self._ending = "stop"
        self._let_go()
        for child in self._workers:
            child.signal(signal.SIGKILL)
        for pid in [*self._leaving, *(child.pid for crew in self._spawners for child in crew)]:
            send_signal(pid, signal.SIGKILL if self._killed else signal.SIGTERM)
            send_signal(pid, signal.SIGCONT)
        self._killed = True
        self._end_by = time.monotonic() + _STOP_GRACE

    @property
    def due(self) -> float:
        """When something has to be done, `time.monotonic()` seconds."""
        if self._ending:
            return self._end_by
        dues = [child.restart_at for child in self._children if child.restart_at]
        return min([*dues, self._tls.credentials.due if self._tls else float("inf")])

    def act(self, now: float) -> None:
        """Do what is due."""
        if self._ending:
            if now >= self._end_by:
                if self._ending == "drain":
                    self._log.warning(f"not drained within {self.settings.timeouts.stop:g} s: stopping")
                    self.stop()
                else:
                    self.kill()
            return
        for child in self._children:
            if child.restart_at and now >= child.restart_at:
                self._start(child)
        self._look_at_certificates(now)

    # -- children

    @property
    def _children(self) -> list[Child]:
        return [*self._workers, *(child for crew in self._spawners for child in crew)]

    def tell_workers(self, message: bytes) -> None:
        """Say something to every worker, see `worker`."""
        for child in self._workers:
            if child.control:
                with contextlib.suppress(OSError):
                    child.control.send(message)

    def _look_at_certificates(self, now: float) -> None:
        """Have the workers show other certificates if there are any in the files."""
        if self._tls and self._tls.credentials.look(now, self._log.error):
            with os.fdopen(os.memfd_create("certificates", os.MFD_CLOEXEC), "wb", buffering=0) as file:
                file.write(self._tls.credentials.encode())
                for child in self._workers:
                    if child.control:
                        with contextlib.suppress(OSError):
                            socket.send_fds(child.control, [words.CERTIFICATES], [file.fileno()])
            self._log.notice("certificates: the files have changed, new connections get what is in them now")

    def reaped(self, pid: int, status: int) -> bool:
        """Take the end of a process; return whether it was of this generation."""
        if pid in self._leaving:
            self._end_programs(*self._leaving.pop(pid))
            return True
        for child in self._children:
            if child.pid == pid:
                self._died(child, status)
                return True
        return False

    def stopped(self, pid: int) -> None:
        """A process was stopped. A spawner's programs may do that to it, and let others wait for ever: it is killed."""
        spawners = {child.pid: child.name for crew in self._spawners for child in crew}
        if pid in spawners or pid in self._leaving:
            self._log.error(f"{spawners.get(pid, 'a spawner')} (pid {pid}) was stopped by a signal; it is killed")
            send_signal(pid, signal.SIGKILL)

    def _died(self, child: Child, status: int) -> None:
        pid, child.pid = child.pid, 0
        number = child.number - 1
        self._hang_up(child)
        if child.kind == "spawner":
            # It ends them itself unless it was killed.
            self._end_programs(child.part, self._rolls[number][child.part])
        if child.kind == "worker":
            for server, tokens in self.tokens.items():
                tokens.recover(self._places[number][server])
            if self._clients:
                self._clients.recover(number)
        if self._ending:
            if status and self._ending == "drain":
                self._log.error(f"{child.name} (pid {pid}) died while it drained: {end_in_words(status)}")
            return
        worker_gone = child.kind == "spawner" and not self._workers[number].pid
        if worker_gone:
            return  # it left because its worker did; it comes back with it
        # A spawner that ended well has followed a worker that is not reaped yet.
        is_fault = not os.WIFSIGNALED(status) and (status or child.kind == "worker")
        if is_fault and not self._workers[number].was_ready:
            self._trouble = f"{child.name} ended at its start, {end_in_words(status)}"
        self._parent.replace_later(child, pid, status)

    def _hang_up(self, child: Child) -> None:
        if child.control:
            self._parent.drop(child.control)
            child.control = None

    def _start(self, child: Child) -> None:
        self._parent.start(child, self._start_worker if child.kind == "worker" else self._start_spawner)

    def _start_worker(self, child: Child) -> None:
        number = child.number - 1
        spawners = self._spawners[number]
        for spawner in spawners:
            if spawner.pid:
                # It serves one worker in its life, and ends now. The new worker gets a new one, and a new roll.
                self._leaving[spawner.pid] = spawner.part, self._rolls[number][spawner.part]
                spawner.pid = 0
        self._rolls[number] = self._new_rolls()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._parent.watch(ours, lambda: self._listen_to(child, ours))
        child.control = ours
        try:
            child.pid = self._parent.fork(lambda: self._be_worker(number, theirs), self._listeners)
        except OSError:
            self._hang_up(child)
            raise
        finally:
            theirs.close()
        for spawner in spawners:
            if spawner.born:
                self._start(spawner)

    def _listen_to(self, child: Child, control: socket.socket) -> None:
        try:
            message = control.recv(words.LONGEST)
        except OSError:
            message = b""
        if message == words.READY:
            child.was_ready = True
        elif message == words.CLOSED:
            child.has_closed = True
        elif message.startswith(words.LEFT):
            self._end_left(message)
        elif not message and child.control is control:
            # It has died, or dies; it is reaped soon.
            self._hang_up(child)

    def _start_spawner(self, child: Child) -> None:
        number, part = child.number - 1, child.part
        cgroup = self._confines.cgroup(part)
        to_worker, theirs = channel()
        try:
            roll = self._rolls[number][part]
            child.pid = self._parent.fork(
                lambda: be_spawner(self.settings, part, theirs, to_worker, roll, cgroup, child.name)
            )
            control = self._workers[number].control
            if control:
                with contextlib.suppress(OSError):
                    socket.send_fds(control, [words.SPAWNER + b"%d" % part], [to_worker.fileno()])
        finally:
            theirs.close()
            to_worker.close()

    def _be_worker(self, number: int, control: socket.socket) -> None:
        self._parent.die_with_me()
        places = self._places[number]
        shares = {server: Share(tokens, places[server]) for server, tokens in self.tokens.items()}
        counted = ClientShare(self._clients, number) if self._clients else None
        parent, actual = self._parent.pid, self._actual
        cgroups = self._confines.directories
        front.run_worker(self.settings, self._listeners, control, cgroups, shares, parent, actual, counted, self._tls)

    # -- what a killed spawner has left

    def _end_programs(self, part: int, roll: Roll) -> None:
        """Kill the programs that a dead spawner has noted."""
        pids = roll.clear()
        if pids:
            self._kill_groups(part, lambda: pids)

    def _end_left(self, message: bytes) -> None:
        """Kill the programs that a worker misses: the roll lacks at most the last one, if that killed the spawner."""
        with contextlib.suppress(ValueError):
            part, pipes = words.left_in(message)
            if part < len(self.settings.confinements):
                self._kill_groups(part, lambda: groups_at(pipes))

    def _kill_groups(self, part: int, find: Callable[[], Iterable[int]]) -> None:
        """Kill process groups, as the user that the programs run as: what that one has written is not believed more."""
        account = self.settings.confinements[part].account

        def kill() -> None:
            if account:
                account.signal_as()
            for pid in find():
                signal_group(pid, signal.SIGKILL)

        if not account:
            kill()
            return
        try:
            # It looks and signals, and waits for nothing.
            os.waitpid(self._parent.fork(kill), 0)
        except OSError as error:
            self._log.error(f"programs of a dead spawner, {account.name}'s, could not be ended: {error.strerror}")


def _tokens(
    settings: Settings, pools: list[Managed], before: Mapping[FastCgiServer, Tokens]
) -> dict[FastCgiServer, Tokens]:
    """Return the tokens of each server that counts connections: those there are, where as many workers share it."""
    places = GENERATIONS * settings.workers
    managed_of = {managed.pool.server: managed for managed in pools}
    found = {}
    for server in settings.fastcgi_servers:
        managed = managed_of.get(server)
        if managed:
            if not managed.tokens:
                managed.tokens = Tokens(server.connections, places, managed.board)
            found[server] = managed.tokens
        elif server.connections:
            known = before.get(server)
            found[server] = known if known and known.places == places else Tokens(server.connections, places, None)
    return found
