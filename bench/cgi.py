"""The CGI benchmark: this server beside lighttpd mod_cgi, Apache mod_cgid and nginx + fcgiwrap.

python -m bench.cgi                         everything
python -m bench.cgi throughput --quick      one part, in short
python -m bench.cgi tune                    settings of the peers against each other
python -m bench.cgi --help                  all options
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench import hello, idle, syscalls, throughput
from bench.limits import raise_descriptor_limit
from bench.load import Wrk
from bench.processes import Children, StartFailed, busy_share
from bench.servers import CPUS, NAMES, OURS, PEERS, Gateway, Missing, Running, Server, check
from bench.site import PROGRAMS, Site, build
from bench.table import Target
from bench.tune import CANDIDATES

PARTS = ("throughput", "hello", "idle")
DESCRIPTORS_TO_SPARE = 500


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cgi", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="throughput, hello, idle (default: all), or tune")
    parser.add_argument("--quick", action="store_true", help="short runs: to see that it works, not to compare")
    parser.add_argument("--servers", default=",".join(NAMES), help="comma-separated, of: %(default)s")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="comma-separated, of: %(default)s")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="of one run (4; quick: 2)")
    parser.add_argument("--connections", type=int, help="idle ones (10000; quick: 1000)")
    parser.add_argument("--wrk-threads", type=int, default=2, help="of the load generator (%(default)s)")
    parser.add_argument(
        "--wait-quiet", type=float, default=0, metavar="S", help="before each run of wrk, wait so long for idle CPUs"
    )
    parser.add_argument("--gateway-options", default="", help="more options for our server, in one argument")
    parser.add_argument("--syscalls", action="store_true", help="count our system calls per request with strace, too")
    parser.add_argument("--require-peers", action="store_true", help="a server that is not there is a failure")
    parser.add_argument("--require-targets", action="store_true", help="a missed target is a failure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to FILE")
    given = parser.parse_args()
    given.servers, given.programs = given.servers.split(","), given.programs.split(",")
    for words, known in ((given.parts, (*PARTS, "tune")), (given.servers, NAMES), (given.programs, tuple(PROGRAMS))):
        for word in words:
            if word not in known:
                parser.error(f"{word!r} is none of {', '.join(known)}")
    given.parts = given.parts or ([] if given.syscalls else list(PARTS))
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 4.0)
    given.connections = given.connections or (1000 if given.quick else idle.CONNECTIONS)
    return given


class Benchmark:
    """One run: the servers it started, the tables it printed, the results it keeps."""

    def __init__(self, given: argparse.Namespace, site: Site, children: Children) -> None:
        self.given = given
        self.site = site
        self.children = children
        self.wrk = Wrk(children, given.wrk_threads, given.wait_quiet)
        self.absent: dict[str, str] = {}
        self.targets: list[Target] = []
        self.results: dict[str, object] = {}

    def start(self, wanted: Sequence[Server]) -> list[Running]:
        """Those of the servers that are there and work; of the others is said why not."""
        started = []
        for server in wanted:
            try:
                running = server.start(self.site, self.children)
                check(running, self.given.programs)
                started.append(running)
            except (Missing, StartFailed) as error:
                self.absent[server.label] = str(error)
                print(f"without {server.label}: {error}", flush=True)
        return started

    def show(self, text: str, targets: Sequence[Target] = ()) -> None:
        print(text, flush=True)
        self.targets += targets

    def stop(self, servers: Sequence[Running]) -> None:
        for server in servers:
            for child in (server.child, *server.helpers):
                self.children.stop(child)

    def selected(self) -> list[Server]:
        every: list[Server] = [Gateway(self.given.gateway_options), *PEERS]
        return [server for server in every if server.name in self.given.servers]

    def show_throughput(self, program: str, found: Sequence[throughput.Result]) -> None:
        self.show(*throughput.report(self.wrk, program, found, seconds=self.given.seconds, absent=self.absent))

    def throughput(self, servers: Sequence[Running]) -> None:
        kept: dict[str, object] = {}
        for program in self.given.programs:
            found = throughput.measure(self.wrk, servers, program, self.given.rounds, self.given.seconds)
            self.show_throughput(program, found)
            kept[program] = throughput.as_json(found)
        self.results["throughput"] = kept

    def hello(self, servers: Sequence[Running]) -> None:
        rounds = max(1, self.given.rounds // 2)
        found = hello.measure(self.children, servers, rounds, self.given.seconds)
        self.show(*hello.report(found))
        self.results["hello"] = hello.as_json(found)

    def idle(self) -> None:
        """Two servers of ours alone: nobody else's memory or processes are in the way."""
        count = min(self.given.connections, raise_descriptor_limit() - DESCRIPTORS_TO_SPARE)
        if count < self.given.connections:
            print(f"{count} idle connections: the hard limit of descriptors (ulimit -Hn) allows no more", flush=True)
        options = f"{self.given.gateway_options} {idle.OPTIONS}".strip()
        pair = self.start([Gateway(options), Gateway(options)])
        if len(pair) == 2:
            rounds = max(2, self.given.rounds // 2 + 1)
            found = idle.measure(self.wrk, *pair, count=count, rounds=rounds, seconds=self.given.seconds)
            self.show(*idle.report([(pair[0].label, found)]))
            self.results["idle"] = idle.as_json([(pair[0].label, found)])
        self.stop(pair)

    def syscalls(self) -> None:
        started = self.start([Gateway(self.given.gateway_options)])
        for server in started:
            program = self.given.programs[0]
            found = syscalls.measure(self.children, server, program)
            self.show(syscalls.report(program, found))
            self.results["syscalls"] = [asdict(counted) for counted in found]
        self.stop(started)

    def tune(self) -> None:
        """Each peer's settings, program by program."""
        kept: dict[str, object] = {}
        for name, candidates in CANDIDATES.items():
            if name in self.given.servers:
                servers = self.start(candidates)
                for program in self.given.programs:
                    found = throughput.measure(self.wrk, servers, program, self.given.rounds, self.given.seconds)
                    self.show_throughput(program, found)
                    kept[f"{name} {program}"] = throughput.as_json(found)
                self.stop(servers)
        self.results["tune"] = kept

    def run(self) -> None:
        servers: list[Running] = []
        parts: dict[str, Callable[[], None]] = {
            "tune": self.tune,
            "throughput": lambda: self.throughput(servers),
            "hello": lambda: self.hello(servers),
        }
        if {"throughput", "hello"} & set(self.given.parts):
            servers = self.start(self.selected())
        for name, part in parts.items():
            if name in self.given.parts:
                part()
        self.stop(servers)
        if "idle" in self.given.parts and OURS in self.given.servers:
            self.idle()
        if self.given.syscalls:
            self.syscalls()


def machine() -> dict[str, object]:
    versions = {}
    for server in (Gateway(), *PEERS):
        try:
            versions[server.name] = server.version()
        except Missing as error:
            versions[server.name] = str(error)
    return {"cpus": CPUS, "kernel": platform.release(), "python": platform.python_version(), "versions": versions}


def finish(benchmark: Benchmark) -> int:
    """Print what was missed, write the results; the exit status."""
    given = benchmark.given
    missed = [target for target in benchmark.targets if not target.is_met]
    if benchmark.targets:
        print(f"\n{len(benchmark.targets) - len(missed)} of {len(benchmark.targets)} targets met")
    for target in missed:
        print(target)
    for label, why in benchmark.absent.items():
        print(f"not compared: {label}: {why}")
    if given.json:
        about = {"machine": machine(), "quick": given.quick, "absent": benchmark.absent}
        targets = [{**asdict(target), "met": target.is_met} for target in benchmark.targets]
        given.json.write_text(json.dumps({**about, "targets": targets, **benchmark.results}, indent=1) + "\n")
    ours = [label for label in benchmark.absent if label.startswith(OURS)]
    failed = ours or (given.require_peers and benchmark.absent) or (given.require_targets and missed)
    return 1 if failed else 0


def main() -> int:
    given = arguments()
    raise_descriptor_limit()
    about = machine()
    print(f"{CPUS} CPUs, {busy_share(1):.0%} busy with other work; Linux {about['kernel']}; process {os.getpid()}")
    for name, version in dict(about["versions"]).items():  # type: ignore[call-overload]
        print(f"  {name}: {version}")
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as root, Children() as children:
            benchmark = Benchmark(given, build(Path(root), children), children)
            benchmark.run()
    except (Missing, StartFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    return finish(benchmark)


if __name__ == "__main__":
    sys.exit(main())
