"""What idle kept connections cost: resident memory each, and speed of the CGI programs beside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from bench.load import Load, Wrk
from bench.processes import Child, Children, descendants, resident_bytes
from bench.servers import Running
from bench.site import REPOSITORY, program_path
from bench.table import Target, table

CONNECTIONS = 10_000
MOST_KIB = 16.0  # of resident memory for each
LEAST_SPEED = 0.9  # × the speed without them
# For the server under test: nothing may time out while we measure.
OPTIONS = "--keepalive-timeout 900"
PROGRAM = "c"


@dataclass
class Result:
    """Resident bytes of the server's processes, and the wrk runs beside idle connections and without any."""

    connections: int
    before: int
    held: int
    after: int
    still_open: int
    beside: list[Load]
    without: list[Load]

    @property
    def kib_each(self) -> float:
        return (self.held - self.before) / self.connections / 1024

    @property
    def speed(self) -> float:
        return median(run.rate for run in self.beside) / median(run.rate for run in self.without)


def resident(server: Running) -> int:
    """Of the server and all its processes."""
    pids = [server.child.pid, *(process.pid for process in descendants(server.child.pid))]
    return sum(map(resident_bytes, pids))


def hold(children: Children, server: Running, count: int) -> Child:
    argv = [sys.executable, "-m", "bench.holder", "--port", str(server.port), "--count", str(count)]
    holder = children.start("holder", argv, server.child.log.parent / "holder.log", cwd=REPOSITORY)
    holder.wait_until(lambda: "holding" in holder.output, "connections", deadline=120)
    return holder


def measure(wrk: Wrk, crowded: Running, empty: Running, *, count: int, rounds: int, seconds: float) -> Result:
    """Two servers of one kind, one with the idle connections, one without, are asked in turns."""
    path = program_path(PROGRAM)
    for server in (crowded, empty):
        wrk.run(server, "/", 1)
        wrk.run(server, path, 1)
    before = resident(crowded)
    holder = hold(wrk.children, crowded, count)
    held = resident(crowded)
    beside, without = [], []
    for _ in range(rounds):
        beside.append(wrk.run(crowded, path, seconds))
        without.append(wrk.run(empty, path, seconds))
    holder.tell()
    said = holder.finish(60)
    wrk.children.stop(holder)
    wrk.run(crowded, "/", 1)  # the server has seen the ends of the connections when it has answered this
    after = resident(crowded)
    return Result(count, before, held, after, int(said.split()[-1]), beside, without)


def report(results: Sequence[tuple[str, Result]]) -> tuple[str, list[Target]]:
    rows, targets = [], []
    for label, result in results:
        errors = sum(run.errors for run in result.beside)
        rows.append(
            [
                label,
                *(f"{size / 2**20:.1f}" for size in (result.before, result.held, result.after)),
                f"{result.kib_each:.2f}",
                f"{median(run.rate for run in result.without):,.0f}",
                f"{median(run.rate for run in result.beside):,.0f}",
                f"{result.speed:.2f}",
                f"{result.still_open:,}",
            ]
        )
        targets += [
            Target("idle: resident memory of a connection", result.kib_each, MOST_KIB, False, " KiB"),
            Target("idle: CGI speed beside them / without", result.speed, LEAST_SPEED, True, " ×"),
            Target("idle: connections lost", result.connections - result.still_open, 0, False),
            Target("idle: errors of the CGI load", errors, 0, False),
        ]
    head = ["server", "MiB before", "held", "after", "KiB each", "req/s without", "req/s beside", "ratio", "still open"]
    counts = " and ".join(f"{result.connections:,}" for _, result in results)
    title = f"{counts} idle kept connections, each after one GET /; memory of all processes; CGI is compiled C"
    return table(title, head, rows, [str(target) for target in targets]), targets


def as_json(results: Sequence[tuple[str, Result]]) -> list[dict[str, object]]:
    return [
        {"label": label, **asdict(result), "kib_each": result.kib_each, "speed": result.speed}
        for label, result in results
    ]
