"""Opens connections, asks once for `/` on each, and keeps them, until its standard input ends.

    python -m bench.holder --port PORT --count COUNT

Prints `holding COUNT` when all have had their answer, and at the end `still open COUNT`. A process of its own: the
descriptor limit counts for it and for the server each.
"""

from __future__ import annotations

import argparse
import http.client
import select
import sys

from bench.limits import raise_descriptor_limit
from bench.servers import HOST

# Several source addresses, other than the load generator's, so that nobody runs out of ephemeral ports.
SOURCES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
AT_ONCE = 50  # connections being opened


def open_some(port: int, first: int, count: int) -> list[http.client.HTTPConnection]:
    connections = []
    for number in range(first, first + count):
        source = (SOURCES[number % len(SOURCES)], 0)
        connection = http.client.HTTPConnection(HOST, port, timeout=30, source_address=source)
        connection.request("GET", "/")
        connections.append(connection)
    for connection in connections:
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200 or connection.sock is None:
            raise SystemExit(f"/ answered {answer.status}, or did not keep the connection")
    return connections


def count_open(connections: list[http.client.HTTPConnection]) -> int:
    """An idle connection with something to read has been closed: nothing was asked."""
    poller = select.poll()
    for connection in connections:
        if connection.sock is not None:
            poller.register(connection.sock, select.POLLIN)
    return len(connections) - len(poller.poll(0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    given = parser.parse_args()
    raise_descriptor_limit()
    connections: list[http.client.HTTPConnection] = []
    while len(connections) < given.count:
        connections += open_some(given.port, len(connections), min(AT_ONCE, given.count - len(connections)))
    print(f"holding {len(connections)}", flush=True)
    sys.stdin.read()
    print(f"still open {count_open(connections)}", flush=True)


if __name__ == "__main__":
    main()
