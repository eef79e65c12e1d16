"""Requests per second of the same program under each server, in interleaved runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from bench.load import CONNECTIONS, Load, Wrk
from bench.servers import OURS, Running
from bench.site import PROGRAMS
from bench.table import Target, table

LEAST_RATE = 1.1  # × the fastest peer
MOST_P99 = 0.7  # × the p99 of that peer
WITH_TARGET = ("c", "sh")  # the time of the others is their interpreter's


@dataclass
class Result:
    """The runs of one server with one program."""

    name: str
    label: str
    runs: list[Load] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(run.rate for run in self.runs)

    @property
    def p50(self) -> float:
        return median(run.p50 for run in self.runs)

    @property
    def p99(self) -> float:
        return median(run.p99 for run in self.runs)

    @property
    def cpu(self) -> float:
        return median(run.cpu for run in self.runs)

    @property
    def errors(self) -> int:
        return sum(run.errors for run in self.runs)

    def row(self) -> list[str]:
        rates = [run.rate for run in self.runs]
        spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
        times = [f"{time:.2f}" for time in (self.p50, self.p99, self.cpu)]
        return [self.label, f"{self.rate:,.0f}", spread, *times, str(self.errors)]


HEAD = ["server", "req/s", "least–most", "p50 ms", "p99 ms", "own CPU ms", "errors"]


def measure(
    wrk: Wrk, servers: Sequence[Running], path: str, rounds: int, seconds: float, connections: int = CONNECTIONS
) -> list[Result]:
    """Warm each server up, then run A B C D A B C D …, so that a slow minute of the machine is everyone's."""
    results = [Result(server.name, server.label) for server in servers]
    for server in servers:
        wrk.run(server, path, 1, connections)
    for _ in range(rounds):
        for server, result in zip(servers, results, strict=True):
            result.runs.append(wrk.run(server, path, seconds, connections))
    return results


def compare(program: str, results: Sequence[Result]) -> tuple[list[str], list[Target]]:
    """Our ratios to the fastest peer, in words, and the targets among them."""
    ours = next((result for result in results if result.name == OURS), None)
    peers = [result for result in results if result.name != OURS]
    if ours is None or not peers:
        return [], []
    best = max(peers, key=lambda result: result.rate)
    calmest = min(peers, key=lambda result: result.p99)
    what = PROGRAMS[program]
    rate = Target(f"{what}: requests/s, ours / {best.label}", ours.rate / best.rate, LEAST_RATE, True, " ×")
    p99 = Target(f"{what}: p99, ours / {best.label}", ours.p99 / best.p99, MOST_P99, False, " ×")
    errors = Target(f"{what}: our errors", ours.errors, 0, False)
    lowest = f"{what}: p99, ours / the lowest of a peer, {calmest.label}: {ours.p99 / calmest.p99:.2f} ×"
    if program in WITH_TARGET:
        return [str(rate), str(p99), lowest, str(errors)], [rate, p99, errors]
    ratios = f"{what}: ours / {best.label}: requests/s {rate.value:.2f} ×, p99 {p99.value:.2f} × (no target)"
    return [ratios, lowest, str(errors)], [errors]


def report(
    wrk: Wrk, program: str, results: Sequence[Result], *, seconds: float, absent: Iterable[str]
) -> tuple[str, list[Target]]:
    """The table, with a row for each server that is absent, and our targets."""
    notes, targets = compare(program, results)
    rounds = len(results[0].runs) if results else 0
    title = (
        f"CGI, {PROGRAMS[program]}: {CONNECTIONS} connections, wrk -t{wrk.threads}, "
        f"medians of {rounds} runs of {seconds:g} s"
    )
    missing = [[label, "missing", *["–"] * (len(HEAD) - 2)] for label in absent]
    return table(title, HEAD, [*(result.row() for result in results), *missing], notes), targets


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    return [
        {
            **asdict(result),
            "rate": result.rate,
            "p50": result.p50,
            "p99": result.p99,
            "cpu": result.cpu,
            "errors": result.errors,
        }
        for result in results
    ]
