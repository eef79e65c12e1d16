"""A web server's side of FastCGI for tests: blocking, over a real socket, one request at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcgi_pool.protocol import END_OF_STDIN, ResponseReader, Role, encode_params, encode_request, stdin_records
from fcgi_pool.protocol.web_server import End, Stderr, Stdout, StreamEnd
from tests.support import PATIENCE, ROOT, members, wait_until

RUNTIME = ROOT / "fcgi_pool" / "runtime" / "__main__.py"
VARIABLES = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "/app",
    "PATH_INFO": "/path",
    "QUERY_STRING": "a=b",
    "REQUEST_URI": "/app/path?a=b",
    "SERVER_NAME": "example.org",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
}


@dataclass
class Reply:
    """All that was answered to one request. `chunks` are the records of STDOUT."""

    chunks: list[bytes] = field(default_factory=list)
    errors: bytes = b""
    app_status: int = -1
    protocol_status: int = -1

    @property
    def stdout(self) -> bytes:
        """The CGI document."""
        return b"".join(self.chunks)

    @property
    def head(self) -> list[str]:
        """The lines of its header."""
        return self.stdout.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")

    @property
    def body(self) -> bytes:
        """What comes after its header."""
        return self.stdout.partition(b"\r\n\r\n")[2]


class Peer:
    """A connection to a FastCGI application."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.reader = ResponseReader()
        self._began = False

    def send(
        self,
        method: str = "GET",
        body: bytes = b"",
        *,
        keep: bool = True,
        ends: bool = True,
        role: Role = Role.RESPONDER,
        **variables: str,
    ) -> None:
        """Send a request; with `ends` all of it, else without the end of its body."""
        if self._began:
            self.reader.begin()
        self._began = True
        values = {**VARIABLES, "REQUEST_METHOD": method, **variables}
        if body:
            values.setdefault("CONTENT_LENGTH", str(len(body)))
        params = encode_params((name.encode(), value.encode()) for name, value in values.items())
        self.socket.sendall(encode_request(params, role=role, keep=keep, ends=ends and not body))
        if body:
            self.socket.sendall(b"".join(stdin_records(body)) + (END_OF_STDIN if ends else b""))

    def next_event(self) -> Any:
        """Return the next event; fail if the application closes first."""
        while (event := self.reader.next_event()) is None:
            data = self.socket.recv(65536)
            assert data, "closed by the application"
            self.reader.receive(data)
        return event

    def receive(self) -> Reply:
        """Return the whole reply."""
        reply = Reply()
        while True:
            event = self.next_event()
            if isinstance(event, Stdout):
                reply.chunks.append(event.data)
            elif isinstance(event, Stderr):
                reply.errors += event.data
            elif isinstance(event, End):
                reply.app_status, reply.protocol_status = event.app_status, event.protocol_status
                return reply
            else:
                assert isinstance(event, StreamEnd)

    def ask(self, method: str = "GET", body: bytes = b"", **options: Any) -> Reply:
        """Send a request and return the reply."""
        self.send(method, body, **options)
        return self.receive()

    def is_closed(self) -> bool:
        """Wait until the application closes; nothing may come before."""
        with contextlib.suppress(ConnectionResetError):
            assert self.socket.recv(1) == b""
        return True


class Application:
    """Workers of the runtime on a listening socket, as a pool starts them."""

    def __init__(self, directory: Path, family: int = socket.AF_UNIX) -> None:
        self.directory = directory
        self.scratch = tempfile.mkdtemp(dir="/tmp")
        self.listener = socket.socket(family)
        self.listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else os.path.join(self.scratch, "s"))
        self.listener.listen(512)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.peers: list[Peer] = []
        self.errors = directory / "worker-errors"

    def start(
        self,
        application: str,
        *options: str,
        environment: Mapping[str, str] | None = None,
        descriptors: tuple[int, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a worker."""
        with self.errors.open("ab") as errors:
            worker = subprocess.Popen(
                [*prefix, sys.executable, str(RUNTIME), "--chdir", str(self.directory), *options, application],
                cwd="/",
                stdin=self.listener,
                stdout=errors,
                stderr=errors,
                env={"PATH": os.environ["PATH"], **(environment or {})},
                pass_fds=descriptors,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def connect(self) -> Peer:
        """Return a new connection."""
        connected = socket.socket(self.listener.family)
        connected.settimeout(PATIENCE)
        connected.connect(self.listener.getsockname())
        self.peers.append(Peer(connected))
        return self.peers[-1]

    def finish(self) -> None:
        """End all workers; nothing may be left of them."""
        for peer in self.peers:
            peer.socket.close()
        try:
            for worker in self.workers:
                if worker.poll() is None:
                    worker.terminate()
                assert worker.wait(PATIENCE) in (0, 1, 2), self.errors.read_text()
                session = worker.pid
                wait_until(lambda session=session: f"left: {found}" if (found := members(session)) else "")
        finally:
            for worker in self.workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
            self.listener.close()
            shutil.rmtree(self.scratch)


@contextlib.contextmanager
def served(directory: Path, family: int = socket.AF_UNIX) -> Iterator[Application]:
    """Give an application's socket, and check at the end that nothing is left."""
    application = Application(directory, family)
    try:
        yield application
    finally:
        application.finish()


def release(gate: Path) -> None:
    """Wait until an application reads from the FIFO `gate`, and let it go on."""

    def trouble() -> str:
        try:
            os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            return f"nobody waits at {gate}: {error}"
        return ""

    wait_until(trouble)


def directory_of_applications(path: Path) -> Path:
    """Fill a directory with the test's applications, and with modules that are named as some of ours."""
    shutil.copy(ROOT / "tests" / "runtime_apps.py", path / "apps.py")
    for name in ("worker", "wsgi", "connection", "start"):
        (path / f"{name}.py").write_text("")
    os.mkfifo(path / "gate")
    return path
