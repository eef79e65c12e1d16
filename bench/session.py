"""One run of a benchmark: what it started, what it printed, what it missed."""

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

from bench.limits import raise_descriptor_limit
from bench.load import Wrk
from bench.processes import Children, StartFailed, busy_share
from bench.servers import CPUS, OURS, Missing, Running, Server, check
from bench.site import Site
from bench.table import Target


def add_common_options(parser: argparse.ArgumentParser, names: Sequence[str], *, rounds: int, seconds: float) -> None:
    """Options that the benchmarks share. `names` are of the servers; the numbers are the defaults of long runs."""
    add = parser.add_argument
    add("--quick", action="store_true", help="short runs: to see that it works, not to compare")
    add("--servers", default=",".join(names), help="comma-separated, of: %(default)s")
    add("--rounds", type=int, help=f"interleaved rounds ({rounds}; quick: 2)")
    add("--seconds", type=float, help=f"of one run ({seconds:g}; quick: 2)")
    add("--wrk-threads", type=int, default=2, help="of the load generator (%(default)s)")
    add("--wait-quiet", type=float, default=0, metavar="S", help="before each run of wrk, wait so long for idle CPUs")
    add("--gateway-options", default="", help="more options for our server, in one argument")
    add("--require-peers", action="store_true", help="a server that is not there is a failure")
    add("--require-targets", action="store_true", help="a missed target is a failure")
    add("--json", type=Path, metavar="FILE", help="write all results to FILE")


def refuse_unknown(parser: argparse.ArgumentParser, words: Sequence[str], known: Sequence[str]) -> None:
    for word in words:
        if word not in known:
            parser.error(f"{word!r} is none of {', '.join(known)}")


class Session:
    """The servers that one run started, the tables it printed, the results it keeps."""

    def __init__(self, given: argparse.Namespace, site: Site, children: Children) -> None:
        self.given = given
        self.site = site
        self.children = children
        self.wrk = Wrk(children, given.wrk_threads, given.wait_quiet)
        self.absent: dict[str, str] = {}
        self.is_broken = False  # our own server did not start, though all that it needs is there
        self.targets: list[Target] = []
        self.results: dict[str, object] = {}

    def start(self, wanted: Sequence[Server], paths: Sequence[str]) -> list[Running]:
        """Those of the servers that are there and answer for `paths`; of the others is said why not."""
        started = []
        for server in wanted:
            try:
                running = server.start(self.site, self.children)
                check(running, paths)
                started.append(running)
            except (Missing, StartFailed) as error:
                self.absent[server.label] = str(error)
                self.is_broken |= server.name == OURS and isinstance(error, StartFailed)
                print(f"without {server.label}: {error}", flush=True)
        return started

    def stop(self, servers: Sequence[Running]) -> None:
        for server in servers:
            for child in (server.child, *server.helpers, *server.backends):
                self.children.stop(child)

    def show(self, text: str, targets: Sequence[Target] = ()) -> None:
        print(text, flush=True)
        self.targets += targets

    def run(self) -> None:
        raise NotImplementedError


def machine(servers: Sequence[Server]) -> dict[str, object]:
    versions = {}
    for server in servers:
        try:
            versions[server.name] = server.version()
        except Missing as error:
            versions[server.name] = str(error)
    return {"cpus": CPUS, "kernel": platform.release(), "python": platform.python_version(), "versions": versions}


def finish(session: Session, about: dict[str, object]) -> int:
    """Print what was missed, write the results; the exit status."""
    given = session.given
    missed = [target for target in session.targets if not target.is_met]
    if session.targets:
        print(f"\n{len(session.targets) - len(missed)} of {len(session.targets)} targets met")
    for target in missed:
        print(target)
    for label, why in session.absent.items():
        print(f"not compared: {label}: {why}")
    if given.json:
        known = {"machine": about, "quick": given.quick, "absent": session.absent}
        targets = [{**asdict(target), "met": target.is_met} for target in session.targets]
        given.json.write_text(json.dumps({**known, "targets": targets, **session.results}, indent=1) + "\n")
    failed = session.is_broken or (given.require_peers and session.absent) or (given.require_targets and missed)
    return 1 if failed else 0


def run(
    given: argparse.Namespace,
    servers: Sequence[Server],
    build: Callable[[Path, Children], Site],
    kind: Callable[[argparse.Namespace, Site, Children], Session],
) -> int:
    """Run a benchmark in a temporary directory, and stop whatever it started; the exit status."""
    raise_descriptor_limit()
    about = machine(servers)
    print(f"{CPUS} CPUs, {busy_share(1):.0%} busy with other work; Linux {about['kernel']}; process {os.getpid()}")
    for name, version in dict(about["versions"]).items():  # type: ignore[call-overload]
        print(f"  {name}: {version}")
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as root, Children() as children:
            session = kind(given, build(Path(root), children), children)
            session.run()
    except (Missing, StartFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    return finish(session, about)
