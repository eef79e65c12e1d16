"""A running ``python -m fcgi_pool``, and a web server that talks to it: raw FastCGI over a socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fcgi_pool.protocol import ResponseReader, encode_params, encode_request, stdin_records
from fcgi_pool.protocol.web_server import END_OF_STDIN, End, Stderr, Stdout
from tests.support import PATIENCE, ROOT, Watched, children, descriptors, members, state, wait_until


@dataclass
class Reply:
    """What came back for one request; `end` is None if the connection ended before."""

    stdout: bytes = b""
    stderr: bytes = b""
    end: End | None = None

    @property
    def body(self) -> bytes:
        """The output after the header."""
        return self.stdout.partition(b"\r\n\r\n")[2]


def connect(address: str | tuple[str, int]) -> socket.socket:
    """Return a socket that is connected to a FastCGI server."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect(address)
    return client


def variables(script: str = "", uri: str = "/", method: str = "GET", **more: str) -> dict[str, str]:
    """Return the variables of a request."""
    return {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REQUEST_METHOD": method,
        "REQUEST_URI": uri,
        "SCRIPT_NAME": uri.partition("?")[0],
        "QUERY_STRING": uri.partition("?")[2],
        "SCRIPT_FILENAME": script,
        "REDIRECT_STATUS": "200",
        **more,
    }


def send_request(client: socket.socket, values: Mapping[str, str], body: bytes = b"", keep: bool = False) -> None:
    """Send one request with its body."""
    params = encode_params([(name.encode(), value.encode()) for name, value in values.items()])
    client.sendall(encode_request(params, keep=keep, ends=not body))
    if body:
        client.sendall(b"".join(stdin_records(body)) + END_OF_STDIN)


def read_reply(client: socket.socket) -> Reply:
    """Read until the end of the request or of the connection."""
    reply = Reply()
    reader = ResponseReader()
    while reply.end is None:
        try:
            data = client.recv(65536)
        except ConnectionResetError:
            break
        if not data:
            break
        reader.receive(data)
        while (event := reader.next_event()) is not None:
            if isinstance(event, Stdout):
                reply.stdout += event.data
            elif isinstance(event, Stderr):
                reply.stderr += event.data
            elif isinstance(event, End):
                reply.end = event
    return reply


def ask(address: str | tuple[str, int], values: Mapping[str, str], body: bytes = b"") -> Reply:
    """Ask once on a connection of its own."""
    with connect(address) as client:
        send_request(client, values, body)
        return read_reply(client)


@dataclass
class RunningPool:
    """A manager, its log and its directory, in which `socket` is."""

    process: subprocess.Popen[str]
    log: Watched
    directory: Path
    socket: str
    expected_status: int | None = 0
    threads: list[object] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The manager's pid."""
        return self.process.pid

    def workers(self) -> list[int]:
        """Return the pids of the workers, and of a helper if there is one."""
        return [pid for pid in children(self.pid) if state(pid) not in ("", "Z")]

    def wait_for_workers(self, count: int) -> list[int]:
        """Wait until there are so many, and they wait for connections."""
        wait_until(lambda: "" if len(self.workers()) == count else f"{self.workers()}, not {count}: {self.log.text}")
        return self.workers()

    def wait_for(self, pattern: str, start: int = 0) -> str:
        """Wait for a match in the log, and return it."""
        return self.log.wait_for(pattern, start=start).group()

    def ask(self, values: Mapping[str, str], body: bytes = b"") -> Reply:
        """Ask once, on a connection of its own."""
        return ask(self.socket, values, body)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the manager by a signal; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def start_pool(
    *arguments: str, directory: Path, env: Mapping[str, str] | None = None, ready: bool = True
) -> RunningPool:
    """Start a manager whose address is ``unix:DIRECTORY/s`` unless the arguments say otherwise."""
    address = str(directory / "s")
    listen = () if {"--config", "--listen"} & set(arguments) else ("--listen", f"unix:{address}")
    told, to_tell = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "fcgi_pool", "--ready-fd", str(to_tell), *listen, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
            env={**os.environ, **(env or {})},
            pass_fds=(to_tell,),
        )
    finally:
        os.close(to_tell)
    assert process.stderr
    pool = RunningPool(process, Watched(), directory, address)
    pool.threads.append(pool.log.follow(process.stderr))  # type: ignore[arg-type]
    with os.fdopen(told, "rb") as file:
        said = file.read()
    if ready:
        assert said == b"ready\n", (said, process.wait(PATIENCE), pool.log.text)
    return pool


@contextmanager
def running_pool(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[RunningPool]:
    """Run a manager; at the end it must stop well, and leave no process, zombie, descriptor or socket."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    pool = None
    try:
        pool = start_pool(*arguments, directory=directory, env=env)
        yield pool
        pids = children(pool.pid)
        status = pool.stop()
        assert pool.expected_status in (None, status), f"exit status {status}:\n{pool.log.text}"
        wait_until(lambda: f"left: {left}" if (left := [pid for pid in pids if members(pid)]) else "")
        assert not Path(pool.socket).exists() or pool.expected_status is None
        assert "unexpected, please report" not in pool.log.text, pool.log.text
    except BaseException:
        if pool:
            sys.stderr.write(pool.log.text)
        raise
    finally:
        if pool:
            if pool.process.poll() is None:
                pool.process.kill()
                pool.process.wait()
            for thread in pool.threads:
                thread.join(PATIENCE)  # type: ignore[attr-defined]
        shutil.rmtree(directory)


__all__ = ["Reply", "RunningPool", "ask", "connect", "descriptors", "running_pool", "start_pool", "variables"]
