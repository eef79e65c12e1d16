"""Load: wrk, closed loop, for throughput; and requests at a constant rate, open loop, as a process of its own.

python -m bench.load --port PORT --path PATH --rate REQUESTS_PER_SECOND --seconds SECONDS
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local

from bench.processes import Child, Children, cpu_seconds, wait_for_quiet
from bench.servers import HOST, Running, find
from bench.site import BENCH, REPOSITORY

CONNECTIONS = 16
# Threads of the open loop: twice what 200 requests/s of 100 ms each need. Past that the rate that is reached falls
# behind the one asked for, which is shown.
SENDERS = 40


@dataclass(frozen=True)
class Load:
    """What wrk saw in one run. Times in milliseconds."""

    rate: float  # requests/s
    p50: float
    p99: float
    cpu: float  # of the server's own processes, a request; the programs' is not in it
    errors: int  # other statuses than 2xx and 3xx, failed connects, reads, writes, timeouts


@dataclass(frozen=True)
class Wrk:
    """wrk with its settings."""

    children: Children
    threads: int
    patience: float = 0  # seconds to wait for quiet before each run

    def run(self, server: Running, path: str, seconds: float, connections: int = CONNECTIONS) -> Load:
        """Ask for one path over kept connections, each as soon as the last answer is there."""
        wait_for_quiet(self.patience)
        argv = [find("wrk"), f"-t{self.threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
        argv += ["--timeout", "20s", "-s", str(BENCH / "report.lua"), server.url(path)]
        before = self.cpu(server)
        output = self.children.run("wrk", argv, server.child.log.parent / "wrk.log", deadline=seconds + 60)
        seen = json.loads(output.strip().splitlines()[-1])
        used = self.cpu(server) - before
        return Load(
            rate=seen["requests"] / (seen["microseconds"] / 1e6),
            p50=seen["p50"] / 1000,
            p99=seen["p99"] / 1000,
            cpu=used * 1000 / max(1, seen["requests"]),
            errors=seen["refused"] + seen["failed"],
        )

    @staticmethod
    def cpu(server: Running) -> float:
        return sum(cpu_seconds(child.pid) for child in (server.child, *server.helpers))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def start_constant_rate(children: Children, server: Running, path: str, *, rate: float, seconds: float) -> Child:
    """Start the open loop in a process of its own; what it prints is JSON, see `constant_rate`."""
    argv = [sys.executable, "-m", "bench.load", "--port", str(server.port), "--path", path]
    argv += ["--rate", str(rate), "--seconds", str(seconds)]
    return children.start("load", argv, server.child.log.parent / "load.log", cwd=REPOSITORY)


def constant_rate(port: int, path: str, rate: float, seconds: float) -> dict[str, float]:
    """Send requests at their times whether or not earlier ones were answered; latency counts from those times."""
    kept = local()
    begin = time.monotonic() + 0.1

    def send(number: int) -> float | None:
        due = begin + number / rate
        connection: http.client.HTTPConnection | None = getattr(kept, "connection", None)
        if connection is None:
            connection = kept.connection = http.client.HTTPConnection(HOST, port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return None
        return (time.monotonic() - due) * 1000 if answer.status == 200 else None

    with ThreadPoolExecutor(SENDERS) as senders:
        answers = []
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            answers.append(senders.submit(send, number))
        results = [answer.result() for answer in answers]
    took = time.monotonic() - begin
    good = [result for result in results if result is not None]
    return {
        "rate": len(good) / took,
        "errors": len(results) - len(good),
        "p50": percentile(good, 50),
        "p99": percentile(good, 99),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    print(json.dumps(constant_rate(given.port, given.path, given.rate, given.seconds)))


if __name__ == "__main__":
    main()
