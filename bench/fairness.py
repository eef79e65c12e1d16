"""Whether every client is answered in its turn, when there are many more clients than children."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from statistics import fmean

from bench.clients import PATIENCE
from bench.fastcgi_servers import Front, Gateway, Nginx, PhpFpm
from bench.fastcgi_throughput import KEEP
from bench.processes import Children, wait_for_quiet
from bench.servers import CPUS, OURS, Running
from bench.site import REPOSITORY
from bench.table import Target, table

PAGE = "/nap.php"
MOST = 2.0  # × the mean service time × the length of a child's queue


@dataclass(frozen=True)
class Case:
    """A pool, the fronts' workers, and the clients."""

    children: int
    workers: int
    active: int
    idle: int

    @property
    def queue(self) -> float:
        """Requests for each child at any time."""
        return max(1.0, self.active / self.children)

    @property
    def label(self) -> str:
        children = "1 child" if self.children == 1 else f"{self.children} children"
        return f"{children}, {self.workers} front workers, {self.active} clients and {self.idle} idle ones"

    def fronts(self, options: str) -> list[Front]:
        pool = PhpFpm(self.children)
        ours = Gateway(pool, self.workers, options)
        return [ours, Nginx(pool, self.workers), Nginx(pool, self.workers, KEEP)]


CASES = (
    Case(children=1, workers=2, active=16, idle=4),
    Case(children=4, workers=max(2, CPUS), active=100, idle=100),
)


@dataclass
class Result:
    """The runs of one server: what one client alone saw, and what the clients of the case saw."""

    name: str
    label: str
    queue: float
    alone: list[dict[str, float]] = field(default_factory=list)
    crowd: list[dict[str, float]] = field(default_factory=list)

    @property
    def service(self) -> float:
        """The mean service time, in milliseconds: of a client that is alone. Infinite when it got no answer."""
        return fmean([run["mean"] for run in self.alone if run["rate"]] or [inf])

    @property
    def p99(self) -> float:
        """Of the worst run."""
        return max(run["p99"] for run in self.crowd)

    @property
    def share(self) -> float:
        """p99 in units of the service time × the queue; infinite when a client alone got no answer."""
        return self.p99 / (self.service * self.queue) if self.service < inf else inf

    def unanswered(self, key: str = "unanswered") -> int:
        return int(sum(run[key] for run in self.crowd))

    def row(self) -> list[str]:
        rate = sum(run["rate"] for run in self.crowd) / len(self.crowd)
        times = [self.service, max(run["p50"] for run in self.crowd), self.p99]
        times += [max(run["longest"] for run in self.crowd), self.share]
        asked = f"{min(run['least'] for run in self.crowd):.0f}–{max(run['most'] for run in self.crowd):.0f}"
        unanswered = [str(self.unanswered()), str(self.unanswered("idle_unanswered"))]
        return [self.label, f"{rate:,.0f}", *(f"{time:.1f}" for time in times), asked, *unanswered]


HEAD = [
    "server",
    "req/s",
    "service ms",
    "p50 ms",
    "p99 ms",
    "longest",
    "p99 / turn",
    "each client",
    "lost",
    "idle lost",
]


def ask(children: Children, server: Running, *, active: int, idle: int, seconds: float) -> dict[str, float]:
    argv = [sys.executable, "-m", "bench.clients", "--port", str(server.port), "--path", PAGE]
    argv += ["--active", str(active), "--idle", str(idle), "--seconds", str(seconds)]
    log = server.child.log.parent / "clients.log"
    seen = json.loads(children.run("clients", argv, log, deadline=seconds + 6 * PATIENCE, cwd=REPOSITORY))
    assert isinstance(seen, dict)
    return seen


def measure(
    children: Children, servers: Sequence[Running], case: Case, *, rounds: int, seconds: float, patience: float
) -> list[Result]:
    results = [Result(server.name, server.label, case.queue) for server in servers]
    for _ in range(rounds):
        for server, result in zip(servers, results, strict=True):
            wait_for_quiet(patience)
            result.alone.append(ask(children, server, active=1, idle=0, seconds=1))
            result.crowd.append(ask(children, server, active=case.active, idle=case.idle, seconds=seconds))
    return results


def report(case: Case, results: Sequence[Result], seconds: float) -> tuple[str, list[Target]]:
    targets = []
    for result in results:
        if result.name == OURS:
            what = f"fairness, {case.label}"
            targets += [
                Target(f"{what}: p99 / (mean service time × {case.queue:g} in turn)", result.share, MOST, False, " ×"),
                Target(f"{what}: requests not answered", result.unanswered(), 0, False),
                Target(f"{what}: idle clients not answered", result.unanswered("idle_unanswered"), 0, False),
            ]
    rounds = len(results[0].crowd) if results else 0
    title = f"{case.label}, php-fpm, 5 ms a request, {rounds} runs of {seconds:g} s; p99 of the worst run"
    return table(title, HEAD, [result.row() for result in results], [str(target) for target in targets]), targets


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """JSON has no infinity: null."""

    def finite(value: float) -> float | None:
        return value if value < inf else None

    return [
        {**asdict(result), "service": finite(result.service), "p99": result.p99, "share": finite(result.share)}
        for result in results
    ]
