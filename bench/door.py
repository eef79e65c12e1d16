"""What limits, real clients and passwords cost a request, in microseconds of one processor.

    python -m bench.door

Each line is the best of several rounds; the first is what a server without any of it pays.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import bcrypt

from gateway.access_log import Record
from gateway.clients.door import Door
from gateway.clients.peer import Peer
from gateway.clients.proxy_header import SIGNATURE, parse_header
from gateway.clients.settings import BasicAuth, ClientSettings, RateLimit, RealIp, Trust
from gateway.clients.table import ClientShare, ClientTable
from gateway.handlers.basic_auth import BasicAuthGuard
from gateway.http.h11_reader import H11Reader
from gateway.http.limits import Limits
from gateway.http.message import Request

_ROUNDS = 7
_CALLS = 20_000
_WORKERS = 4
_TRUST = Trust((ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")))


def microseconds(call: Callable[[], object]) -> float:
    """Return how long `call` takes at best."""
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = time.process_time()
        for _ in range(_CALLS):
            call()
        best = min(best, time.process_time() - begin)
    return best / _CALLS * 1e6


def a_request(*fields: str) -> Request:
    """Return a browser's request, with more fields."""
    usual = ["Host: example.org", "User-Agent: Mozilla/5.0", "Accept: */*", "Accept-Encoding: gzip", "Cookie: a=b"]
    reader = H11Reader(Limits())
    reader.receive("\r\n".join(["GET /app HTTP/1.1", *usual, *fields, "", ""]).encode())
    event = reader.next_event()
    assert isinstance(event, Request)
    return event


class Asked:
    """As much of an exchange as is looked at here."""

    def __init__(self, peer: Peer, request: Request) -> None:
        self.peer = peer
        self.request = request
        self.record = Record(peer.address, request, "id")
        self.seat = 0
        self.is_ended = False

    def see(self, peer: Peer) -> None:
        self.peer = peer
        self.record.client = peer.address

    def grant(self, guard: object, variables: dict[bytes, bytes], *, hides_authorization: bool) -> None:
        pass


def door_cost(settings: ClientSettings, address: str, *fields: str, fresh: bool = False) -> float:
    """Return what one request costs at the door."""
    share = ClientShare(ClientTable(settings.addresses, _WORKERS), 0)
    worker: Any = SimpleNamespace(now=time.monotonic)
    door = Door(worker, settings, share)
    peer = Peer((address, 4711), False, None, ("10.0.0.9", 80))
    request = a_request(*fields)

    def call() -> None:
        if fresh:
            request.notes.clear()
        asked: Any = Asked(peer, request)
        door.holds(asked)
        if asked.seat:
            door.leave(asked.seat)

    bare = microseconds(lambda: Asked(peer, request))
    return microseconds(call) - bare


def connection_cost() -> float:
    """Return what one connection costs that is counted."""
    settings = ClientSettings(connections=100)
    share = ClientShare(ClientTable(settings.addresses, _WORKERS), 0)
    worker: Any = SimpleNamespace(now=time.monotonic)
    door = Door(worker, settings, share)

    def call() -> None:
        peer = Peer(("192.0.2.1", 4711), False)
        door.receive(peer)
        door.leave(peer.seat)

    return microseconds(call) - microseconds(lambda: Peer(("192.0.2.1", 4711), False))


def password_cost() -> tuple[float, float]:
    """Return what right credentials cost that are remembered, and a check with the cost that htpasswd -B gives, 5."""
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(5))
    loop = asyncio.new_event_loop()
    now = time.monotonic()
    routed: list[object] = []
    worker: Any = SimpleNamespace(now=lambda: now, loop=loop, route=lambda exchange, _: routed.append(exchange))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"alice:" + hashed)
        file.flush()
        guard = BasicAuthGuard(worker, BasicAuth("/", file.name))
        request = a_request("Authorization: Basic " + base64.b64encode(b"alice:secret").decode())
        asked: Any = Asked(Peer(("192.0.2.1", 4711), False), request)
        guard.ask(asked, 0)
        while not routed:
            loop.run_until_complete(asyncio.sleep(0.01))
        remembered = microseconds(lambda: guard.ask(asked, 0))
    loop.close()
    begin = time.process_time()
    for _ in range(20):
        bcrypt.checkpw(b"secret", hashed)
    return remembered, (time.process_time() - begin) / 20 * 1e6


def main() -> None:
    """Print the table."""
    rate = ClientSettings(rate=RateLimit(1e6, 1000))
    real = ClientSettings(real_ip=RealIp(_TRUST))
    both = replace(real, rate=rate.rate, connections=100)
    forwarded = "X-Forwarded-For: 203.0.113.7, 192.0.2.1, 10.0.0.2"
    door: Door | None = None
    nothing = microseconds(lambda: bool(door))
    header = SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12)
    remembered, checked = password_cost()
    rows = [
        ("nothing switched on", nothing),
        ("a rate", door_cost(rate, "192.0.2.1")),
        ("the real client of a proxy, fields seen before", door_cost(real, "10.0.0.1", forwarded)),
        ("the real client of a proxy, new fields", door_cost(real, "10.0.0.1", forwarded, fresh=True)),
        ("the real client, its rate and requests at once", door_cost(both, "10.0.0.1", forwarded)),
        ("a connection that is counted, from begin to end", connection_cost()),
        ("a PROXY header, version 1", microseconds(lambda: parse_header(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"))),
        ("a PROXY header, version 2", microseconds(lambda: parse_header(header))),
        ("a password that is remembered", remembered),
        ("a password that is checked, in a thread", checked),
    ]
    for name, cost in rows:
        print(f"{name:<50}{cost:>10.2f} µs")


if __name__ == "__main__":
    main()
