"""A front worker: one event loop that accepts connections, routes their requests and watches their deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from fcgi_pool.listener import BACKLOG
from fcgi_pool.process import die_with
from gateway import control_words, diagnosis
from gateway.access_log import AccessLog, refused_record
from gateway.body import Body, start_disk_thread
from gateway.body_stream import BodyStream
from gateway.cgi.launcher import Launcher
from gateway.clients.addresses import Trusted
from gateway.clients.door import Door
from gateway.clients.entrance import Entrance
from gateway.clients.peer import Peer
from gateway.clients.table import ClientShare
from gateway.confinement.cgroup import OomWatch
from gateway.connection import Connection
from gateway.dispatch import Dispatcher, Handler
from gateway.error_log import ErrorLog
from gateway.exchange import Exchange, renew_ids
from gateway.fastcgi.backend import Backend
from gateway.fastcgi.tokens import Share
from gateway.handlers.authorizer import Authorizer
from gateway.handlers.basic_auth import BasicAuthGuard
from gateway.handlers.cgi import CgiDirectory
from gateway.handlers.fastcgi import FastCgiApplication
from gateway.handlers.files import send_file
from gateway.handlers.index import Index, Nothing
from gateway.handlers.site import Site
from gateway.handlers.static import StaticTree, file_store
from gateway.http.base_reader import Reader
from gateway.http.message import Refused
from gateway.http.reader import reader_class
from gateway.privileges import forbid_new_privileges
from gateway.readiness import Readiness
from gateway.routes import Endpoint, Guard
from gateway.settings import CgiMount, FastCgiMount, FastCgiServer, Mount, Route, Settings, SiteMount, StaticMount
from gateway.tls.certificates import decode
from gateway.tls.share import TlsShare

# Deadlines are looked at so often, in seconds: one timer a worker instead of one a connection.
_SWEEP = 0.25
# Gathered lines of the access log are written so often, in seconds.
_LOG_FLUSH = 0.1
# After an accept failed for want of descriptors or memory, in seconds.
_ACCEPT_PAUSE = 0.5
# Descriptors kept for the process itself, besides a channel to each spawner: its listeners, logs, loop, threads.
_OWN_DESCRIPTORS = 32
# Of one program at its start: both ends of two pipes, its body twice.
_PROGRAM_DESCRIPTORS = 6

_ANY_BODY = 10**19
# Objects made before the collector looks: a request makes some hundred, and hardly any are in cycles.
_GC_THRESHOLD = 20_000

_SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))

# A worker that drains keeps an idle connection for so many seconds more: a request may be on its way, and whoever sends
# it could not tell a close from a failure. That is longer than packets travel, and than a busy client pauses. The next
# answer says that it is the last. (nginx closes at once, and its clients ask again, if they can.)
_LAST_CALL = 2.0


class Run(Protocol):
    """Something with a deadline."""

    def sweep(self, now: float) -> None:
        """Act if the deadline has passed."""

    def forsake(self) -> None:
        """The server stops now: log what is known."""


class Worker:
    """Serves `listeners` until the master says otherwise on `control`.

    `shares`: of the FastCGI servers whose connections are counted. `actual`: where pools of ours listen in fact.
    `counted`: where clients are counted, None if they are not. `cgroups`: directories of those of the confinements.
    `tls`: which listeners speak TLS, None if none does.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: list[socket.socket],
        control: socket.socket,
        cgroups: Sequence[str],
        shares: Mapping[FastCgiServer, Share],
        actual: Mapping[FastCgiServer, FastCgiServer],
        counted: ClientShare | None,
        tls: TlsShare | None,
    ) -> None:
        self.settings = settings
        self.loop = _new_loop(settings.loop)
        self.now: Callable[[], float] = time.monotonic
        self.error_log = ErrorLog(settings.error_log)
        self.access_log = AccessLog(settings.access_log, settings.log_format)
        self.connections: set[Connection] = set()
        self.runs: set[Run] = set()
        self.is_draining = False
        self._takes_more_until = math.inf
        sends_files = any(isinstance(mount, StaticMount | SiteMount) for mount in settings.mounts)
        confinements = settings.confinements
        kept = _OWN_DESCRIPTORS + len(confinements)
        places, capacity = _capacity(settings.max_programs, 2 if sends_files else 1, kept)
        self._capacity = min(capacity, settings.clients.max_connections or capacity)
        self.files = file_store(settings.mounts)
        self.readiness = Readiness(self.loop)
        self.launcher = Launcher(
            self.loop, len(confinements), places, settings.max_waiting, self._spawner_came, self._say_left
        )
        self._spawner_of = {confinement: number for number, confinement in enumerate(confinements)}
        self._ooms = [OomWatch(directory) for directory in cgroups]
        self._reader_class = reader_class(settings.http)
        # Where routes have limits, which one a body has is known when its head has been read, and is seen to then.
        body = _ANY_BODY if any(route.limits for route in settings.routes) else settings.limits.body
        self._limits = replace(settings.limits, body=body)
        self._listeners = listeners
        self._control = control
        self._accepting = False
        self._said_scarce = 0.0
        self._backends = {
            server: Backend(self, actual.get(server, server), shares.get(server)) for server in settings.fastcgi_servers
        }
        endpoints = self._endpoints()
        # Of each kind the one with the longest prefix is asked: who it is first, then whether that one may.
        guards: tuple[list[tuple[str, Guard]], list[tuple[str, Guard]]] = (
            [(auth.prefix, BasicAuthGuard(self, auth)) for auth in settings.clients.auth],
            [(mount.prefix, Authorizer(self, mount)) for mount in settings.authorizers],
        )
        self._exempt = Trusted(settings.clients.exempt) if settings.clients.exempt else None
        self.door = Door(self, settings.clients, counted) if counted or settings.clients.real_ip else None
        self._dispatcher = Dispatcher(settings, endpoints, guards, self.door)
        self._entrance = Entrance(self, _proxied(settings, listeners), tls)

    def _endpoints(self) -> list[Endpoint[Handler]]:
        numbers = {id(mount): number for number, mount in enumerate(self.settings.mounts)}
        own = {route.auth: BasicAuthGuard(self, route.auth) for route in self.settings.routes if route.auth}
        endpoints = [
            Endpoint.of(
                route,
                self._handler(route.mount, numbers.get(id(route.mount), 0)),
                own[route.auth] if route.auth else None,
            )
            for route in self.settings.routes
        ]
        if self.settings.shows_index and not any(route.prefix == "/" for route in self.settings.routes):
            endpoints.append(Endpoint.of(Route("/"), Index(self.settings.mounts)))
        return endpoints

    def _handler(self, mount: Mount | None, number: int) -> Handler:
        if mount is None:
            return Nothing()
        if isinstance(mount, CgiMount):
            spawner = self._spawner_of[mount.confinement]
            return CgiDirectory(self, mount, number, spawner, self._ooms[spawner])
        if isinstance(mount, StaticMount):
            return StaticTree(self, mount)
        return FastCgiApplication(self, mount) if isinstance(mount, FastCgiMount) else Site(self, mount)

    def backend(self, server: FastCgiServer) -> Backend:
        """Return this worker's connections to a FastCGI server of the settings."""
        return self._backends[server]

    def run(self) -> None:
        """Serve."""
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(self._unexpected)
        self._control.setblocking(False)
        self.loop.add_reader(self._control.fileno(), self._take_control)
        self.loop.call_later(_SWEEP, self._sweep)
        if not self.access_log.is_off:
            self.loop.call_later(_LOG_FLUSH, self._flush_log)
        # What exists now lives as long as the process; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 20)
        try:
            self.loop.run_forever()
        finally:
            self.access_log.flush()

    # -- connections

    def new_reader(self) -> Reader:
        """Return a reader for a new connection."""
        return self._reader_class(self._limits)

    def _listen(self) -> None:
        if self._accepting or self.is_draining or len(self.connections) >= self._capacity:
            return
        self._accepting = True
        for listener in self._listeners:
            self.loop.add_reader(listener.fileno(), self._accept, listener)

    def _stop_listening(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection: what else waits is shared with the other workers."""
        try:
            accepted, name = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
            if self.now() - self._said_scarce > 10:
                self._said_scarce = self.now()
                self.error_log.warning(f"connections wait to be accepted: {error.strerror}")
            self._stop_listening()
            self.loop.call_later(_ACCEPT_PAUSE, self._listen)
            return
        self._entrance.take(listener, accepted, name)
        # Those on their way in hold descriptors too.
        if len(self.connections) + self._entrance.count >= self._capacity:
            self._stop_listening()

    def connection_lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        # Its last request may wait for the collector, since a run and its parts know each other; OpenSSL's memory not.
        connection.peer.secured = None
        self.did_not_come(connection.peer)

    def did_not_come(self, peer: Peer) -> None:
        """There is one connection less, or one that was accepted did not come so far."""
        if peer.seat:
            self.leave(peer.seat)
        if self.is_draining:
            self._leave_if_done()
        else:
            self._room_for_connections()

    def leave(self, seat: int) -> None:
        """What was counted under `seat` has ended."""
        if self.door:
            self.door.leave(seat)

    def is_exempt(self, peer: Peer) -> bool:
        """Whether `peer` is neither counted nor limited."""
        return self._exempt is not None and self._exempt.has(peer.client[0] if peer.client else None)

    def _room_for_connections(self) -> None:
        if not self._accepting:
            self._listen()

    # -- requests

    def answer(self, exchange: Exchange) -> None:
        """Answer a request of a client, if it may have it and may have it now."""
        if not self.door or not self.door.holds(exchange):
            self._dispatcher.answer(exchange)

    def admit(self, exchange: Exchange) -> None:
        """Answer a request of a client that may have it."""
        self._dispatcher.answer(exchange)

    def route(self, exchange: Exchange, redirects: int) -> None:
        """Hand `exchange` to what its path leads to, after so many redirects within the server."""
        self._dispatcher.route(exchange, redirects)

    def send_file(self, exchange: Exchange, path: bytes) -> None:
        """Answer by a file that a program names."""
        send_file(self, exchange, path)

    def new_body(self, exchange: Exchange, on_complete: Callable[[], None]) -> Body:
        """Return what stores the body of `exchange`, which fails where that cannot be done."""
        on_error = partial(self._body_failed, exchange)
        return Body(self.loop, self.settings.temp_dir, on_complete, on_error, exchange.body_has_room)

    def new_body_stream(self, exchange: Exchange) -> BodyStream | None:
        """Return what passes the body of `exchange` on; None where its length is not known, or there is none."""
        length = exchange.request.content_length
        return None if length is None else BodyStream(length, exchange.body_has_room)

    def _body_failed(self, exchange: Exchange, error: OSError) -> None:
        exchange.fail(diagnosis.not_stored(error, self.settings.named("--temp-dir")))

    def log_refused(self, client: str, refused: Refused, size: int, outcome: str) -> None:
        """Log what was no request."""
        self.access_log.add(refused_record(client, refused, size, outcome))
        if self.settings.debug:
            self.error_log.notice(f"{client} was refused with {refused.status}: {refused.reason}")

    # -- time

    def _sweep(self) -> None:
        self.loop.call_later(_SWEEP, self._sweep)
        now = self.now()
        self._entrance.sweep(now)
        for connection in [*self.connections]:
            connection.sweep(now)
        for run in [*self.runs]:
            run.sweep(now)
        for backend in self._backends.values():
            backend.sweep()
        if self.is_draining:
            self._leave_if_done()

    def _flush_log(self) -> None:
        self.loop.call_later(_LOG_FLUSH, self._flush_log)
        self.access_log.flush()

    # -- the master's word

    def _take_control(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, 16, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        if message.startswith(control_words.SPAWNER) and descriptors:
            self.launcher.connect(int(message[1:]), socket.socket(fileno=descriptors[0]))
        elif message == control_words.CERTIFICATES and descriptors:
            with open(descriptors[0], "rb") as file:
                self._entrance.show(decode(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)))
        elif message == control_words.REOPEN:
            self.error_log.reopen()
            self.access_log.reopen()
        elif message == control_words.DRAIN:
            self._drain()
        elif message in (control_words.STOP, b""):
            self._stop()

    def _say(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the master has gone; that is read, too
            self._control.send(message)

    def _spawner_came(self) -> None:
        if self.launcher.is_ready:
            self._listen()
            self._say(control_words.READY)

    def _say_left(self, spawner: int, pipes: set[int]) -> None:
        for message in control_words.left(spawner, pipes):
            self._say(message)

    def _drain(self) -> None:
        self.is_draining = True
        self._takes_more_until = self.now() + _LAST_CALL
        self._stop_listening()
        for listener in self._listeners:
            self._take_queued(listener)
            listener.close()
        self._say(control_words.CLOSED)
        for backend in self._backends.values():
            backend.drain()
        for connection in [*self.connections]:
            connection.drain()
        self._leave_if_done()

    def _take_queued(self, listener: socket.socket) -> None:
        """Accept what waits: where nobody else listens any more, it would be reset when the last of us closes."""
        for _ in range(min(BACKLOG, self._capacity - len(self.connections) - self._entrance.count)):
            try:
                accepted, name = listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError:
                return
            self._entrance.take(listener, accepted, name)

    @property
    def last_call(self) -> float:
        """Until when a connection without a request is kept, for one that is on its way; for ever if not draining."""
        return self.now() + _LAST_CALL if self.is_draining else math.inf

    @property
    def takes_more(self) -> bool:
        """Whether requests that follow the present one on its connection, and are here already, are answered, too.

        A client that sends without waiting for answers has more here at any time.
        """
        return self.now() < self._takes_more_until

    def _leave_if_done(self) -> None:
        idle = self.launcher.is_idle and all(backend.is_idle for backend in self._backends.values())
        if idle and not self.connections and not self._entrance.count:
            self.loop.stop()

    def _stop(self) -> None:
        self._stop_listening()
        for connection in [*self.connections]:
            connection.shut()
        # One turn of the loop, in which the connections' ends are told.
        self.loop.call_soon(self._leave)

    def _leave(self) -> None:
        for run in [*self.runs]:
            run.forsake()
        self.loop.stop()

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A fault of ours: logged whole, and only what it happened to is lost."""
        error = context.get("exception")
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return  # a client that vanished in mid-handshake or mid-write
        self.error_log.unexpected(str(context.get("message", "")), error if isinstance(error, BaseException) else None)
        protocol = context.get("protocol")
        if isinstance(protocol, Connection):
            protocol.shut()


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind in ("auto", "uvloop"):
        try:
            import uvloop  # noqa: PLC0415

            return uvloop.new_event_loop()
        except ImportError:
            if kind == "uvloop":
                raise
    return asyncio.new_event_loop()


def _capacity(max_programs: int, each: int, own: int) -> tuple[int, int]:
    """Return how many programs, and how many connections that take `each`, this process has descriptors for.

    It has `own` for itself. What an accepted request will need is thus reserved before it is accepted. The soft limit
    is raised to the hard one; programs are started by another process and keep the soft limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    free = max(hard - own, 16) if hard != resource.RLIM_INFINITY else 1_000_000
    programs = max(1, min(max_programs, free // (2 * _PROGRAM_DESCRIPTORS)))
    return programs, max(1, (free - programs * _PROGRAM_DESCRIPTORS) // each)


def _proxied(settings: Settings, listeners: list[socket.socket]) -> list[socket.socket]:
    """Return the listeners whose connections begin with a PROXY header; they stand in the order of the addresses."""
    header = settings.clients.proxy_protocol
    if not header:
        return []
    if not header.listen:
        return listeners  # also those that were given in place of the addresses
    return [one for address, one in zip(settings.addresses, listeners, strict=False) if address in header.listen]


def run_worker(
    settings: Settings,
    listeners: list[socket.socket],
    control: socket.socket,
    cgroups: Sequence[str],
    shares: Mapping[FastCgiServer, Share],
    parent: int,
    actual: Mapping[FastCgiServer, FastCgiServer],
    counted: ClientShare | None,
    tls: TlsShare | None,
) -> None:
    """Be a front worker, in a process of its own that ends with `parent`."""
    renew_ids()
    # The terminal's INT and QUIT go to the whole group; what they mean is the master's to say.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(0o077)
    start_disk_thread()
    worker = Worker(settings, listeners, control, cgroups, shares, actual, counted, tls)
    if settings.account:
        # Logs are open and keys read. The kernel forgets at this whose death ends the process (prctl(2)).
        settings.account.become()
        die_with(parent)
    if settings.no_new_privileges:
        forbid_new_privileges()
    worker.run()
