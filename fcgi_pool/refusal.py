"""Answers for a pool that cannot start: every connection is told so at once, instead of waiting for ever.

A process of its own, forked by the manager and ended when a worker has come up: the listening socket blocks, as workers
want it, so whoever accepts may be kept there when a worker was quicker.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable

from fcgi_pool.protocol.application import ApplicationSide, BeginRequest
from fcgi_pool.protocol.records import ProtocolError, ProtocolStatus, Role

# Peers that were answered and have not closed yet, and those that have connected and said nothing.
_CONNECTIONS = 256
# Seconds after which a peer that does neither is left.
_PATIENCE = 5.0
# Seconds for those who are connected when a worker has come up.
_LAST_WORDS = 1.0
_PIECE = 64 * 1024
_ROLES = tuple(Role)


def refuser(reason: str) -> Callable[[int], None]:
    """Return what a helper process runs: answer OVERLOADED to all who come, with `reason` on their error stream."""

    def run(listener: int) -> None:
        with socket.socket(fileno=listener) as accepting:
            _Refuser(accepting, reason.encode("utf-8", "backslashreplace")[:1024]).run()

    return run


class _Refuser:
    def __init__(self, listener: socket.socket, reason: bytes) -> None:
        self._listener = listener
        self._reason = reason
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, tuple[ApplicationSide, float]] = {}
        self._ends = False

    def run(self) -> None:
        """Serve until TERM, then until those who are connected have been answered."""
        signal.signal(signal.SIGTERM, self._mark_end)
        self._selector.register(self._listener, selectors.EVENT_READ)
        last = 0.0
        while not self._ends or self._peers:
            if self._ends:
                if not last:
                    last = time.monotonic() + _LAST_WORDS
                    self._selector.unregister(self._listener)
                elif time.monotonic() > last:
                    return
            # A signal between the look at `_ends` and the wait costs one turn of it.
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)
            self._leave_overdue()

    def _mark_end(self, _number: int, _frame: object) -> None:
        self._ends = True

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if len(self._peers) >= _CONNECTIONS:
            self._leave(next(iter(self._peers)))
        peer.setblocking(False)
        self._peers[peer] = (ApplicationSide(roles=_ROLES), time.monotonic() + _PATIENCE)
        self._selector.register(peer, selectors.EVENT_READ)

    def _read(self, peer: socket.socket) -> None:
        side, _ = self._peers[peer]
        try:
            data = peer.recv(_PIECE)
            if not data:
                self._leave(peer)
                return
            side.receive(data)
            while (event := side.next_event()) is not None:
                if isinstance(event, BeginRequest):
                    pieces = side.stderr(self._reason)
                    pieces += side.end(0, ProtocolStatus.OVERLOADED)
                    peer.send(side.data_to_send() + b"".join(pieces))
                    if not event.keep:
                        # What still comes is read, or the peer might lose the answer (RFC 9112, section 9.6).
                        peer.shutdown(socket.SHUT_WR)
            if answers := side.data_to_send():
                peer.send(answers)
        except BlockingIOError:
            pass
        except (OSError, ProtocolError):
            self._leave(peer)

    def _leave_overdue(self) -> None:
        now = time.monotonic()
        for peer in [peer for peer, (_, deadline) in self._peers.items() if now > deadline]:
            self._leave(peer)

    def _leave(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        del self._peers[peer]
        peer.close()
