"""What the hour of trouble happens to: a site with programs, a pool and files, and clients that ask for all of it."""


from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import pool_load, support
from tests.misbehaviour import program
from tests.reload_support import workers_of
from tests.support import children, state, wait_until

PAGE = """<?php
header('Content-Type: text/plain');
echo $_GET['n'], ' ', strlen(file_get_contents('php://input'));
"""
ECHO = """#!/bin/sh
n=${QUERY_STRING#n=}
printf 'Content-Type: text/plain\\n\\n%s %s' "$n" "$(wc -c)"
"""
HANG = """#!/bin/sh
echo "hangs in $$" >&2
read line <"$QUERY_STRING"
printf 'Content-Type: text/plain\\n\\nwent on'
"""
# Whom workers and programs run as.
USER = "www-data"
BLOB = 3_000_000
# What a request is allowed to take, in seconds: the deadlines below and a busy machine.
LATE = 60.0
@dataclass(frozen=True)
class Outcome:
    """What became of a request: a status, 0 where the connection ended first; `why` is '' for its own, whole answer."""

    kind: str
    status: int
    why: str
    was_idle: bool  # closed by the server between two requests, so that a client asks again
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Site:
    """A server with programs, a pool, and files, as an administrator would set it up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self.logs = directory / "logs"
        self.sockets = directory / "sockets"
        self.fifo = directory / "fifo"
        os.mkfifo(self.fifo)
        os.chmod(self.fifo, 0o666)
        for small in (self.spool, self.logs):
            small.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=1777", "tmpfs", str(small)], check=True)
        self.sockets.mkdir()
        os.chmod(self.sockets, 0o1777)
        program(directory / "cgi" / "echo", ECHO)
        program(directory / "cgi" / "hang", HANG)
        (directory / "app").mkdir()
        (directory / "app" / "page.php").write_text(PAGE)
        (directory / "files").mkdir()
        (directory / "files" / "small").write_bytes(b"small")
        (directory / "files" / "blob").write_bytes(bytes(BLOB))
        self.config = directory / "gateway.toml"
        self.write()
        environment = {"TMPDIR": str(self.sockets)}
        self.server = support.start_server(config=self.config, temp_dir=self.spool, env=environment, wait=False)
        self.server.wait_for_log(r"^gateway: ready")
        match = re.search(r"listening on http://.*:(\d+)/", self.server.errors.text)
        assert match
        self.server.port = int(match[1])

    def write(self, more: str = "") -> None:
        """Write the configuration, with a line more in [server]."""
        self.config.write_text(f"""
[server]
listen = ["127.0.0.1:0"]
workers = 2
user = "{USER}"
temp_dir = "{self.spool}"
access_log = "{self.logs}/access"
header_timeout = 2
body_timeout = 2
send_timeout = 2
script_timeout = 4
kill_timeout = 1
queue_timeout = 20
{more}

[[routes]]
path = "/cgi-bin/"
cgi = "{self.directory}/cgi"

[[routes]]
path = "/app/"
root = "{self.directory}/app"
fastcgi = "pool:app"
extensions = [".php"]

[[routes]]
path = "/"
root = "{self.directory}/files"

[pools.app]
command = ["php-cgi"]
pm = "static"
max_children = 3
request_terminate_timeout = 3
""")

    @property
    def manager(self) -> int:
        """The pid of the pool's manager; 0 if it is not there."""
        found = pool_load.managers(self.server)
        return found[0] if len(found) == 1 else 0

    def pool_workers(self) -> list[int]:
        """Return the pids of the pool's workers that live."""
        return [pid for pid in children(self.manager) if state(pid) not in ("Z", "")] if self.manager else []

    def workers(self) -> list[int]:
        """Return the pids of the front workers."""
        return workers_of(self.server.pid)

    def spawners(self) -> list[int]:
        """Return the pids of the spawners."""
        return [pid for pid in children(self.server.pid) if pid not in (self.manager, *self.workers())]

    @property
    def roles(self) -> dict[str, list[int]]:
        """Every process of the server, by what it does."""
        return {
            "master": [self.server.pid],
            "front worker": self.workers(),
            "spawner": self.spawners(),
            "manager": [self.manager],
            "pool worker": self.pool_workers(),
        }

    def is_whole(self) -> bool:
        """Whether every process is there, once."""
        return [len(pids) for pids in self.roles.values()] == [1, 2, 2, 1, 3] and self.manager > 0

    def close(self) -> None:
        """Stop it, and take its file systems away."""
        try:
            self.server.process.poll()
            status = self.server.stop()
            assert status == 0, f"exit status {status}"
            wait_until(lambda: f"left: {found}" if (found := support.members(self.server.pid)) else "")
            assert not list(self.spool.iterdir())
            assert not list(self.sockets.iterdir())
            assert "unexpected, please report" not in self.server.errors.text
            assert "Traceback" not in self.server.errors.text
        finally:
            if self.server.process.poll() is None:
                self.server.process.kill()
                self.server.process.wait()
            for small in (self.spool, self.logs):
                subprocess.run(["umount", "-l", str(small)], check=True)


class Clients:
    """The load: each of some threads asks for one kind of thing, again and again."""

    KINDS = ("file", "file, new connection", "blob", "cgi", "cgi post", "app", "app post")

    def __init__(self, port: int) -> None:
        self._port = port
        self.outcomes: list[Outcome] = []
        self._grown = threading.Condition()
        self._ends = False
        self._numbers = itertools.count(1)
        self._trouble: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in self.KINDS * 2]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let each finish what it is at."""
        self._ends = True
        for thread in self._threads:
            thread.join(2 * LATE)
            assert not thread.is_alive()
        assert not self._trouble, self._trouble

    def wait_for_all(self, rounds: int = 1) -> None:
        """Wait until something of each kind that is asked for from now on has been answered as it should."""
        for _ in range(rounds):
            began = time.monotonic()
            self._wait(lambda: {o.kind for o in self._since(began) if not o.why} == set(self.KINDS), "all kinds")  # noqa: B023

    def wait_for(self, count: int, *kinds: str) -> None:
        """Wait until so many more requests of these kinds have been answered as they should."""
        began = time.monotonic()
        self._wait(lambda: sum(not o.why and o.kind in kinds for o in self._since(began)) >= count, str(kinds))

    def wait_for_status(self, status: int) -> None:
        """Wait for an answer with a status."""
        began = time.monotonic()
        self._wait(lambda: any(o.status == status for o in self._since(began)), str(status))

    def _since(self, began: float) -> Iterator[Outcome]:
        return itertools.takewhile(lambda outcome: outcome.ended >= began, reversed(self.outcomes))

    def _wait(self, event: object, what: str) -> None:
        with self._grown:
            came = self._grown.wait_for(lambda: event() or self._trouble, LATE)  # type: ignore[operator]
        assert came, f"{what} did not come; the last: {self.outcomes[-20:]}"
        assert not self._trouble, self._trouble

    def _run(self, kind: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LATE)
        try:
            while not self._ends:
                outcome = self._ask(connection, kind, next(self._numbers))
                with self._grown:
                    self.outcomes.append(outcome)
                    self._grown.notify_all()
                if outcome.why or kind == "file, new connection":
                    connection.close()
        except BaseException as error:
            with self._grown:
                self._trouble.append(error)
                self._grown.notify_all()
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, kind: str, number: int) -> Outcome:
        posted = bytes(200_000) if kind.endswith("post") else None
        path, right = {
            "f": ("/small", b"small"),
            "b": ("/blob", bytes(BLOB)),
            "c": (f"/cgi-bin/echo?n={number}", b"%d %d" % (number, len(posted or b""))),
            "a": (f"/app/page.php?n={number}", b"%d %d" % (number, len(posted or b""))),
        }[kind[0]]
        began = time.monotonic()
        is_kept = connection.sock is not None
        status, was_idle = 0, False
        try:
            connection.request("POST" if posted else "GET", path, posted)
            response = connection.getresponse()
            status = response.status
            body = response.read().rstrip(b"\n")
            why = "" if (status, body) == (200, right) else f"{status} {_words(body)}"
            if status == 503 and not response.headers.get("Retry-After"):
                status, why = 0, "503 without Retry-After"
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as error:
            why = repr(error)
            status = _early_status(connection)
            was_idle = is_kept and not status and isinstance(error, http.client.RemoteDisconnected)
        return Outcome(kind, status, why, was_idle, began, time.monotonic())


def _words(body: bytes) -> str:
    """Return the reason that an error page gives, or how the body begins."""
    match = re.search(rb"<p>(.*?)</p>", body, re.DOTALL)
    return repr(match[1] if match else body[:80])


def _early_status(connection: http.client.HTTPConnection) -> int:
    """Return the status that came while the body was still being sent, which http.client does not read."""
    with contextlib.suppress(OSError, http.client.HTTPException, AttributeError, ValueError):
        head = connection.sock.recv(64)
        return int(head[9:12])
    return 0
