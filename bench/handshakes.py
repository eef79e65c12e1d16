"""TLS handshakes, each followed by one request, as fast as several processes get them done.

python -m bench.handshakes --port PORT --path PATH --seconds SECONDS --clients N [--resumed]

Each client is a process: what a handshake costs, it costs the client, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import ssl
import time
from dataclasses import dataclass

from bench.servers import HOST

_GUARD = 20.0  # seconds for one connection


@dataclass(frozen=True)
class Visits:
    """What one client is to do."""

    port: int
    path: str
    resumed: bool
    until: float  # of time.monotonic(), which all processes share


_Session = ssl.SSLSession | None


def visit(context: ssl.SSLContext, visits: Visits, session: _Session) -> tuple[_Session, bool]:
    """Connect and ask once; return the session that the server gives, and whether it was as it should be."""
    with socket.create_connection((HOST, visits.port), _GUARD) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as client:
            client.sendall(f"GET {visits.path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while data := client.recv(65536):
                answer += data
            is_good = answer.startswith(b"HTTP/1.1 200 ") and bool(client.session_reused) == (session is not None)
            return client.session, is_good


def client(visits: Visits) -> tuple[int, int]:
    """Return how many handshakes were done, and how many of them failed."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    session = visit(context, visits, None)[0] if visits.resumed else None
    done = failed = 0
    while time.monotonic() < visits.until:
        given, is_good = visit(context, visits, session)
        done += 1
        failed += not is_good
        # A ticket is for one use (RFC 8446 appendix C.4).
        session = given if visits.resumed else None
    return done, failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--resumed", action="store_true")
    given = parser.parse_args()
    begin = time.monotonic()
    visits = Visits(given.port, given.path, given.resumed, begin + given.seconds)
    with multiprocessing.Pool(given.clients) as pool:
        found = pool.map(client, [visits] * given.clients, 1)
    took = time.monotonic() - begin
    done, failed = (sum(numbers) for numbers in zip(*found, strict=True))
    print(json.dumps({"done": done, "failed": failed, "rate": done / took}))


if __name__ == "__main__":
    main()
