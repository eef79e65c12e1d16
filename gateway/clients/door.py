"""Who may come in: each client's requests and connections, held against what it may have.

A connection whose client is known when it comes (the other end of the socket, or whom a PROXY header names) is counted
from then on, so one on which nothing is said is counted, too. Whom a request's fields name is known with the request
alone, so of such a client the requests under way are counted, as nginx's limit_conn counts all.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from gateway.clients.addresses import client_identity
from gateway.clients.peer import Peer
from gateway.clients.real_ip import RealClients
from gateway.clients.settings import ClientSettings, RateLimit
from gateway.clients.table import ClientShare
from gateway.exchange import Exchange
from gateway.fault import LIMITED, Fault

if TYPE_CHECKING:
    from gateway.routes import Bounds
    from gateway.worker import Worker

# After a connection too many, in seconds: nobody knows when one of the others ends.
_TRY_AGAIN = 1


class Welcome(enum.Enum):
    """How a connection is received."""

    SERVE = enum.auto()
    EXPLAIN = enum.auto()  # its first request is answered that there are too many
    DROP = enum.auto()  # there are so many of those that they would be the load that the limit is to prevent


class Door:
    """One worker's. `share`: what all workers count together; None if nothing is counted."""

    def __init__(self, worker: Worker, settings: ClientSettings, share: ClientShare | None) -> None:
        self._worker = worker
        self._share = share
        self._rate = settings.rate
        self._most = settings.connections
        self._status = settings.status
        self._real = RealClients(settings.real_ip) if settings.real_ip else None

    def receive(self, peer: Peer) -> Welcome:
        """Count a connection and say how it is received. `leave` follows at its end, with the peer's seat."""
        if not self._most or (self._real and self._real.trusts(peer)):
            return Welcome.SERVE
        count, peer.seat = self._count(peer)
        if count <= self._most:
            return Welcome.SERVE
        peer.is_over = True
        return Welcome.EXPLAIN if count <= 2 * self._most else Welcome.DROP

    def leave(self, seat: int) -> None:
        """What was counted under `seat` has ended; 0 for what was not counted."""
        if seat and self._share:
            self._share.leave(seat)

    def holds(self, exchange: Exchange) -> bool:
        """Find out whose `exchange` is; return whether it is not to be answered now: refused, or it waits its turn."""
        connected = exchange.peer
        if connected.is_over:
            self._refuse(exchange, _TRY_AGAIN, f"more than {self._most} connections of one client", closes=True)
            return True
        if self._real:
            peer = self._real.client_of(connected, exchange.request)
            if peer is not connected:
                exchange.see(peer)
            if self._most and self._real.trusts(connected):
                count, seat = self._count(peer)
                exchange.seats = (seat,)
                if count > self._most:
                    self._refuse(exchange, _TRY_AGAIN, f"more than {self._most} requests of one client at once")
                    return True
        return self._rate is not None and self._is_too_early(exchange, self._rate)

    def holds_for(self, exchange: Exchange, bounds: Bounds, redirects: int) -> bool:
        """The same for what a route allows, once it is known whose `exchange` is; it is routed anew at its turn."""
        key = self._key_for(exchange.peer, bounds.scope)
        if not key or not self._share:
            return False
        if bounds.connections:
            exchange.seats = (*exchange.seats, key)
            if self._share.arrive(key, self._worker.now()) > bounds.connections:
                words = f"more than {bounds.connections} requests of one client at once, for this route"
                self._refuse(exchange, _TRY_AGAIN, words)
                return True
        if not bounds.rate:
            return False
        wait = self._ask(exchange, key, bounds.rate)
        if wait:
            self._worker.loop.call_later(wait, self._turn_of_route_has_come, exchange, redirects)
        return wait is None or wait > 0.0

    def _is_too_early(self, exchange: Exchange, limit: RateLimit) -> bool:
        key = self._key(exchange.peer)
        wait = self._ask(exchange, key, limit) if key else 0.0
        if wait:
            self._worker.loop.call_later(wait, self._turn_has_come, exchange)
        return wait is None or wait > 0.0

    def _ask(self, exchange: Exchange, key: int, limit: RateLimit) -> float | None:
        """Count a request under `key`; return how long it waits for its turn, None where it is refused."""
        assert self._share
        passes, _, wait = self._share.ask(key, limit, self._worker.now())
        if not passes:
            self._refuse(exchange, math.ceil(wait), f"more than {limit.rate:g} requests a second of one client")
            return None
        return wait if limit.delay else 0.0

    def _turn_has_come(self, exchange: Exchange) -> None:
        if not exchange.is_ended:
            self._worker.admit(exchange)

    def _turn_of_route_has_come(self, exchange: Exchange, redirects: int) -> None:
        if not exchange.is_ended:
            self._worker.route(exchange, redirects)

    def _refuse(self, exchange: Exchange, retry_after: int, words: str, *, closes: bool = False) -> None:
        exchange.fail(Fault(self._status, words, LIMITED, retry_after=retry_after, closes=closes))

    def _key(self, peer: Peer) -> int:
        if peer.key is None:
            peer.key = self._key_for(peer, b"")
        return peer.key

    def _key_for(self, peer: Peer, scope: bytes) -> int:
        """Return what `peer` is counted by within `scope`, b"" for the whole server; 0 if it is not counted."""
        if self._worker.is_exempt(peer):
            return 0
        identity = client_identity(peer.address)
        return self._share.key(identity + scope) if identity and self._share else 0

    def _count(self, peer: Peer) -> tuple[int, int]:
        """Count one more of a client; return how many it has, and under what that was counted."""
        key = self._key(peer)
        return (self._share.arrive(key, self._worker.now()), key) if key and self._share else (0, 0)
