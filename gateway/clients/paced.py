"""A connection whose client must keep a minimum rate. Where none is asked for, none is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.clients.pace import Pace
from gateway.clients.peer import Peer
from gateway.connection import Connection

if TYPE_CHECKING:
    from gateway.worker import Worker


class PacedConnection(Connection):
    """The protocol of one accepted socket, with a minimum rate in each direction."""

    __slots__ = ("_body_pace", "_send_pace", "_written")

    def __init__(self, worker: Worker, peer: Peer) -> None:
        super().__init__(worker, peer)
        rates = worker.settings.clients.pace
        self._body_pace = Pace(rates.body, rates.window) if rates.body else None
        self._send_pace = Pace(rates.send, rates.window) if rates.send else None
        self._written = 0

    def send(self, data: bytes) -> None:
        """Write to the client."""
        self._written += len(data)
        super().send(data)

    def send_pieces(self, pieces: list[bytes]) -> None:
        """Write several pieces without joining them."""
        self._written += sum(map(len, pieces))
        super().send_pieces(pieces)

    def sweep(self, now: float) -> None:
        """Act if the client is too slow, or a deadline has passed."""
        if self._worker.is_exempt(self._exchange.peer if self._exchange else self.peer):
            super().sweep(now)
            return
        if self._send_pace and self._transport:
            # What the kernel has taken counts as taken by the client; it takes a few megabytes at most.
            waiting = self._transport.get_write_buffer_size()
            if not waiting:
                self._send_pace.rest()
            elif self._send_pace.is_too_slow(now, self._written - waiting):
                self.abandon()
                return
        if self._body_pace:
            received = self.body_received
            if received is None:
                self._body_pace.rest()
            elif self._body_pace.is_too_slow(now, received):
                self.refuse_body("the body of the request came too slowly")
                return
        super().sweep(now)
