"""The benchmark of files: a small one again and again, and a large one, beside nginx and Apache with the event MPM.

python -m bench.static                      everything
python -m bench.static small --quick        one part, in short
python -m bench.static --syscalls           our system calls per request of the small file
python -m bench.static --help               all options
"""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import session, syscalls
from bench.processes import Children, StartFailed, wait_for_quiet
from bench.servers import (
    HOST,
    MODULE_DIRECTORIES,
    OURS,
    FileNginx,
    Gateway,
    Missing,
    Running,
    Server,
    accepts,
    fill_in,
    find,
    first_line,
    free_port,
)
from bench.site import Site
from bench.table import Target, table
from bench.throughput import HEAD, Result, as_json, measure

MIB = 2**20
PARTS = ("small", "large")
SMALL, LARGE = "small.bin", "large.bin"
SIZE = 1024  # bytes of the small file
# × each peer: requests/s of the small file, MB/s of the large one.
TARGETS = {"small": {"apache": 1.5, "nginx": 0.5}, "large": {"nginx": 0.8}}
# nginx with sendfile and open files that it keeps for a minute.
NGINX = FileNginx("nginx-static.conf")


@dataclass(frozen=True)
class Apache:
    """Apache with the event MPM."""

    processes: int = 1
    threads: int = 32
    name: str = "apache"

    @property
    def label(self) -> str:
        return f"Apache event {self.processes}×{self.threads}"

    def version(self) -> str:
        return first_line([find("apache2", "httpd"), "-v"]).removeprefix("Server version: ")

    def start(self, site: Site, children: Children) -> Running:
        apache, port = find("apache2", "httpd"), free_port()
        modules = next((Path(path) for path in MODULE_DIRECTORIES if Path(path).is_dir()), None)
        if modules is None:
            raise Missing("Apache's modules are not installed")
        work = site.work(f"apache-{port}")
        nobody = f"User nobody\nGroup #{pwd.getpwnam('nobody').pw_gid}" if os.geteuid() == 0 else ""
        known = {"PORT": port, "MODULES": modules, "USER": nobody, "PROCESSES": self.processes}
        clients = self.processes * self.threads
        config = fill_in("apache-static.conf", work, site, THREADS=self.threads, CLIENTS=clients, **known)
        argv = [apache, "-D", "FOREGROUND", "-f", str(config)]
        child = children.start("apache", argv, work / "apache.log", cwd=work)
        child.wait_until(lambda: accepts(port), "answer")
        return Running(self.name, self.label, port, child)


PEERS: tuple[Server, ...] = (NGINX, Apache())
NAMES = (OURS, *(peer.name for peer in PEERS))


@dataclass
class Speeds:
    """MB/s (10^6 bytes) of each download from one server."""

    name: str
    label: str
    runs: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return median(self.runs)

    def row(self) -> list[str]:
        return [self.label, f"{self.speed:,.0f}", f"{min(self.runs):,.0f}–{max(self.runs):,.0f}"]


def download(server: Running, path: str, size: int) -> float:
    """Seconds from the request to the last byte; what is received is not looked at, so that the client is cheap."""
    piece = bytearray(MIB)
    begin = time.perf_counter()
    with socket.create_connection((HOST, server.port), 60) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        got = 0
        head = b""
        while count := client.recv_into(piece):
            if not head:
                head = bytes(piece[:count]).partition(b"\r\n\r\n")[0]
                count -= len(head) + 4
            got += count
    took = time.perf_counter() - begin
    if not head.startswith(b"HTTP/1.1 200 ") or got != size:
        raise StartFailed(f"{server.label}: {got} bytes of {size} came, after {head[:15]!r}")
    return took


def build_files(root: Path, mib: int) -> Site:
    """A page, a small file and a large one, which is sparse: nothing here depends on what is in it."""
    site = Site(root)
    root.chmod(0o755)
    site.documents.mkdir()
    (site.documents / "index.html").write_text("<!DOCTYPE html><title>hello</title><p>hello\n")
    (site.documents / SMALL).write_bytes(os.urandom(SIZE))
    with (site.documents / LARGE).open("wb") as file:
        file.truncate(mib * MIB)
    return site


def compare(part: str, what: str, values: dict[str, tuple[str, float]]) -> list[Target]:
    """Our ratios to the peers that there is a target for; `values` are label and value by name."""
    targets = []
    for peer, bound in TARGETS[part].items():
        if OURS in values and peer in values:
            label, value = values[peer]
            targets.append(Target(f"{what}, ours / {label}", values[OURS][1] / value, bound, True, " ×"))
    return targets


class Benchmark(session.Session):
    """Both parts under all servers."""

    def small(self, servers: Sequence[Running]) -> None:
        found: list[Result] = measure(self.wrk, servers, f"/{SMALL}", self.given.rounds, self.given.seconds)
        values = {result.name: (result.label, result.rate) for result in found}
        targets = compare("small", f"{SIZE} bytes: requests/s", values)
        targets += [Target("our errors", result.errors, 0, False) for result in found if result.name == OURS]
        title = (
            f"A file of {SIZE} bytes: 16 connections, medians of {self.given.rounds} runs of {self.given.seconds:g} s"
        )
        self.show(table(title, HEAD, [result.row() for result in found], list(map(str, targets))), targets)
        self.results["small"] = as_json(found)

    def large(self, servers: Sequence[Running]) -> None:
        size = self.given.mib * MIB
        found = [Speeds(server.name, server.label) for server in servers]
        for server in servers:
            download(server, f"/{LARGE}", size)
        for _ in range(self.given.rounds):
            for server, speeds in zip(servers, found, strict=True):
                wait_for_quiet(self.given.wait_quiet)
                speeds.runs.append(size / 1e6 / download(server, f"/{LARGE}", size))
        values = {speeds.name: (speeds.label, speeds.speed) for speeds in found}
        targets = compare("large", f"{self.given.mib} MiB: MB/s", values)
        title = f"A file of {self.given.mib} MiB, one connection, medians of {self.given.rounds} downloads"
        head = ["server", "MB/s", "least–most"]
        self.show(table(title, head, [speeds.row() for speeds in found], list(map(str, targets))), targets)
        self.results["large"] = {speeds.label: speeds.runs for speeds in found}

    def run(self) -> None:
        wanted = [Gateway(self.given.gateway_options, is_static=True), *PEERS]
        servers = self.start([server for server in wanted if server.name in self.given.servers], ["/"])
        if "small" in self.given.parts:
            self.small(servers)
        if "large" in self.given.parts:
            self.large(servers)
        if self.given.syscalls:
            ours = next(server for server in servers if server.name == OURS)
            self.show(syscalls.report(SMALL, syscalls.measure(self.children, ours, f"/{SMALL}")))
        self.stop(servers)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="small, large (default: both)")
    session.add_common_options(parser, NAMES, rounds=5, seconds=4)
    parser.add_argument("--mib", type=int, help="of the large file (1024; quick: 256)")
    parser.add_argument("--syscalls", action="store_true", help="count our system calls per request with strace, too")
    given = parser.parse_args()
    given.servers = given.servers.split(",")
    session.refuse_unknown(parser, given.servers, NAMES)
    session.refuse_unknown(parser, given.parts, PARTS)
    given.parts = given.parts or ([] if given.syscalls else list(PARTS))
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 4.0)
    given.mib = given.mib or (256 if given.quick else 1024)
    return given


def main() -> int:
    given = arguments()
    servers = (Gateway(is_static=True), *PEERS)
    return session.run(given, servers, lambda root, _: build_files(root, given.mib), Benchmark)


if __name__ == "__main__":
    sys.exit(main())
