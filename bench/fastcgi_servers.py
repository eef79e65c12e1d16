"""FastCGI servers with a front before them: ours or nginx. Each front has a FastCGI server of its own."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.processes import Child, Children
from bench.servers import CPUS, OURS, Missing, Running, accepts, fill_in, find, first_line, free_port
from bench.servers import start_gateway as start_our_front
from bench.site import BENCH, REPOSITORY, Site

CHILDREN = 4
PROGRAMS = BENCH / "programs"
PHP_FPM = ("php-fpm", "php-fpm8.5", "php-fpm8.4", "php-fpm8.3", "php-fpm8.2", "php-fpm8.1")
SOCKET = "f.sock"  # short: the path of a Unix socket has 107 bytes


class Backend(Protocol):
    """A FastCGI server in one setting, not yet started."""

    @property
    def label(self) -> str: ...

    @property
    def children(self) -> int: ...

    @property
    def is_php(self) -> bool:
        """Whether it runs the files of the site, and is not one application."""
        ...

    def version(self) -> str: ...

    def start(self, site: Site, children: Children, work: Path) -> Child:
        """Start it, listening on the socket in `work`."""
        ...


def wait_for_socket(child: Child, work: Path) -> Child:
    child.wait_until((work / SOCKET).exists, "socket")
    return child


@dataclass(frozen=True)
class PhpFpm:
    """php-fpm with so many children, always."""

    children: int = CHILDREN
    is_php: bool = True

    @property
    def label(self) -> str:
        return f"php-fpm ×{self.children}"

    def version(self) -> str:
        return first_line([find(*PHP_FPM), "-v"])

    def start(self, site: Site, children: Children, work: Path) -> Child:
        php_fpm = find(*PHP_FPM)
        temporary = work / "tmp"
        temporary.mkdir()
        temporary.chmod(0o1777)
        user = ""
        if os.geteuid() == 0:  # php-fpm refuses to run its children as root
            nobody = pwd.getpwnam("nobody")
            user = f"user = nobody\ngroup = {nobody.pw_gid}"
        names = {"SOCKET": work / SOCKET, "USER": user, "CHILDREN": self.children, "TEMP": temporary}
        config = fill_in("php-fpm.conf", work, site, **names)
        child = children.start("php-fpm", [php_fpm, "-F", "-y", str(config)], work / "php-fpm.log", cwd=work)
        return wait_for_socket(child, work)


@dataclass(frozen=True)
class Flup:
    """flup with a WSGI application: one process with a thread for each connection, or processes."""

    kind: str  # threaded or forked
    children: int = CHILDREN
    is_php: bool = False

    @property
    def label(self) -> str:
        return "flup threaded" if self.kind == "threaded" else f"flup forked ×{self.children}"

    def version(self) -> str:
        return first_line([sys.executable, "-c", "import importlib.metadata as m; print('flup', m.version('flup'))"])

    def start(self, site: Site, children: Children, work: Path) -> Child:
        argv = [sys.executable, str(PROGRAMS / "flup_server.py"), self.kind, str(work / SOCKET), str(self.children)]
        return wait_for_socket(children.start("flup", argv, work / "flup.log", cwd=PROGRAMS), work)


@dataclass(frozen=True)
class OurPool:
    """Our pool manager with the same WSGI application on our runtime."""

    children: int = CHILDREN
    is_php: bool = False

    @property
    def label(self) -> str:
        return f"our runtime ×{self.children}"

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    def start(self, site: Site, children: Children, work: Path) -> Child:
        if not (REPOSITORY / "fcgi_pool" / "__main__.py").exists():
            raise Missing("fcgi_pool has no __main__.py")
        argv = [sys.executable, "-m", "fcgi_pool", "--listen", f"unix:{work / SOCKET}"]
        argv += ["--children", str(self.children), "--app", "bench_app:application"]
        return wait_for_socket(children.start("fcgi_pool", argv, work / "fcgi_pool.log", cwd=PROGRAMS), work)


def counted(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def running(front: Front, port: int, child: Child, backend: Child) -> Running:
    """php-fpm is the same behind every front; what runs the WSGI application is part of what is compared."""
    if front.backend.is_php:
        return Running(front.name, front.label, port, child, backends=(backend,))
    return Running(front.name, front.label, port, child, helpers=(backend,))


@dataclass(frozen=True)
class Gateway:
    """This project's front, told how many connections the server behind can serve at once."""

    backend: Backend
    workers: int = CPUS
    options: str = ""
    name: str = OURS

    @property
    def label(self) -> str:
        return f"{self.name} {counted(self.workers)} + {self.backend.label} {self.options}".strip()

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    def start(self, site: Site, children: Children) -> Running:
        work = site.work(f"gateway-{free_port()}")
        behind = self.backend.start(site, children, work)
        address = f"unix:{work / SOCKET}"
        if self.backend.is_php:
            options = ["--php", str(site.documents), "--php-server", address]
        else:
            options = ["--fastcgi", f"/={address}"]
        options += ["--connections", str(self.backend.children), "--workers", str(self.workers)]
        child, port = start_our_front(children, work, [*options, *shlex.split(self.options)])
        return running(self, port, child, behind)


@dataclass(frozen=True)
class Nginx:
    """nginx: a connection for each request, or up to `keep` idle ones kept by each of its workers."""

    backend: Backend
    workers: int = CPUS
    keep: int = 0
    is_streaming: bool = False
    name: str = "nginx"

    @property
    def label(self) -> str:
        keep = f", keepalive {self.keep}" if self.keep else ""
        streaming = ", not buffering" if self.is_streaming else ""
        return f"{self.name} {counted(self.workers)}{keep}{streaming} + {self.backend.label}"

    def version(self) -> str:
        return first_line([find("nginx"), "-v"]).removeprefix("nginx version: ")

    def start(self, site: Site, children: Children) -> Running:
        nginx = find("nginx")
        port = free_port()
        work = site.work(f"nginx-{port}")
        behind = self.backend.start(site, children, work)
        user = pwd.getpwuid(os.geteuid()).pw_name
        config = fill_in(
            "nginx-fastcgi.conf",
            work,
            site,
            PORT=port,
            WORKERS=self.workers,
            USER=f"user {user};" if os.geteuid() == 0 else "",
            SOCKET=work / SOCKET,
            KEEPALIVE=f"keepalive {self.keep};" if self.keep else "",
            KEEP_CONN="on" if self.keep else "off",
            BUFFERING="off" if self.is_streaming else "on",
            LOCATION=r"~ \.php$" if self.backend.is_php else "/",
            SCRIPT=PHP_SCRIPT if self.backend.is_php else WSGI_SCRIPT,
        )
        argv = [nginx, "-p", str(work), "-c", str(config)]
        child = children.start("nginx", argv, work / "nginx.log", cwd=work)
        child.wait_until(lambda: accepts(port), "answer")
        return running(self, port, child, behind)


Front = Gateway | Nginx

PHP_SCRIPT = """\
fastcgi_param SCRIPT_NAME $fastcgi_script_name;
            fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;"""
WSGI_SCRIPT = """\
fastcgi_param SCRIPT_NAME "";
            fastcgi_param PATH_INFO $uri;"""


def build(root: Path, children: Children) -> Site:
    """Copy the pages, readable for servers that give up root."""
    site = Site(root)
    root.chmod(0o755)
    site.documents.mkdir()
    for page in PROGRAMS.glob("*.php"):
        target = site.documents / page.name
        target.write_bytes(page.read_bytes())
        target.chmod(0o644)
    return site


# One of each name, for the versions that are printed.
FRONTS: tuple[Front, ...] = (Gateway(PhpFpm()), Nginx(PhpFpm()))
NAMES = tuple(front.name for front in FRONTS)
