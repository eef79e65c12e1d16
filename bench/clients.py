"""Clients with a kept connection each: some ask again and again, some ask once, wait, and ask once more at the end.

    python -m bench.clients --port PORT --path PATH --active COUNT --idle COUNT --seconds SECONDS

Prints one line of JSON, see `crowd`. A process of its own, with a thread for each client: made for requests that
take milliseconds, some hundred a second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.limits import raise_descriptor_limit
from bench.load import percentile
from bench.servers import HOST

# Seconds until a request counts as not answered: hundreds of times what the longest queue here takes.
PATIENCE = 10.0


@dataclass
class Client:
    """One client, and the milliseconds that its answers took."""

    port: int
    path: str
    took: list[float] = field(default_factory=list)
    unanswered: int = 0

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)

    def ask(self) -> None:
        begin = time.perf_counter()
        try:
            self.connection.request("GET", self.path)
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.unanswered += 1
            return
        if answer.status == 200:
            self.took.append((time.perf_counter() - begin) * 1000)
        else:
            self.unanswered += 1

    def ask_until(self, end: float) -> None:
        while time.monotonic() < end:
            self.ask()


def crowd(port: int, path: str, *, active: int, idle: int, seconds: float) -> dict[str, float]:
    """Let the clients ask; the counts are of requests, the times in milliseconds, of the active clients' requests."""
    some = [Client(port, path) for _ in range(active)]
    others = [Client(port, path) for _ in range(idle)]
    with ThreadPoolExecutor(max(1, active + idle)) as threads:
        list(threads.map(Client.ask, others))
        begin = time.monotonic()
        list(threads.map(lambda client: client.ask_until(begin + seconds), some))
        lasted = time.monotonic() - begin
        list(threads.map(Client.ask, others))
    for client in (*some, *others):
        client.connection.close()
    took = [time for client in some for time in client.took]
    return {
        "rate": len(took) / lasted,
        "mean": sum(took) / max(1, len(took)),
        "p50": percentile(took, 50),
        "p99": percentile(took, 99),
        "longest": max(took, default=0),
        "least": min((len(client.took) for client in some), default=0),
        "most": max((len(client.took) for client in some), default=0),
        "unanswered": sum(client.unanswered for client in some),
        "idle_unanswered": sum(client.unanswered for client in others),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--active", type=int, required=True)
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    raise_descriptor_limit()
    seen = crowd(given.port, given.path, active=given.active, idle=given.idle, seconds=given.seconds)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
