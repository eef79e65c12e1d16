"""Requests that trusted proxies pass on, seen as their clients' own."""

from __future__ import annotations

from gateway.clients.addresses import Trusted
from gateway.clients.forwarded import Client, find_client
from gateway.clients.peer import Peer
from gateway.clients.settings import RealIp
from gateway.http.message import Request

# Stands for "the fields name nobody" among the notes of a request.
_NOBODY = object()


class RealClients:
    """Finds the client that a request of a trusted proxy names."""

    def __init__(self, settings: RealIp) -> None:
        self._trusted = Trusted(settings.trust)
        self._header = settings.header

    def trusts(self, peer: Peer) -> bool:
        """Whether `peer` is a proxy whose word is taken."""
        return self._trusted.has(peer.client[0] if peer.client else None)

    def client_of(self, peer: Peer, request: Request) -> Peer:
        """Return whom `request`, which came from `peer`, is from."""
        if not self.trusts(peer):
            return peer
        # Requests with the same fields share their notes; and what a trusted proxy says is the same from any of them.
        known = request.notes.get(self)
        if known is None:
            known = find_client(request.fields, self._header, self._trusted) or _NOBODY
            request.notes[self] = known
        return peer.behind(known.end or peer.client, known.scheme) if isinstance(known, Client) else peer
