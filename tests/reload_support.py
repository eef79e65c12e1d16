"""A server with a configuration file, for the tests of reload and upgrade; and clients that count what they lose."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import misbehaviour, support
from tests.pool_support import ask

APP = '''"""Says what it was asked, who it is, and what it was told."""

import os


def application(environ, start_response):
    body = f"{environ['QUERY_STRING']} {os.getpid()} {os.environ.get('WORD', '-')}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
'''
ECHO = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s %s %s' \"$QUERY_STRING\" $$ \"${WORD:--}\"\n"
FILE = b"file" * 5000
GATED = """#!/bin/sh
echo "running $$" >&2
read line <{gate}
printf 'Content-Type: text/plain\\n\\nlet go'
"""


class Site:
    """A configuration file that is rewritten, and the server that reads it."""

    def __init__(self, directory: Path, gate: misbehaviour.Gate) -> None:
        self.directory = directory
        self.file = directory / "gateway.toml"
        self.pid_file = directory / "gateway.pid"
        self.spool = directory / "spool"
        self.spool.mkdir()
        # Where the sockets of pools are; a socket's path is short.
        self.sockets = Path(tempfile.mkdtemp(prefix="gw-"))
        for name, text in [("echo", ECHO), ("gated", GATED.format(gate=gate.path))]:
            misbehaviour.program(directory / "cgi" / name, text)
        (directory / "app.py").write_text(APP)
        self.server: support.Server
        self.listen = ["127.0.0.1:0"]
        self.workers = 1
        self.word = "first"
        self.has_pool = False
        self.pool = ""  # more directives of the pool
        self.more = ""  # more of the server

    def write(self) -> None:
        """Write the file."""
        text = f"""
[server]
listen = [{", ".join(f'"{address}"' for address in self.listen)}]
workers = {self.workers}
pid_file = "{self.pid_file}"
temp_dir = "{self.spool}"
{self.more}
[[routes]]
path = "/cgi-bin/"
cgi = "cgi"
env = {{ WORD = "{self.word}" }}
"""
        if self.has_pool:
            text += f"""
[[routes]]
path = "/app/"
fastcgi = "pool:app"

[pools.app]
app = "app:application"
chdir = "{self.directory}"
max_children = 2
{self.pool}
"""
        # Whole at any moment: a program that starts may read it now.
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    @property
    def master(self) -> int:
        """The pid of the master that serves, as its file says."""
        return int(self.pid_file.read_text())

    @property
    def errors(self) -> support.Watched:
        """The error log."""
        return self.server.errors

    def signal(self, number: int) -> int:
        """Send the master that serves a signal; return how long the error log was."""
        length = len(self.errors.text)
        os.kill(self.master, number)
        return length

    def reload(self) -> None:
        """Rewrite the file, and have it read."""
        self.write()
        start = self.signal(signal.SIGHUP)
        self.errors.wait_for(r"^gateway: reloaded|not reloaded", start=start)
        assert "not reloaded" not in self.errors.text[start:], self.errors.text[start:]

    def upgrade(self) -> None:
        """Start a successor, and wait until it serves and the old master has gone."""
        old = self.master
        start = self.signal(signal.SIGUSR2)
        self.errors.wait_for(r"upgrade: pid \d+ serves|upgrade failed", start=start)
        assert "upgrade failed" not in self.errors.text[start:], self.errors.text[start:]
        misbehaviour.wait_for(lambda: misbehaviour.has_ended(old))
        assert self.master != old

    def ask(self, path: str = "/cgi-bin/echo?x") -> list[str]:
        """Ask on a connection of its own; return the words of the answer."""
        answer = self.server.get(path)
        assert answer.status == 200, answer
        return answer.text.split()

    def hold(self) -> tuple[socket.socket, int]:
        """Ask for the gated program; return the connection, and the program's pid, once it runs."""
        start = len(self.errors.text)
        client = self.server.socket()
        client.sendall(request("/cgi-bin/gated"))
        pid = int(self.errors.wait_for(r"gated\[\d+\]: running (\d+)", start=start)[1])
        return client, pid

    def stop(self) -> None:
        """Stop whoever serves, and check that nothing is left."""
        if self.pid_file.exists():
            successor = self.master
            if successor != self.server.pid:
                os.kill(successor, signal.SIGTERM)
                misbehaviour.wait_until_gone(successor)
        if self.has_pool:
            # Its processes are there while the server is.
            self.server.stop()
        self.server.finish()
        support.wait_until(lambda: f"left: {found}" if (found := support.members(self.server.pid)) else "")
        if not self.server.may_leave_processes:
            assert not list(self.spool.iterdir())
            assert not list(self.sockets.iterdir())
            assert not self.pid_file.exists()


@contextlib.contextmanager
def site(directory: Path, gate: misbehaviour.Gate) -> Iterator[Callable[..., Site]]:
    """Serve a site: call what is given with what differs from the usual; at the end nothing may be left."""
    served: list[Site] = []
    made = Site(directory, gate)

    def start(**attributes: object) -> Site:
        environment = {"TMPDIR": str(made.sockets), **attributes.pop("env", {})}  # type: ignore[dict-item]
        arguments = {name: attributes.pop(name) for name in ("prefix", "pass_fds") if name in attributes}
        for name, value in attributes.items():
            setattr(made, name, value)
        made.write()
        made.server = support.start_server(
            config=made.file, temp_dir=made.spool, env=environment, wait=False, **arguments  # type: ignore[arg-type]
        )
        served.append(made)
        made.server.wait_for_log(r"^gateway: ready")
        match = re.search(r"listening on http://.*:(\d+)/", made.errors.text)
        made.server.port = int(match[1]) if match else 0
        return made

    try:
        yield start
        for one in served:
            one.stop()
    finally:
        for one in served:
            for pid in support.members(one.server.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            one.server.process.wait()
        shutil.rmtree(made.sockets)


@pytest.fixture
def serve(tmp_path: Path, gate: misbehaviour.Gate) -> Iterator[Callable[..., Site]]:
    """See `site`."""
    with site(tmp_path, gate) as start:
        yield start


class Neighbours:
    """Other web servers that ask a pool at its address until they are told to end, each on a connection a request."""

    def __init__(self, path: str) -> None:
        self.words: list[str] = []  # of each answer the last
        self.failures: list[BaseException] = []
        self._path = path
        self._ends = False
        self._grown = threading.Condition()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def __enter__(self) -> Neighbours:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        for thread in self._threads:
            thread.join(support.PATIENCE)
            assert not thread.is_alive()

    def wait_for(self, word: str) -> None:
        """Wait until a new request is answered with `word` by both, and by nobody else after it."""
        with self._grown:
            assert self._grown.wait_for(lambda: self.failures or self.words[-4:] == [word] * 4, support.PATIENCE)

    def _run(self) -> None:
        values = {"REQUEST_METHOD": "GET", "QUERY_STRING": "x", "SCRIPT_NAME": "", "PATH_INFO": "/",
                  "SERVER_NAME": "x", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1"}  # fmt: skip
        while not self._ends and not self.failures:
            try:
                reply = ask(self._path, values)
                word = reply.stdout.split()[-1].decode()
            except BaseException as failure:
                with self._grown:
                    self.failures.append(failure)
                    self._grown.notify_all()
                return
            with self._grown:
                self.words.append(word)
                self._grown.notify_all()


def request(path: str, more: str = "") -> bytes:
    """Return a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


# -- who holds which connection


@dataclass(frozen=True)
class Entry:
    """A line of /proc/net/tcp."""

    inode: str
    peer: int  # the other side's port
    listens: bool


def tcp_sockets() -> list[Entry]:
    """Return all TCP sockets of IPv4."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        found.append(Entry(fields[9], int(fields[2].split(":")[1], 16), fields[3] == "0A"))
    return found


def workers_of(master: int) -> list[int]:
    """Return the pids of a master's front workers: those of its children that hold a listening TCP socket."""
    inodes = {entry.inode for entry in tcp_sockets() if entry.listens}
    return [pid for pid in support.children(master) if set(descriptors_at(pid)) & inodes]


def descriptors_at(pid: int) -> list[str]:
    """Return the inodes of the sockets that a process holds."""
    return [link[8:-1] for link in support.links(pid) if link.startswith("socket:[")]


def clients_of(pid: int) -> set[int]:
    """Return the ports of the clients whose connections a process has accepted."""
    peers = {entry.inode: entry.peer for entry in tcp_sockets() if not entry.listens}
    return {peers[inode] for inode in descriptors_at(pid) if inode in peers}


# -- clients


@dataclass(frozen=True)
class Failure:
    """A request that had no good answer."""

    port: int  # the client's
    path: str
    why: str


@dataclass(frozen=True)
class Secure:
    """Where TLS is spoken, and how by a client."""

    port: int
    context: ssl.SSLContext


@dataclass
class Load:
    """Clients that ask until they are told to end: with `keep` on one connection for as long as it is kept, else on a
    new one for each request."""

    port: int
    count: int = 0
    failures: list[Failure] = field(default_factory=list)
    ends: bool = False
    _threads: list[threading.Thread] = field(default_factory=list)
    _grown: threading.Condition = field(default_factory=threading.Condition)

    def start(self, path: str, keep: bool, secure: Secure | None = None) -> None:
        """Start one client more."""
        thread = threading.Thread(target=self._run, args=(path, keep, secure), daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait_for(self, count: int, patience: float = 600.0) -> None:
        """Wait until so many requests have been made."""
        with self._grown:
            assert self._grown.wait_for(lambda: self.count >= count or bool(self.ends), patience), self.count

    def end(self) -> None:
        """Let the clients end after the request they are at."""
        self.ends = True
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _run(self, path: str, keep: bool, secure: Secure | None) -> None:
        client: Connection | None = None
        number = 0
        while not self.ends:
            number += 1
            target = f"{path}?{number}"
            if client is None:
                client = Connection(self.port, secure)
            why = client.ask(target, keep)
            if why == "late":
                client = None
                continue
            with self._grown:
                self.count += 1
                if why:
                    self.failures.append(Failure(client.local_port, target, why))
                self._grown.notify_all()
            if why or not client.is_kept:
                client.close()
                client = None
        if client:
            client.close()


# An idle connection may be closed by a server (RFC 9112 section 9.3). A client that was not given the processor for so
# many seconds after an answer has been idle.
_LATE = 1.5


class Connection:
    """One connection of a client of the load."""

    def __init__(self, port: int, secure: Secure | None = None) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(60)
        self._port = secure.port if secure else port
        self._secure = secure
        self._read_at = 0.0
        self.local_port = 0
        self.is_kept = False

    def ask(self, target: str, keep: bool) -> str:
        """Ask; return why the answer is none, '' for a good one, 'late' if the server may have taken us for idle."""
        is_first = not self.local_port
        got = b""
        asked = time.monotonic()
        try:
            if is_first:
                # Known before it is connected, so that a failure can be told from whose it is.
                self._socket.bind(("127.0.0.1", 0))
                self.local_port = self._socket.getsockname()[1]
                self._socket.connect(("127.0.0.1", self._port))
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._secure:
                    self._socket = self._secure.context.wrap_socket(self._socket)
            asked = time.monotonic()
            self._socket.sendall(request(target, "" if keep else "Connection: close\r\n"))
            while not (whole := _whole(got)):
                more = self._socket.recv(65536)
                if not more:
                    raise EOFError("closed")
                got += more
        except (OSError, EOFError) as error:
            if not is_first and not got and asked - self._read_at > _LATE:
                return "late"
            return f"{type(error).__name__}: {error}, after {got[:100]!r}"
        self._read_at = time.monotonic()
        head, body = whole
        self.is_kept = keep and b"\r\nConnection: close" not in head
        if not head.startswith(b"HTTP/1.1 200 "):
            return f"{head[:40]!r}"
        # A file is the same for all who ask.
        wanted = FILE if target.startswith("/files/") else target.partition("?")[2].encode()
        if body.split(b" ")[0] != wanted:
            return f"the answer is another's: {body!r}"
        return ""

    def close(self) -> None:
        """Leave."""
        self._socket.close()


def _whole(got: bytes) -> tuple[bytes, bytes] | None:
    """Return head and body of a response if it is complete."""
    head, blank, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if not blank:
        return None
    if length:
        return (head, body) if len(body) >= int(length[1]) else None
    return (head, body.split(b"\r\n")[1]) if body.endswith(b"0\r\n\r\n") else None
