"""The servers that are compared: ours, and the peers with the configurations kept in conf/."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.processes import Child, Children, StartFailed
from bench.site import BENCH, REPOSITORY, Site

HOST = "127.0.0.1"
OURS = "gateway"
CPUS = len(os.sched_getaffinity(0))
MODULE_DIRECTORIES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules")


class Missing(Exception):
    """A server is not installed; the text names what is missing."""


@dataclass(frozen=True)
class Running:
    """A started server."""

    name: str
    label: str
    port: int
    child: Child
    helpers: tuple[Child, ...] = ()
    backends: tuple[Child, ...] = ()  # stopped with it; the CPU time they use is not counted as its own

    scheme: str = "http"

    def url(self, path: str) -> str:
        return f"{self.scheme}://{HOST}:{self.port}{path}"


class Server(Protocol):
    """A server in one setting, not yet started."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    def version(self) -> str: ...

    def start(self, site: Site, children: Children) -> Running: ...


def find(*names: str) -> str:
    """The first of these programs that is installed; the directories of administrators are looked at too."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise Missing(f"{' or '.join(names)} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def fill_in(template: str, work: Path, site: Site, **values: object) -> Path:
    """Write a configuration out of conf/, its @NAMES@ replaced; the path of the result."""
    text = (BENCH / "conf" / template).read_text()
    known = {"WORK": work, "DOCUMENTS": site.documents, **values}
    target = work / template
    target.write_text(re.sub(r"@([A-Z_]+)@", lambda found: str(known.get(found[1], found[0])), text))
    return target


def first_line(argv: Sequence[str]) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        return ((done.stdout or done.stderr).splitlines() or [""])[0].strip()
    return ""


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def start_gateway(children: Children, work: Path, options: Sequence[str]) -> tuple[Child, int]:
    """This project's server, run as a user runs it, with its log in `work`; and its port."""
    if not (REPOSITORY / "gateway" / "__main__.py").exists():
        raise Missing("gateway has no __main__.py")
    argv = [sys.executable, "-m", "gateway", "--listen", f"{HOST}:0", "--access-log", str(work / "access.log")]
    child = children.start("gateway", [*argv, *options], work / "gateway.log", cwd=REPOSITORY)
    child.wait_until(lambda: "gateway: ready" in child.output, "line 'gateway: ready'")
    found = re.search(rf"listening on https?://{re.escape(HOST)}:(\d+)/", child.output)
    if found is None:
        raise StartFailed(f"gateway named no port: {child.last_words()}")
    return child, int(found[1])


@dataclass(frozen=True)
class Nginx:
    """nginx with fcgiwrap: its FastCGI children start the programs."""

    children: int = 4
    keep: bool = False
    workers: int = CPUS
    name: str = "nginx"

    @property
    def label(self) -> str:
        keep = ", kept connections" if self.keep else ""
        workers = "" if self.workers == CPUS else f", {self.workers} workers"
        return f"nginx + fcgiwrap ×{self.children}{keep}{workers}"

    def version(self) -> str:
        return first_line([find("nginx"), "-v"]).removeprefix("nginx version: ")

    def start(self, site: Site, children: Children) -> Running:
        nginx, fcgiwrap = find("nginx"), find("fcgiwrap")
        port = free_port()
        work = site.work(f"nginx-{port}")
        user = pwd.getpwuid(os.geteuid()).pw_name
        config = fill_in(
            "nginx-fcgiwrap.conf",
            work,
            site,
            PORT=port,
            WORKERS=self.workers,
            USER=f"user {user};" if os.geteuid() == 0 else "",
            KEEPALIVE=f"keepalive {max(1, self.children // self.workers)};" if self.keep else "",
            KEEP_CONN="on" if self.keep else "off",
        )
        address = work / "fcgiwrap.sock"
        pool = [fcgiwrap, "-c", str(self.children), "-s", f"unix:{address}"]
        wrap = children.start("fcgiwrap", pool, work / "fcgiwrap.log", cwd=work)
        wrap.wait_until(address.exists, "socket")
        argv = [nginx, "-p", str(work), "-c", str(config)]
        child = children.start("nginx", argv, work / "nginx.log", cwd=work)
        child.wait_until(lambda: accepts(port), "answer")
        return Running(self.name, self.label, port, child, (wrap,))


@dataclass(frozen=True)
class Apache:
    """Apache with the event MPM; the daemon of mod_cgid starts the programs."""

    processes: int = 1
    threads: int = 32
    name: str = "apache"

    @property
    def label(self) -> str:
        return f"Apache event {self.processes}×{self.threads} + mod_cgid"

    def version(self) -> str:
        return first_line([find("apache2", "httpd"), "-v"]).removeprefix("Server version: ")

    def start(self, site: Site, children: Children) -> Running:
        apache = find("apache2", "httpd")
        modules = next((Path(path) for path in MODULE_DIRECTORIES if Path(path).is_dir()), None)
        if modules is None or not (modules / "mod_cgid.so").exists():
            raise Missing("Apache's mod_cgid is not installed")
        port = free_port()
        work = site.work(f"apache-{port}")
        user = ""
        if os.geteuid() == 0:  # Apache refuses to run its workers as root
            nobody = pwd.getpwnam("nobody")
            user = f"User nobody\nGroup #{nobody.pw_gid}"
        config = fill_in(
            "apache-cgid.conf",
            work,
            site,
            PORT=port,
            MODULES=modules,
            USER=user,
            PROCESSES=self.processes,
            THREADS=self.threads,
            CLIENTS=self.processes * self.threads,
        )
        argv = [apache, "-D", "FOREGROUND", "-f", str(config)]
        child = children.start("apache", argv, work / "apache.log", cwd=work)
        child.wait_until(lambda: accepts(port), "answer")
        return Running(self.name, self.label, port, child)


@dataclass(frozen=True)
class Lighttpd:
    """lighttpd: its workers start the programs themselves."""

    workers: int = CPUS
    stream: int = 0
    name: str = "lighttpd"

    @property
    def label(self) -> str:
        stream = f", streaming {self.stream}" if self.stream else ""
        return f"lighttpd ×{self.workers} + mod_cgi{stream}"

    def version(self) -> str:
        return first_line([find("lighttpd"), "-v"])

    def start(self, site: Site, children: Children) -> Running:
        lighttpd = find("lighttpd")
        port = free_port()
        work = site.work(f"lighttpd-{port}")
        config = fill_in("lighttpd-cgi.conf", work, site, PORT=port, WORKERS=self.workers, STREAM=self.stream)
        argv = [lighttpd, "-D", "-f", str(config)]
        child = children.start("lighttpd", argv, work / "lighttpd.log", cwd=work)
        child.wait_until(lambda: accepts(port), "answer")
        return Running(self.name, self.label, port, child)


@dataclass(frozen=True)
class Gateway:
    """This project's server, run as a user runs it; with `is_static` it serves the files."""

    options: str = ""
    name: str = OURS
    is_static: bool = False

    @property
    def label(self) -> str:
        return " ".join(word for word in (self.name, "--static" if self.is_static else "", self.options) if word)

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    def start(self, site: Site, children: Children) -> Running:
        work = site.work(f"gateway-{free_port()}")
        mount = ["--static", str(site.documents)] if self.is_static else ["--cgi-dir", str(site.programs)]
        child, port = start_gateway(children, work, [*mount, *shlex.split(self.options)])
        return Running(self.name, self.label, port, child)


@dataclass(frozen=True)
class FileNginx:
    """nginx that serves files by `template` of conf/. `files`: names in it, and the files of the site that they are."""

    template: str
    scheme: str = "http"
    files: tuple[tuple[str, str], ...] = ()
    workers: int = CPUS
    name: str = "nginx"

    @property
    def label(self) -> str:
        return f"nginx ×{self.workers}"

    def version(self) -> str:
        return first_line([find("nginx"), "-v"]).removeprefix("nginx version: ")

    def start(self, site: Site, children: Children) -> Running:
        nginx, port = find("nginx"), free_port()
        work = site.work(f"nginx-{port}")
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        files = {name: site.root / file for name, file in self.files}
        config = fill_in(self.template, work, site, PORT=port, WORKERS=self.workers, USER=user, **files)
        child = children.start("nginx", [nginx, "-p", str(work), "-c", str(config)], work / "nginx.log", cwd=work)
        child.wait_until(lambda: accepts(port), "answer")
        return Running(self.name, self.label, port, child, scheme=self.scheme)


PEERS: tuple[Server, ...] = (Nginx(), Apache(), Lighttpd())
NAMES = (OURS, *(peer.name for peer in PEERS))


def check(server: Running, paths: Sequence[str]) -> None:
    """Raise StartFailed unless the server answers for each path, with `hello` for all but its page at `/`."""
    for path in paths:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise StartFailed(f"{server.name}: {path}: {error!r}: {server.child.last_words()}") from error
        finally:
            connection.close()
        if answer.status != 200 or (path != "/" and body.strip() != b"hello"):
            raise StartFailed(f"{server.name}: {path}: status {answer.status}, body {body[:200]!r}")
