"""Servers with users and limits, for the tests of what programs may do; most of it needs root."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import misbehaviour, support

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
# Users that nobody else is: two for each process that runs tests, which need no name.
ALICE = 1_000_000_000 + 2 * os.getpid()
BOB = ALICE + 1

WHO = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s %s %s' $(id -u) $(id -g) \"$(id -G)\"\n"
PARENT = "#!/bin/sh\nprintf 'X: y\\n\\n%s %s' $PPID $$\n"
DEAF = "#!/bin/sh\ntrap '' TERM\necho \"running $$\" >&2\nsleep 600\nsleep 600\n"


@dataclass
class Place:
    """A directory that every user may enter, with a configuration file and the programs of its routes."""

    root: Path
    server: str = ""
    routes: dict[str, str] = field(default_factory=dict)
    more: str = ""

    @property
    def file(self) -> Path:
        """The configuration file."""
        return self.root / "gateway.toml"

    def route(self, name: str, keys: str = "", **programs: str) -> None:
        """Have a route at /NAME/ with more keys, and programs."""
        self.routes[name] = keys
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        for program, text in {"who": WHO, "parent": PARENT, "deaf": DEAF, **programs}.items():
            misbehaviour.program(directory / program.replace("_", "-"), text)

    def write(self) -> Path:
        """Write the file, and return its path."""
        text = f'[server]\nlisten = ["127.0.0.1:0"]\nworkers = 1\ntemp_dir = "spool"\n{self.server}\n{self.more}\n'
        for name, keys in self.routes.items():
            text += f'[[routes]]\npath = "/{name}/"\ncgi = "{name}"\n{keys}\n'
        self.file.write_text(text)
        return self.file

    def check(self, *options: str) -> tuple[int, str]:
        """Return the exit status and the words of ``--check``."""
        command = [sys.executable, "-m", "gateway", "--config", str(self.write()), "--check", *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=support.ROOT)
        return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def place() -> Iterator[Place]:
    """A place for a server."""
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        Path(name).chmod(0o755)
        made = Place(Path(name))
        (made.root / "spool").mkdir(mode=0o777)
        (made.root / "spool").chmod(0o777)
        yield made


@pytest.fixture
def run(place: Place, serve: Callable[..., support.Server]) -> Callable[..., support.Server]:
    """Start the server of a place."""

    def start(**more: object) -> support.Server:
        return serve(config=place.write(), temp_dir=place.root / "spool", **more)

    return start


def who(server: support.Server, route: str) -> list[int]:
    """Return user, group and groups of a route's programs."""
    answer = server.get(f"/{route}/who")
    assert answer.status == 200, server.errors.text
    return [int(word) for word in answer.text.split()]


def hold(server: support.Server, route: str) -> tuple[int, socket.socket]:
    """Have a program run that does not end by itself; return its pid, and the client that waits for it."""
    start = len(server.errors.text)
    client = server.socket()
    client.sendall(f"GET /{route}/deaf HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return int(server.errors.wait_for(r"deaf\[\d+\]: running (\d+)", start=start)[1]), client


def status_of(pid: int) -> dict[str, str]:
    """Return what /proc tells of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def uid_of(pid: int) -> int:
    """Return the real user of a process."""
    return int(status_of(pid)["Uid"].split()[0])


def reason(server: support.Server, path: str, status: int) -> str:
    """Ask for what fails; return why the log says it did."""
    start = len(server.errors.text)
    answer = server.get(path)
    assert answer.status == status, server.errors.text[start:]
    return server.errors.wait_for(rf"(?:error|warning) \[\S+\] (.*{re.escape(path.strip('/'))}.*)", start=start)[1]
