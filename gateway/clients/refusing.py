"""A connection on which every request is refused, for what was to be agreed before the first one was not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.clients.peer import Peer
from gateway.connection import Connection
from gateway.exchange import Exchange
from gateway.fault import Fault

if TYPE_CHECKING:
    from gateway.worker import Worker

# In nginx's words, which people look for.
PLAIN_TO_TLS = Fault(400, "The plain HTTP request was sent to HTTPS port", closes=True, is_public=True)
NO_CERTIFICATE = Fault(400, "No required SSL certificate was sent", closes=True, is_public=True)


class RefusingConnection(Connection):
    """The protocol of one accepted socket, whose requests all fail with `fault`."""

    __slots__ = ("_fault",)

    def __init__(self, worker: Worker, peer: Peer, fault: Fault) -> None:
        super().__init__(worker, peer)
        self._fault = fault

    def _answer(self, exchange: Exchange) -> None:
        exchange.fail(self._fault)
