"""System calls per request of each of our processes, counted by strace."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import start_constant_rate
from bench.processes import Child, Children, command_line, descendants
from bench.servers import Running, find
from bench.table import table

RATE = 100  # requests/s: slow enough for a traced server
SECONDS = 5.0


@dataclass(frozen=True)
class Counted:
    """One process: calls per request, by name."""

    pid: int
    command: str
    calls: dict[str, float]


def trace(children: Children, server: Running) -> list[tuple[int, Child]]:
    """One strace for each process. Children that it starts are followed until they become the program (exec)."""
    strace = find("strace")
    tracers = []
    for process in descendants(server.child.pid):
        log = server.child.log.parent / f"strace-{process.pid}.log"
        argv = [strace, "-c", "-f", "-b", "execve", "-U", "name,calls", "-p", str(process.pid)]
        tracer = children.start("strace", argv, log)
        tracer.wait_until(lambda tracer=tracer: "attached" in tracer.output, "attaching")  # type: ignore[misc]
        tracers.append((process.pid, tracer))
    return tracers


def parse(output: str) -> dict[str, int]:
    """The lines `name calls` between the rules of strace's summary."""
    calls = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit() and words[0] != "total":
            calls[words[0]] = int(words[1])
    return calls


def measure(children: Children, server: Running, path: str) -> list[Counted]:
    commands = {process.pid: command_line(process.pid) for process in descendants(server.child.pid)}
    tracers = trace(children, server)
    load = start_constant_rate(children, server, path, rate=RATE, seconds=SECONDS)
    load.finish(60)
    children.stop(load)
    time.sleep(0.2)
    found = []
    for pid, tracer in tracers:
        tracer.process.send_signal(signal.SIGINT)
        tracer.process.wait(20)
        calls = {name: number / (RATE * SECONDS) for name, number in parse(tracer.output).items()}
        found.append(Counted(pid, commands.get(pid, ""), calls))
        children.stop(tracer)
    return found


def report(program: str, found: Sequence[Counted]) -> str:
    """Calls that happen at least once in a hundred requests."""
    names = sorted({name for counted in found for name in counted.calls})
    sums = {name: sum(counted.calls.get(name, 0) for counted in found) for name in names}
    shown = sorted((name for name in names if sums[name] >= 0.01), key=lambda name: -sums[name])
    rows = [[name, *(f"{counted.calls.get(name, 0):.2f}" for counted in found), f"{sums[name]:.2f}"] for name in shown]
    totals = [sum(counted.calls.values()) for counted in found]
    rows.append(["all", *(f"{total:.2f}" for total in totals), f"{sum(totals):.2f}"])
    title = f"System calls per request ({program}), {RATE} requests/s; programs are followed until exec"
    notes = [f"{counted.pid}: {counted.command}" for counted in found]
    return table(title, ["call", *(str(counted.pid) for counted in found), "sum"], rows, notes)
