"""From an accepted socket to a connection: what has to be known and agreed before the first request.

In this order: who it is (a PROXY header stands before TLS), whether it may come in, the TLS handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gateway.clients.addresses import Trusted
from gateway.clients.door import Welcome
from gateway.clients.paced import PacedConnection
from gateway.clients.peer import Peer
from gateway.clients.proxy_header import LONGEST, BadHeader, ProxyHeader, parse_header
from gateway.clients.refusing import NO_CERTIFICATE, PLAIN_TO_TLS, RefusingConnection
from gateway.connection import Connection
from gateway.tls.certificates import Certificate
from gateway.tls.contexts import ServerContexts
from gateway.tls.share import TlsShare
from gateway.tls.transport import TlsTransport

if TYPE_CHECKING:
    from gateway.worker import Worker

# A misconfigured proxy is told of so often, in seconds.
_SAY_AGAIN = 10.0


class _Arrival:
    """One who is on the way in, from `accepted` on; with TLS, whom the end of the handshake is told."""

    __slots__ = ("_entrance", "accepted", "deadline", "has_transport", "is_proxied", "peer", "task")

    def __init__(self, entrance: Entrance, accepted: socket.socket, peer: Peer, is_proxied: bool) -> None:
        self._entrance = entrance
        self.accepted = accepted
        self.peer = peer
        self.is_proxied = is_proxied
        self.deadline = math.inf  # of the handshake
        self.task: asyncio.Task[None] | None = None
        self.has_transport = False  # that of TLS, which tells how it ends

    def give_way(self) -> None:
        """Leave; that is noticed in the next turn of the loop."""
        # Not closed: whoever waits for it, a transport too, sees its end, and closes it.
        with contextlib.suppress(OSError):
            self.accepted.shutdown(socket.SHUT_RDWR)

    def has_agreed(self, transport: TlsTransport) -> asyncio.Protocol:
        """The handshake is done."""
        return self._entrance.serve(self, transport)

    def is_plain(self) -> asyncio.Protocol:
        """The client speaks HTTP without TLS."""
        return self._entrance.refuse_plain(self)

    def has_failed(self, why: str) -> None:
        """There was no handshake."""
        self._entrance.lose(self, why)


class Entrance:
    """One worker's. `proxied`: the listeners whose connections begin with a PROXY header. `tls`: those with TLS."""

    def __init__(self, worker: Worker, proxied: Iterable[socket.socket], tls: TlsShare | None) -> None:
        self._worker = worker
        self._clients = settings = worker.settings.clients
        self._proxied = frozenset(proxied)
        self._trusted = Trusted(settings.proxy_protocol.trust) if settings.proxy_protocol else None
        self._secured = frozenset(tls.listeners if tls else ())
        self._contexts = ServerContexts(tls.credentials) if tls else None
        self._kind = PacedConnection if settings.pace.body or settings.pace.send else Connection
        # Those on their way in who may be long, the oldest first; and those who are not: plain ones, who are here at
        # once, and those that had to give way and have not noticed.
        self._coming: dict[_Arrival, None] = {}
        self._passing: set[_Arrival] = set()
        self._said = 0.0

    @property
    def count(self) -> int:
        """How many are on their way in: they hold descriptors, too."""
        return len(self._coming) + len(self._passing)

    def show(self, certificates: Iterable[Certificate]) -> None:
        """Show these certificates from now on."""
        if self._contexts:
            self._contexts.take(certificates)

    def take(self, listener: socket.socket, accepted: socket.socket, name: object) -> None:
        """Let in who was accepted from `listener`; `name` is the other end's."""
        accepted.setblocking(False)
        client = (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
        peer = Peer(client, listener in self._secured, accepted)
        is_proxied = listener in self._proxied
        if is_proxied and not (self._trusted and self._trusted.has(client[0] if client else None)):
            self._say(f"{peer.address} is no trusted proxy (--proxy-protocol); its connection was closed")
            accepted.close()
            return
        if not is_proxied and not self._is_welcome(peer):
            accepted.close()
            return
        arrival = _Arrival(self, accepted, peer, is_proxied)
        arrival.task = self._worker.loop.create_task(self._admit(arrival))
        if not (peer.tls or is_proxied):
            self._passing.add(arrival)
            return
        self._coming[arrival] = None
        if len(self._coming) > self._clients.max_handshakes:
            self._send_away(next(iter(self._coming)))

    def sweep(self, now: float) -> None:
        """Send those away whose handshake takes too long; called some times a second."""
        for arrival in [arrival for arrival in self._coming if now >= arrival.deadline]:
            self._send_away(arrival)

    def _send_away(self, arrival: _Arrival) -> None:
        del self._coming[arrival]
        self._passing.add(arrival)
        arrival.give_way()

    def _has_come(self, arrival: _Arrival) -> None:
        self._coming.pop(arrival, None)
        self._passing.discard(arrival)

    def _is_welcome(self, peer: Peer) -> bool:
        door = self._worker.door
        if door and door.receive(peer) is Welcome.DROP:
            door.leave(peer.seat)
            peer.seat = 0  # it has been given back, whoever else is told
            return False
        return True

    async def _admit(self, arrival: _Arrival) -> None:
        accepted, loop, worker = arrival.accepted, self._worker.loop, self._worker
        try:
            if arrival.is_proxied:
                arrival.peer = await self._identify(accepted, arrival.peer)
                if not self._is_welcome(arrival.peer):
                    raise ConnectionAbortedError
            if arrival.peer.tls:
                await loop.connect_accepted_socket(lambda: self._begin_tls(arrival), accepted)
                return
            await loop.connect_accepted_socket(lambda: self._kind(worker, arrival.peer), accepted)
        except (OSError, BadHeader) as error:
            if isinstance(error, BadHeader):
                words = f"sent no header of the PROXY protocol: {error}; its connection was closed"
                self._say(f"{arrival.peer.address} {words}")
            accepted.close()
            self.lose(arrival, "")
        finally:
            if not arrival.has_transport:
                self._has_come(arrival)

    # -- TLS

    def _begin_tls(self, arrival: _Arrival) -> TlsTransport:
        assert self._contexts
        arrival.has_transport = True
        arrival.deadline = self._worker.now() + self._worker.settings.timeouts.handshake
        return TlsTransport(self._contexts, arrival)

    def serve(self, arrival: _Arrival, transport: TlsTransport) -> Connection:
        """Return who serves a client that TLS was agreed with."""
        self._has_come(arrival)
        assert self._contexts
        peer = arrival.peer
        peer.secured = transport.secured
        if self._contexts.requires_certificate and not peer.secured.getpeercert(binary_form=True):
            return RefusingConnection(self._worker, peer, NO_CERTIFICATE)
        return self._kind(self._worker, peer)

    def refuse_plain(self, arrival: _Arrival) -> Connection:
        """Return who answers a client that did not begin with TLS."""
        self._has_come(arrival)
        arrival.peer.speaks_plain()
        return RefusingConnection(self._worker, arrival.peer, PLAIN_TO_TLS)

    def lose(self, arrival: _Arrival, why: str) -> None:
        """One does not come; its socket is closed. Once is enough: what was counted is given back."""
        if arrival not in self._coming and arrival not in self._passing:
            return
        self._has_come(arrival)
        if why and self._worker.settings.debug:
            self._worker.error_log.notice(f"{arrival.peer.address}: no TLS was agreed: {why}")
        self._worker.did_not_come(arrival.peer)

    # -- the PROXY protocol

    async def _identify(self, accepted: socket.socket, proxy: Peer) -> Peer:
        """Return the client that `proxy` names; raise BadHeader, and OSError if it leaves or is late."""
        assert self._clients.proxy_protocol
        async with asyncio.timeout(self._clients.proxy_protocol.timeout):
            header = await _read_header(self._worker.loop, accepted)
        if header.source is None:
            return proxy
        return Peer(header.source, proxy.tls, local=header.destination)

    def _say(self, words: str) -> None:
        now = self._worker.now()
        if not self._said or now - self._said > _SAY_AGAIN:
            self._said = now
            self._worker.error_log.warning(words)


async def _read_header(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> ProxyHeader:
    """Read a header and no byte more, since what follows it may be TLS. Raise BadHeader and OSError."""
    data = b""
    while True:
        await _readable(loop, accepted)
        try:
            ahead = accepted.recv(LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not ahead:
            raise ConnectionResetError  # to see whether we live, it may be
        header = parse_header(data + ahead)
        # As long as there is none, all that has come is its begin.
        accepted.recv(header.length - len(data) if header else len(ahead))
        if header:
            return header
        data += ahead


async def _readable(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_reader(accepted, wake)
    try:
        await waiter
    finally:
        loop.remove_reader(accepted)
