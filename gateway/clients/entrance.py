"""From an accepted socket to a connection: what has to be known and agreed before the first request.

In this order: who it is (a PROXY header stands before TLS), whether it may come in, the TLS handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gateway.clients.addresses import Trusted
from gateway.clients.door import Welcome
from gateway.clients.paced import PacedConnection
from gateway.clients.peer import Peer
from gateway.clients.proxy_header import LONGEST, BadHeader, ProxyHeader, parse_header
from gateway.connection import Connection
from gateway.tls import server_context

if TYPE_CHECKING:
    from gateway.worker import Worker

# A misconfigured proxy is told of so often, in seconds.
_SAY_AGAIN = 10.0


class Entrance:
    """One worker's. `proxied`: the listeners whose connections begin with a PROXY header."""

    def __init__(self, worker: Worker, proxied: Iterable[socket.socket]) -> None:
        self._worker = worker
        self._clients = settings = worker.settings.clients
        self._proxied = frozenset(proxied)
        self._trusted = Trusted(settings.proxy_protocol.trust) if settings.proxy_protocol else None
        self._tls = server_context(worker.settings.tls) if worker.settings.tls else None
        self._kind = PacedConnection if settings.pace.body or settings.pace.send else Connection
        # Those on their way in, the oldest first, and those that had to give way and have not noticed.
        self._coming: dict[asyncio.Task[None], socket.socket] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._said = 0.0

    @property
    def count(self) -> int:
        """How many are on their way in: they hold descriptors, too."""
        return len(self._coming) + len(self._leaving)

    def take(self, listener: socket.socket, accepted: socket.socket, name: object) -> None:
        """Let in who was accepted from `listener`; `name` is the other end's."""
        accepted.setblocking(False)
        client = (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
        peer = Peer(client, self._tls is not None, accepted)
        is_proxied = listener in self._proxied
        if is_proxied and not (self._trusted and self._trusted.has(client[0] if client else None)):
            self._say(f"{peer.address} is no trusted proxy (--proxy-protocol); its connection was closed")
            accepted.close()
            return
        if not is_proxied and not self._is_welcome(peer):
            accepted.close()
            return
        task = self._worker.loop.create_task(self._admit(accepted, peer, is_proxied))
        self._coming[task] = accepted
        task.add_done_callback(self._has_come)
        if len(self._coming) > self._clients.max_handshakes:
            self._drop_oldest()

    def _has_come(self, task: asyncio.Task[None]) -> None:
        self._coming.pop(task, None)
        self._leaving.discard(task)

    def _drop_oldest(self) -> None:
        task = next(iter(self._coming))
        self._leaving.add(task)
        # Not closed: whoever waits for it sees its end, and closes it.
        with contextlib.suppress(OSError):
            self._coming.pop(task).shutdown(socket.SHUT_RDWR)

    def _is_welcome(self, peer: Peer) -> bool:
        door = self._worker.door
        if door and door.receive(peer) is Welcome.DROP:
            door.leave(peer.seat)
            return False
        return True

    async def _admit(self, accepted: socket.socket, peer: Peer, is_proxied: bool) -> None:
        try:
            if is_proxied:
                peer = await self._identify(accepted, peer)
                if not self._is_welcome(peer):
                    raise ConnectionAbortedError
            await self._connect(accepted, peer)
        except (OSError, ssl.SSLError, BadHeader) as error:
            if isinstance(error, BadHeader):
                self._say(f"{peer.address} sent no header of the PROXY protocol: {error}; its connection was closed")
            accepted.close()
            self._worker.did_not_come(peer)

    async def _connect(self, accepted: socket.socket, peer: Peer) -> None:
        worker = self._worker
        if self._tls:
            await worker.loop.connect_accepted_socket(
                lambda: self._kind(worker, peer),
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=worker.settings.timeouts.handshake,
            )
        else:
            await worker.loop.connect_accepted_socket(lambda: self._kind(worker, peer), accepted)

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
