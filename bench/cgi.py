"""The CGI benchmark: this server beside lighttpd mod_cgi, Apache mod_cgid and nginx + fcgiwrap.

python -m bench.cgi                         everything
python -m bench.cgi throughput --quick      one part, in short
python -m bench.cgi tune                    settings of the peers against each other
python -m bench.cgi --help                  all options
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from bench import hello, idle, session, syscalls, throughput
from bench.limits import raise_descriptor_limit
from bench.servers import NAMES, OURS, PEERS, Gateway, Running, Server
from bench.site import PROGRAMS, build, program_path
from bench.tune import CANDIDATES

PARTS = ("throughput", "hello", "idle")
DESCRIPTORS_TO_SPARE = 500


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cgi", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="throughput, hello, idle (default: all), or tune")
    session.add_common_options(parser, NAMES, rounds=5, seconds=4)
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="comma-separated, of: %(default)s")
    parser.add_argument("--connections", type=int, help="idle ones (10000; quick: 1000)")
    parser.add_argument("--syscalls", action="store_true", help="count our system calls per request with strace, too")
    given = parser.parse_args()
    given.servers, given.programs = given.servers.split(","), given.programs.split(",")
    for words, known in ((given.parts, (*PARTS, "tune")), (given.servers, NAMES), (given.programs, tuple(PROGRAMS))):
        session.refuse_unknown(parser, words, known)
    given.parts = given.parts or ([] if given.syscalls else list(PARTS))
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 4.0)
    given.connections = given.connections or (1000 if given.quick else idle.CONNECTIONS)
    return given


class Benchmark(session.Session):
    """The parts of this benchmark."""

    @property
    def paths(self) -> list[str]:
        return ["/", *map(program_path, self.given.programs)]

    def selected(self) -> list[Server]:
        every: list[Server] = [Gateway(self.given.gateway_options), *PEERS]
        return [server for server in every if server.name in self.given.servers]

    def show_throughput(self, program: str, found: Sequence[throughput.Result]) -> None:
        self.show(*throughput.report(self.wrk, program, found, seconds=self.given.seconds, absent=self.absent))

    def throughput(self, servers: Sequence[Running]) -> None:
        kept: dict[str, object] = {}
        for program in self.given.programs:
            found = throughput.measure(self.wrk, servers, program_path(program), self.given.rounds, self.given.seconds)
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
        pair = self.start([Gateway(options), Gateway(options)], self.paths)
        if len(pair) == 2:
            rounds = max(2, self.given.rounds // 2 + 1)
            found = idle.measure(self.wrk, *pair, count=count, rounds=rounds, seconds=self.given.seconds)
            self.show(*idle.report([(pair[0].label, found)]))
            self.results["idle"] = idle.as_json([(pair[0].label, found)])
        self.stop(pair)

    def syscalls(self) -> None:
        started = self.start([Gateway(self.given.gateway_options)], self.paths)
        for server in started:
            program = self.given.programs[0]
            found = syscalls.measure(self.children, server, program_path(program))
            self.show(syscalls.report(program, found))
            self.results["syscalls"] = [asdict(counted) for counted in found]
        self.stop(started)

    def tune(self) -> None:
        """Each peer's settings, program by program."""
        kept: dict[str, object] = {}
        for name, candidates in CANDIDATES.items():
            if name in self.given.servers:
                servers = self.start(candidates, self.paths)
                for program in self.given.programs:
                    found = throughput.measure(
                        self.wrk, servers, program_path(program), self.given.rounds, self.given.seconds
                    )
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
            servers = self.start(self.selected(), self.paths)
        for name, part in parts.items():
            if name in self.given.parts:
                part()
        self.stop(servers)
        if "idle" in self.given.parts and OURS in self.given.servers:
            self.idle()
        if self.given.syscalls:
            self.syscalls()


def main() -> int:
    return session.run(arguments(), (Gateway(), *PEERS), build, Benchmark)


if __name__ == "__main__":
    sys.exit(main())
