"""How long an answer that needs no process takes while CGI programs are being started at a constant rate."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from bench.load import percentile, start_constant_rate
from bench.processes import Children, StartFailed
from bench.servers import HOST, OURS, Running
from bench.site import program_path
from bench.table import Target, table

RATE = 200  # CGI requests/s
PROGRAM = "sh"
PAUSE = 0.002  # seconds between an answer and the next request: the probe must not be a load itself
MOST_ADDED = 5.0  # milliseconds of p99


@dataclass
class Result:
    """Milliseconds from request to answer for `/`, without and with CGI starts, and what the CGI load saw."""

    name: str
    label: str
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    loads: list[dict[str, float]] = field(default_factory=list)

    @property
    def added(self) -> float:
        return percentile(self.beside, 99) - percentile(self.alone, 99)

    def row(self) -> list[str]:
        times = [percentile(samples, percent) for samples in (self.alone, self.beside) for percent in (50, 99)]
        reached = sum(load["rate"] for load in self.loads) / len(self.loads)
        errors = sum(load["errors"] for load in self.loads)
        p99 = max(load["p99"] for load in self.loads)
        return [
            self.label,
            *(f"{time:.2f}" for time in times),
            f"{max(self.beside):.2f}",
            f"{self.added:.2f}",
            f"{reached:.0f}/s",
            f"{p99:.1f}",
            f"{errors:.0f}",
        ]


HEAD = ["server", "p50", "p99", "p50 beside", "p99 beside", "longest", "p99 added", "CGI", "its p99", "its errors"]


def probe(server: Running, seconds: float) -> list[float]:
    """Ask for `/` on one kept connection, over and over."""
    samples: list[float] = []
    connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
    connection.connect()
    kept = connection.sock
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.perf_counter()
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        samples.append((time.perf_counter() - begin) * 1000)
        if answer.status != 200 or connection.sock is not kept:
            raise StartFailed(f"{server.name}: / answered {answer.status}, or did not keep the connection")
        time.sleep(PAUSE)
    connection.close()
    return samples


def measure(children: Children, servers: Sequence[Running], rounds: int, seconds: float) -> list[Result]:
    results = [Result(server.name, server.label) for server in servers]
    for _ in range(rounds):
        for server, result in zip(servers, results, strict=True):
            result.alone += probe(server, seconds)
            # A second before and after, so that the load is there as long as the probe.
            load = start_constant_rate(children, server, program_path(PROGRAM), rate=RATE, seconds=seconds + 2)
            time.sleep(1)
            result.beside += probe(server, seconds)
            result.loads.append(json.loads(load.finish(60)))
            children.stop(load)
    return results


def report(results: Sequence[Result]) -> tuple[str, list[Target]]:
    targets = []
    for result in results:
        if result.name == OURS:
            targets.append(Target("hello: p99 added by CGI starts", result.added, MOST_ADDED, False, " ms"))
            errors = sum(load["errors"] for load in result.loads)
            targets.append(Target("hello: errors of the CGI load", errors, 0, False))
    title = f"GET / on one kept connection, alone and beside {RATE} CGI starts/s (/bin/sh, open loop); milliseconds"
    return table(title, HEAD, [result.row() for result in results], [str(target) for target in targets]), targets


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    def summary(samples: Sequence[float]) -> dict[str, float]:
        return {"count": len(samples), "p50": percentile(samples, 50), "p99": percentile(samples, 99)}

    return [
        {**asdict(result), "alone": summary(result.alone), "beside": summary(result.beside), "added": result.added}
        for result in results
    ]
