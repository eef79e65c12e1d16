"""What the tests of misbehaving programs and clients share: gates, limits, ways to leave, and waiting for an end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests import support

PATIENCE = support.PATIENCE


class Gate:
    """A named pipe from which a program reads a line, and so waits until it is let go: ``read line <PATH``."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        # Open for both, so that neither side waits for the other.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open(self) -> None:
        """Let one reader go, now or when it comes."""
        os.write(self._descriptor, b"\n")

    def wait_until_passed(self) -> None:
        """Wait until all that were let go have passed: who comes when the gate is away waits for ever."""

        def left() -> str:
            count = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)))[0]
            return f"{count} were let go and did not pass {self.path}" if count else ""

        support.wait_until(left)

    def close(self) -> None:
        """Take the gate away."""
        os.close(self._descriptor)


@contextlib.contextmanager
def shared_server(directory: Path, temp_dir: Path, *options: str) -> Iterator[support.Server]:
    """A server for many tests, where starting one for each would tell no more."""
    server = support.start_server(*options, cgi_dir=directory, temp_dir=temp_dir)
    try:
        yield server
        server.finish()
    finally:
        server.process.kill()
        server.process.wait()


def lent(server: support.Server) -> Iterator[support.Server]:
    """Lend a shared server to one test: with empty logs, and idle when it is given back."""
    server.errors.text = server.accesses.text = ""
    yield server
    server.check_idle()


def program(path: Path, text: str | bytes, mode: int = 0o755) -> Path:
    """Write a program, and the folder it is to be in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return support.script(path, text, mode)


def wait_for(event: Callable[[], object], what: str = "it did not happen") -> None:
    """Ask `event` until it has happened."""
    support.wait_until(lambda: "" if event() else what)


def wait_until_gone(pid: int) -> None:
    """Wait until the process `pid` has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], PATIENCE)
        assert ready, f"process {pid} is still there"
    finally:
        os.close(descriptor)


def has_ended(pid: int) -> bool:
    """Whether the process `pid` has ended by now."""
    return support.state(pid) in {"", "Z", "X"}


def parent_of(pid: int) -> int:
    """The pid of the parent of `pid`; the parent of a program is its spawner."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def limit(pids: Iterable[int], which: int, value: int) -> Callable[[], None]:
    """Lower a soft limit of running processes; return what brings it back."""
    before = {pid: resource.prlimit(pid, which) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, which, (value, hard))

    def restore() -> None:
        for pid, old in before.items():
            resource.prlimit(pid, which, old)

    return restore


def highest_descriptor(pid: int) -> int:
    """The largest descriptor that the process `pid` holds."""
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def vanish(sock: socket.socket) -> None:
    """Leave with a reset, as a machine does that lost interest."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def leave(sock: socket.socket) -> None:
    """Leave with a FIN, as a browser does."""
    sock.close()


def read_response(sock: socket.socket) -> bytes:
    """One response from a connection that stays open."""
    got = b""
    while True:
        more = sock.recv(65536)
        assert more, got
        got += more
        head, blank, body = got.partition(b"\r\n\r\n")
        if not blank:
            continue
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if (length and len(body) >= int(length[1])) or (not length and body.endswith(b"0\r\n\r\n")):
            return got


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """What comes until it ends with `end`."""
    got = b""
    while not got.endswith(end):
        more = sock.recv(65536)
        assert more, got
        got += more
    return got
