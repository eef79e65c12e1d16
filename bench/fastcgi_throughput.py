"""Requests per second of one small response through a pool, at several numbers of connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.fastcgi_servers import CHILDREN, Flup, Front, Gateway, Nginx, OurPool, PhpFpm, counted
from bench.servers import CPUS, OURS
from bench.table import Target, table
from bench.throughput import HEAD, Result

CONNECTIONS = (2, 16, 64)
WORKERS = (1,) if CPUS == 1 else (1, CPUS)
KEEP = 4  # idle connections that a worker of nginx keeps
PHP_PAGE = "/hello.php"
WSGI_PAGE = "/hello"

LEAST_OF_FORKED = 2.5  # × nginx + flup forked
LEAST_OF_THREADED = 8.0  # × nginx + flup threaded


@dataclass(frozen=True)
class Bound:
    """Least requests/s and highest p99, each × nginx's; 0: none."""

    rate: float = 0
    p99: float = 0


# By number of connections, and whether the fronts have one worker.
BOUNDS = {
    (2, True): Bound(rate=1.0),
    (2, False): Bound(rate=1.0),
    (16, True): Bound(rate=1.1, p99=1.0),
    (16, False): Bound(rate=1.0),
    (64, True): Bound(p99=1.2),
    (64, False): Bound(p99=1.2),
}


def php_fronts(options: str) -> list[Front]:
    """With one worker and with one for each CPU: ours, nginx with a connection for each request, and with kept ones."""
    fronts: list[Front] = []
    for workers in WORKERS:
        fronts.append(Gateway(PhpFpm(), workers, options))
        fronts += [Nginx(PhpFpm(), workers, keep) for keep in (0, KEEP)]
    return fronts


def php_candidates() -> list[Front]:
    """Settings of nginx against each other: those compared with ours are among them."""
    return [Nginx(PhpFpm(), workers, keep) for workers in WORKERS for keep in (0, 1, 2, KEEP, 16)]


def wsgi_fronts(options: str) -> list[Front]:
    fronts: list[Front] = []
    for workers in WORKERS:
        fronts.append(Gateway(OurPool(), workers, options))
        fronts += [Nginx(Flup(kind), workers) for kind in ("forked", "threaded")]
    return fronts


def ratios(what: str, ours: Result, peers: Sequence[Result], bound: Bound) -> tuple[list[str], list[Target]]:
    """Our requests/s to the fastest peer's, our p99 to the lowest of any peer, which may be another."""
    fastest = max(peers, key=lambda result: result.rate)
    calmest = min(peers, key=lambda result: result.p99)
    rate, p99 = ours.rate / fastest.rate, ours.p99 / calmest.p99
    lines, targets = [], []
    for words, value, limit, at_least in (
        (f"{what}: requests/s, ours / {fastest.label}", rate, bound.rate, True),
        (f"{what}: p99, ours / {calmest.label}", p99, bound.p99, False),
    ):
        if limit:
            targets.append(Target(words, value, limit, at_least, " ×"))
            lines.append(str(targets[-1]))
        else:
            lines.append(f"{words}: {value:.2f} × (no target)")
    if calmest is not fastest:
        lines.append(f"{what}: requests/s, ours / {calmest.label}: {ours.rate / calmest.rate:.2f} × (for comparison)")
        lines.append(f"{what}: p99, ours / {fastest.label}: {ours.p99 / fastest.p99:.2f} × (for comparison)")
    return lines, targets


def errors_of(what: str, ours: Result) -> Target:
    return Target(f"{what}: our errors", ours.errors, 0, False)


def pick(fronts: Sequence[Front], results: Sequence[Result], workers: int) -> tuple[list[Result], list[Result]]:
    """Our results and the peers', of fronts with so many workers."""
    labels = {front.label for front in fronts if front.workers == workers}
    some = [result for result in results if result.label in labels]
    return [result for result in some if result.name == OURS], [result for result in some if result.name != OURS]


def title(what: str, connections: int, threads: int, rounds: int, seconds: float) -> str:
    return f"{what}: {connections} connections, wrk -t{threads}, medians of {rounds} runs of {seconds:g} s"


def php_report(
    heading: str, fronts: Sequence[Front], results: Sequence[Result], connections: int
) -> tuple[str, list[Target]]:
    """The table of one number of connections; fronts are compared with those of as many workers."""
    notes: list[str] = []
    targets: list[Target] = []
    for workers in WORKERS:
        ours, peers = pick(fronts, results, workers)
        what = f"php-fpm ×{CHILDREN}, {connections} connections, {counted(workers)}"
        for result in ours:
            if peers:
                lines, found = ratios(what, result, peers, BOUNDS.get((connections, workers == 1), Bound()))
                notes += lines
                targets += found
            targets.append(errors_of(what, result))
            notes.append(str(targets[-1]))
    peers = [result for result in results if result.name != OURS]
    if peers:
        best = max(peers, key=lambda result: result.rate)
        for result in (result for result in results if result.name == OURS):
            ratio = result.rate / best.rate
            notes.append(f"{result.label}: requests/s, ours / the fastest of all, {best.label}: {ratio:.2f} ×")
    return table(heading, HEAD, [result.row() for result in results], notes), targets


def wsgi_report(heading: str, results: Sequence[Result]) -> tuple[str, list[Target]]:
    """Our best setting against the best of each kind of flup."""
    targets: list[Target] = []
    ours = [result for result in results if result.name == OURS]
    notes: list[str] = []
    if ours:
        best = max(ours, key=lambda result: result.rate)
        for kind, bound in (("flup forked", LEAST_OF_FORKED), ("flup threaded", LEAST_OF_THREADED)):
            peers = [result for result in results if kind in result.label]
            if peers:
                peer = max(peers, key=lambda result: result.rate)
                what = f"WSGI: requests/s, {best.label} / {peer.label}"
                targets.append(Target(what, best.rate / peer.rate, bound, True, " ×"))
                notes.append(f"WSGI: p99, {best.label} / {peer.label}: {best.p99 / peer.p99:.2f} × (no target)")
        targets += [errors_of(f"WSGI: {result.label}", result) for result in ours]
    return table(heading, HEAD, [result.row() for result in results], [*map(str, targets), *notes]), targets
