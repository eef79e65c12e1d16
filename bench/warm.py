"""The benchmark of warm CGI: scripts from interpreters that have started already, beside peers that start them anew.

python -m bench.warm                        everything
python -m bench.warm --quick                in short
python -m bench.warm --help                 all options
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import session
from bench.processes import Children
from bench.servers import PEERS, Gateway, Running, Server
from bench.site import BENCH, REPOSITORY, Site, build, program_path
from bench.table import Target, table
from bench.throughput import HEAD, Result, as_json, measure

WARM, REUSE, COLD = Gateway("--warm", "warm"), Gateway("--warm reuse", "reuse"), Gateway("", "cold")
SERVERS: tuple[Server, ...] = (WARM, REUSE, COLD, *PEERS)
NAMES = tuple(server.name for server in SERVERS)


@dataclass(frozen=True)
class Program:
    """A script that is measured, and how many times the rate of the best peer it is to have."""

    words: str
    warm: float
    reuse: float = 0


PROGRAMS = {
    "python": Program("python3 print", 8, 50),
    "modules": Program("python3 + json, html, urllib.parse", 15),
    "perl": Program("perl + CGI.pm", 4),
}
PRIVATE = 3.0  # MiB of a Python child that waits


def build_scripts(root: Path, children: Children) -> Site:
    """Add to the common programs those of this benchmark, under interpreters that all servers find."""
    site = build(root, children)
    interpreter = (site.programs / "hello-python").read_text().splitlines()[0]
    text = (BENCH / "programs" / "modules.py").read_text().splitlines(keepends=True)
    (site.programs / "hello-modules").write_text(f"{interpreter}\n" + "".join(text[1:]))
    shutil.copy(BENCH / "programs" / "cgi.pl", site.programs / "hello-perl")
    for name in ("modules", "perl"):
        (site.programs / f"hello-{name}").chmod(0o755)
    return site


def compare(program: Program, results: Sequence[Result]) -> list[Target]:
    """Our ratios to the fastest peer."""
    peers = [result for result in results if result.name in {peer.name for peer in PEERS}]
    if not peers:
        return []
    best = max(peers, key=lambda result: result.rate)
    targets = []
    for result in results:
        bound = {WARM.name: program.warm, REUSE.name: program.reuse}.get(result.name, 0)
        if bound:
            what = f"{program.words}: {result.label}"
            targets.append(
                Target(f"{what}: requests/s, ours / {best.label}", result.rate / best.rate, bound, True, " ×")
            )
            targets.append(Target(f"{what}: our p99 / its median", result.p99 / best.p50, 1, False, " ×"))
            targets.append(Target(f"{what}: our errors", result.errors, 0, False))
    return targets


def private_memory(server: Running) -> list[float]:
    """Return what each child that waits has for itself alone, in MiB (proc(5), smaps_rollup)."""
    bootstrap = str(REPOSITORY / "gateway" / "cgi" / "warm" / "bootstrap.py").encode()
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if bootstrap in (entry / "cmdline").read_bytes().split(b"\0"):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = []
    # The interpreter and its children are all the spawner's; the interpreter is the one that was there first.
    for spawner in set(parents.values()):
        for pid in sorted(pid for pid, parent in parents.items() if parent == spawner)[1:]:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
    return found


class Benchmark(session.Session):
    """All programs under all servers, and the memory of what waits."""

    def run(self) -> None:
        paths = [program_path(program) for program in PROGRAMS]
        servers = self.start([server for server in SERVERS if server.name in self.given.servers], paths)
        kept: dict[str, object] = {}
        for name, program in PROGRAMS.items():
            wanted = [server for server in servers if server.name != REUSE.name or program.reuse]
            found = measure(self.wrk, wanted, program_path(name), self.given.rounds, self.given.seconds)
            targets = compare(program, found)
            title = f"{program.words}: 16 connections, medians of {self.given.rounds} runs of {self.given.seconds:g} s"
            self.show(table(title, HEAD, [result.row() for result in found], list(map(str, targets))), targets)
            kept[name] = as_json(found)
        for server in servers:
            if server.name == WARM.name:
                most = max(private_memory(server), default=0.0)
                target = Target("private memory of a Python child that waits, MiB", most, PRIVATE, False)
                self.show(f"\n{target}", [target])
        self.results["warm"] = kept
        self.stop(servers)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.warm", description=(__doc__ or "").splitlines()[0])
    session.add_common_options(parser, NAMES, rounds=5, seconds=4)
    given = parser.parse_args()
    given.servers = given.servers.split(",")
    session.refuse_unknown(parser, given.servers, NAMES)
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 4.0)
    return given


def main() -> int:
    return session.run(arguments(), SERVERS, build_scripts, Benchmark)


if __name__ == "__main__":
    sys.exit(main())
