"""The benchmark of the front itself: TLS beside nginx, and what routing, logging and limits cost.

python -m bench.front                       everything
python -m bench.front tls --quick           one part, in short
python -m bench.front --help                all options
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import session
from bench.fastcgi_servers import SOCKET, OurPool
from bench.load import Load, Wrk
from bench.processes import Children, StartFailed, wait_for_quiet
from bench.servers import (
    CPUS,
    OURS,
    FileNginx,
    Running,
    Server,
    find,
    free_port,
    start_gateway,
)
from bench.site import REPOSITORY, Site
from bench.table import Target, table
from bench.throughput import HEAD, Result, as_json, measure

PARTS = ("tls", "extras")
PAGE, SIZE = "/hello.txt", 16
CLIENTS = 4  # processes that do handshakes
CERTIFICATE, KEY = "cert.pem", "key.pem"
# × nginx's.
BOUNDS = {"kept": 0.6, "full": 0.5, "resumed": 0.5}
WHAT = {"kept": "requests/s on kept connections", "full": "full handshakes/s", "resumed": "resumed handshakes/s"}
LEAST_OF_BARE = 0.9  # × the same server without all that
ROUTES = 30
# nginx with TLS, its tickets, and files that it keeps open.
NGINX = FileNginx("nginx-tls.conf", "https", (("CERTIFICATE", CERTIFICATE), ("KEY", KEY)))


@dataclass(frozen=True)
class Gateway:
    """This project's server with TLS."""

    options: tuple[str, ...] = ()
    workers: int = CPUS
    name: str = OURS

    @property
    def label(self) -> str:
        return " ".join((self.name, f"×{self.workers}", *self.options))

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    def start(self, site: Site, children: Children) -> Running:
        work = site.work(f"gateway-{free_port()}")
        options = ["--static", str(site.documents), "--workers", str(self.workers), *self.options]
        options += ["--tls-cert", str(site.root / CERTIFICATE), "--tls-key", str(site.root / KEY)]
        child, port = start_gateway(children, work, options)
        return Running(self.name, self.label, port, child, scheme="https")


SERVERS: tuple[Server, ...] = (Gateway(), NGINX)
NAMES = tuple(server.name for server in SERVERS)


@dataclass(frozen=True)
class Front:
    """This project's server before a FastCGI server, with one worker: bare, or with what a site switches on."""

    is_bare: bool
    name: str = OURS

    @property
    def label(self) -> str:
        return "bare" if self.is_bare else f"{ROUTES} routes, rewrites, limits, log"

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    def start(self, site: Site, children: Children) -> Running:
        port = free_port()
        work = site.work(f"front-{port}")
        backend = OurPool()
        behind = backend.start(site, children, work)
        (work / "gateway.toml").write_text(self._configuration(port, work, backend.children))
        argv = [sys.executable, "-m", "gateway", "--config", str(work / "gateway.toml")]
        child = children.start("gateway", argv, work / "gateway.log", cwd=REPOSITORY)
        child.wait_until(lambda: "gateway: ready" in child.output, "line 'gateway: ready'")
        return Running(self.name, self.label, port, child, backends=(behind,))

    def _configuration(self, port: int, work: Path, connections: int) -> str:
        log = "off" if self.is_bare else str(work / "access.log")
        answers = f'fastcgi = "unix:{work / SOCKET}"\nconnections = {connections}\n'
        text = f'[server]\nlisten = ["127.0.0.1:{port}"]\nworkers = 1\naccess_log = "{log}"\nlog_format = "json"\n'
        if self.is_bare:
            return f'{text}[[routes]]\npath = "/"\n{answers}'
        text += '[clients]\nlimit_rate = "9999999/s,burst=100000"\nlimit_connections = 10000\n'
        for number in range(ROUTES - 1):
            text += f'[[routes]]\npath = "/part{number}/"\nhosts = ["www{number}.example.org", "*.of{number}.test"]\n'
            text += f'methods = ["GET", "POST"]\n{answers}'
        text += '[[routes]]\npath = "/"\nhosts = ["127.0.0.1", "localhost"]\nmethods = ["GET", "POST"]\n'
        text += f'headers = {{ X-Frame-Options = "DENY", Referrer-Policy = "same-origin" }}\n{answers}'
        for number in range(3):
            text += f'[[rewrites]]\nmatch = "^/old{number}/(.*)$"\nto = "/new{number}/$1"\n'
        return text


def build(root: Path, _: Children) -> Site:
    """A page and a certificate, of an elliptic curve as is usual."""
    site = Site(root)
    root.chmod(0o755)
    site.documents.mkdir()
    (site.documents / PAGE[1:]).write_bytes(b"hello".ljust(SIZE, b"."))
    command = [find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(root / KEY), "-out", str(root / CERTIFICATE)]
    subprocess.run(command, check=True, capture_output=True)
    return site


class Benchmark(session.Session):
    """Both parts."""

    def handshakes(self, server: Running, kind: str) -> Load:
        """Have handshakes done for a while."""
        wait_for_quiet(self.given.wait_quiet)
        seconds = self.given.seconds
        argv = [sys.executable, "-m", "bench.handshakes", "--port", str(server.port), "--path", PAGE]
        argv += ["--seconds", str(seconds), "--clients", str(CLIENTS), *(["--resumed"] if kind == "resumed" else [])]
        before = Wrk.cpu(server)
        log = server.child.log.parent / "handshakes.log"
        seen = json.loads(self.children.run("handshakes", argv, log, deadline=seconds + 60, cwd=REPOSITORY))
        used = Wrk.cpu(server) - before
        if not seen["done"]:
            raise StartFailed(f"{server.label}: no handshake was done")
        return Load(seen["rate"], 0, 0, used * 1000 / seen["done"], seen["failed"])

    def compare(self, kind: str, found: Sequence[Result]) -> None:
        """Show one kind of load."""
        values = {result.name: result for result in found}
        targets = []
        if len(values) > 1:
            ours, nginx = values[OURS], values["nginx"]
            what = f"TLS: {WHAT[kind]}, ours / {nginx.label}"
            targets.append(Target(what, ours.rate / nginx.rate, BOUNDS[kind], True, " ×"))
        targets += [Target("our errors", result.errors, 0, False) for result in found if result.name == OURS]
        notes = [*map(str, targets)]
        if len(values) > 1:
            notes.append(f"own CPU for each, {nginx.label} / ours: {nginx.cpu / ours.cpu:.2f} × (no target)")
        title = f"TLS, {WHAT[kind]}: medians of {self.given.rounds} runs of {self.given.seconds:g} s"
        self.show(table(title, HEAD, [result.row() for result in found], notes), targets)
        self.results[kind] = as_json(found)

    def tls(self) -> None:
        options = tuple(self.given.gateway_options.split())
        wanted: list[Server] = [Gateway(options), NGINX]
        servers = self.start([server for server in wanted if server.name in self.given.servers], [])
        self.compare("kept", measure(self.wrk, servers, PAGE, self.given.rounds, self.given.seconds))
        for kind in ("full", "resumed"):
            results = [Result(server.name, server.label) for server in servers]
            for _ in range(self.given.rounds):
                for running, result in zip(servers, results, strict=True):
                    result.runs.append(self.handshakes(running, kind))
            self.compare(kind, results)
        self.stop(servers)

    def extras(self) -> None:
        servers = self.start([Front(is_bare=True), Front(is_bare=False)], ["/"])
        if len(servers) < 2:
            return
        bare, full = found = measure(self.wrk, servers, "/hello", self.given.rounds, self.given.seconds)
        what = f"FastCGI requests/s, {full.label} / {bare.label}"
        targets = [
            Target(what, full.rate / bare.rate, LEAST_OF_BARE, True, " ×"),
            Target("our errors", bare.errors + full.errors, 0, False),
        ]
        notes = [*map(str, targets), f"own CPU, {bare.label} / all of it: {bare.cpu / full.cpu:.2f} × (no target)"]
        title = f"What is switched on, one worker: medians of {self.given.rounds} runs of {self.given.seconds:g} s"
        self.show(table(title, HEAD, [result.row() for result in found], notes), targets)
        self.results["extras"] = as_json(found)
        self.stop(servers)

    def run(self) -> None:
        for part in self.given.parts:
            getattr(self, part)()


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.front", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: both)")
    session.add_common_options(parser, NAMES, rounds=5, seconds=4)
    given = parser.parse_args()
    given.servers = given.servers.split(",")
    session.refuse_unknown(parser, given.servers, NAMES)
    session.refuse_unknown(parser, given.parts, PARTS)
    given.parts = given.parts or list(PARTS)
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 4.0)
    return given


def main() -> int:
    return session.run(arguments(), SERVERS, build, Benchmark)


if __name__ == "__main__":
    sys.exit(main())
