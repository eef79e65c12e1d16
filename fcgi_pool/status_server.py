"""Answers for the status and the ping page, by the manager itself, so that they answer when every worker is busy.

Many connections, none of which can hold up the manager: each has a deadline, a bound on what is kept for it, and
nothing is read from one that does not take its answer. What breaks the protocol loses its own connection.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fcgi_pool.config import PoolConfig
from fcgi_pool.protocol.application import Abort, ApplicationSide, Params
from fcgi_pool.protocol.records import ProtocolError, Role
from fcgi_pool.status import Page

# More are not needed for pages that take no time; the one that has waited longest makes room.
_CONNECTIONS = 128
# Seconds from the connection, or its last answer, to the end of the next request.
_PATIENCE = 10.0
# Seconds without accepting when there is no descriptor left.
_PAUSE = 1.0
_PIECE = 64 * 1024
# Of one connection, until it is somebody else's turn.
_EVENTS = 16
# php-fpm's: the page of a moment is of no use later.
_NOT_KEPT = (
    "Expires: Thu, 01 Jan 1970 00:00:00 GMT\r\nCache-Control: no-cache, no-store, must-revalidate, max-age=0\r\n"
)


def respond(config: PoolConfig, variables: Mapping[str, str], page: Callable[[str], Page]) -> bytes:
    """Return the response to a request, header and body, as a CGI program writes it (RFC 3875 section 6).

    `variables`: of the request. `page`: returns the status page for a query string.
    """
    paths = _paths(variables)
    # Paths are '' where the page is not wanted.
    if config.ping_path in paths:
        shown = Page("text/plain;charset=UTF-8", config.ping_response.encode())
    elif config.status_path in paths:
        shown = page(variables.get("QUERY_STRING", ""))
    else:
        shown = Page("text/plain;charset=UTF-8", b"No such page: the status or the ping path is wanted.\n")
    status = "" if paths & {config.ping_path, config.status_path} else "Status: 404 Not Found\r\n"
    length = f"Content-Length: {len(shown.body)}\r\n"
    header = f"{status}Content-Type: {shown.content_type}\r\n{_NOT_KEPT}{length}\r\n".encode()
    return header if variables.get("REQUEST_METHOD") == "HEAD" else header + shown.body


def _paths(variables: Mapping[str, str]) -> set[str]:
    """Return what may be the path: web servers send it as SCRIPT_NAME, or split it, or put a prefix before it."""
    script = variables.get("SCRIPT_NAME", "")
    uri = variables.get("REQUEST_URI", "").partition("?")[0]
    return {script, script + variables.get("PATH_INFO", ""), uri} - {""}


@dataclass(slots=True)
class _Peer:
    connection: socket.socket
    deadline: float
    side: ApplicationSide = field(
        default_factory=lambda: ApplicationSide(roles=(Role.RESPONDER,), max_conns=_CONNECTIONS)
    )
    to_send: bytes = b""
    # Its last answer is told, and it is only waited for its end: closing before would take the answer from it.
    is_done: bool = False


class StatusServer:
    """Serves FastCGI on `listener`, which stays the caller's to close; `answer` makes the response from the variables.

    Whoever waits for descriptors waits for `fileno()` to be readable and calls `serve()`, and `tick()` now and then.
    """

    def __init__(self, listener: socket.socket, answer: Callable[[Mapping[str, str]], bytes]) -> None:
        self._listener = listener
        self._answer = answer
        self._peers: dict[int, _Peer] = {}
        self._accepts_at = 0.0
        # One set within the caller's: epoll(7) watches another epoll's descriptor.
        self._selector = selectors.EpollSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def __repr__(self) -> str:
        return f"<StatusServer {len(self._peers)} connections>"

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to serve."""
        return self._selector.fileno()

    def close(self) -> None:
        """Close all connections."""
        for peer in list(self._peers.values()):
            self._leave(peer)
        self._selector.close()

    def serve(self, timeout: float = 0.0) -> None:
        """Do what can be done without waiting; before that, wait `timeout` seconds at most for something to do."""
        for key, events in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
                continue
            # An earlier one may have taken its room.
            peer = self._peers.get(key.fd)
            if peer is None:
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    self._send(peer)
                    self._go_on(peer)
                else:
                    self._receive(peer)
            except BlockingIOError:
                continue
            except (OSError, ProtocolError):
                self._leave(peer)

    def tick(self, now: float) -> None:
        """Leave those who have had their time; `now`: `time.monotonic()` seconds."""
        for peer in [peer for peer in self._peers.values() if peer.deadline < now]:
            self._leave(peer)
        if self._accepts_at and self._accepts_at <= now:
            self._accepts_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError:
            # No descriptor or memory: the listener stays readable, and asking again at once would only turn in circles.
            self._selector.unregister(self._listener)
            self._accepts_at = time.monotonic() + _PAUSE
            return
        if len(self._peers) >= _CONNECTIONS:
            self._leave(min(self._peers.values(), key=lambda peer: peer.deadline))
        connection.setblocking(False)
        self._peers[connection.fileno()] = _Peer(connection, time.monotonic() + _PATIENCE)
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, peer: _Peer) -> None:
        data = peer.connection.recv(_PIECE)
        if not data:
            self._leave(peer)
        elif not peer.is_done:
            peer.side.receive(data)
            self._go_on(peer)

    def _go_on(self, peer: _Peer) -> None:
        """Answer what has come, one request after the other, each when the last answer has been taken."""
        side = peer.side
        for _ in range(_EVENTS):
            if peer.to_send or peer.is_done:
                break
            event = side.next_event()
            pieces: list[bytes | memoryview] = [side.data_to_send()]
            if isinstance(event, Params):
                variables = {_text(name): _text(value) for name, value in event.pairs}
                # The body, if there is one, is of no interest; what still comes of it is skipped.
                pieces += [*side.stdout(self._answer(variables)), *side.end()]
            elif isinstance(event, Abort):
                pieces += side.end()
            # Also after a role that is not played.
            peer.is_done = not side.keeps and not side.is_busy
            peer.to_send = b"".join(pieces)
            if peer.to_send:
                peer.deadline = time.monotonic() + _PATIENCE
                self._send(peer)
            elif event is None:
                self._watch(peer, selectors.EVENT_READ)
                return
        if peer.is_done and not peer.to_send:
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
            self._watch(peer, selectors.EVENT_READ)
        else:
            # Somebody else's turn; it can go on when it takes bytes.
            self._watch(peer, selectors.EVENT_WRITE)

    def _send(self, peer: _Peer) -> None:
        with contextlib.suppress(BlockingIOError):
            peer.to_send = peer.to_send[peer.connection.send(peer.to_send) :]

    def _watch(self, peer: _Peer, events: int) -> None:
        if self._selector.get_key(peer.connection).events != events:
            self._selector.modify(peer.connection, events)

    def _leave(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        del self._peers[peer.connection.fileno()]
        peer.connection.close()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
