"""What the tests with real programs need beside ``support``: forms, streams read as they arrive, watched processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from tests.support import ROOT

# A hang becomes a failure after so many seconds; nothing that is tested takes nearly as long.
HANG = 120.0

PART = 64 * 1024
GIB = 1 << 30


def copy_of(directory: str, where: Path) -> Path:
    """Copy a directory of the checkout, links as links, so that a test may compile and write in it."""
    return Path(shutil.copytree(ROOT / directory, where / Path(directory).name, symlinks=True))


def multipart(*parts: tuple[str, str | None, bytes], boundary: str = "----bounds-4711") -> tuple[str, bytes]:
    """Write a form as a browser does: (name, file name or None, content) → content type, body."""
    lines: list[bytes] = []
    for name, filename, content in parts:
        lines.append(b"--" + boundary.encode())
        disposition = f'form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
        lines.append(f"Content-Disposition: {disposition}\r\n".encode())
        lines.append(content)
    lines.append(b"--" + boundary.encode() + b"--\r\n")
    return f"multipart/form-data; boundary={boundary}", b"\r\n".join(lines)


class Stream:
    """One response that is read piece by piece, as it arrives: HTTP/1.0, so the body is what comes until the close."""

    def __init__(self, connection: socket.socket, target: str, fields: Iterable[str] = ()) -> None:
        self.connection = connection
        connection.settimeout(HANG)
        lines = [f"GET {target} HTTP/1.0", "Host: stream.example", *fields, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        self.held = b""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()

    def until(self, end: bytes) -> bytes:
        """Read until ``end`` and no further than what came with it; b"" is never returned."""
        while end not in self.held:
            piece = self.connection.recv(PART)
            if not piece:
                raise EOFError(f"closed after {self.held!r}, before {end!r}")
            self.held += piece
        found, separator, self.held = self.held.partition(end)
        return found + separator

    def rest(self) -> bytes:
        pieces = [self.held]
        while piece := self.connection.recv(PART):
            pieces.append(piece)
        self.held = b""
        return b"".join(pieces)


class Ending:
    """Waits for the end of a process that is not a child of ours; made while it surely lives."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        came = poll.poll(HANG * 1000)
        os.close(self.descriptor)
        assert came, f"process {self.pid} did not end"


class Gate:
    """A FIFO on which a program of a test waits, or by which it says where it is: no clock is asked.

    The program's side: ``read go < FIFO`` waits for ``open()``; ``echo word > FIFO`` waits for ``said()``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None
        os.mkfifo(path)

    def open(self) -> None:
        """Let the program go on. For reading and writing: so this never waits, and the word stays in the pipe."""
        self._held = os.open(self.path, os.O_RDWR)
        os.write(self._held, b"go\n")

    def said(self) -> str:
        """Wait until the program writes a word, and give it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            assert poll.poll(HANG * 1000), f"nobody wrote {self.path.name}"
            return os.read(descriptor, 4096).decode().strip()
        finally:
            os.close(descriptor)

    def close(self) -> None:
        if self._held is not None:
            os.close(self._held)


class Memory:
    """Peak resident memory of the server's own processes, counted from now on: made while no program runs."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.at_rest: dict[int, int] = {}
        for pid in pids:
            # proc(5): 5 sets VmHWM to the value of now.
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            self.at_rest[pid] = _peak_memory(pid)
        assert self.at_rest

    def growth(self) -> int:
        """Give the largest growth of one process, bytes. A process that is gone is an error."""
        return max(_peak_memory(pid) - before for pid, before in self.at_rest.items())


def _peak_memory(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, f"process {pid} has no memory"
    return int(found[1]) * 1024


def spooled(pids: Iterable[int]) -> int:
    """Bytes on disk of the nameless files that these processes hold."""
    files = {}
    for pid in pids:
        # What ends or is closed in this moment holds nothing.
        descriptors: list[Path] = []
        with contextlib.suppress(FileNotFoundError):
            descriptors.extend(Path(f"/proc/{pid}/fd").iterdir())
        for descriptor in descriptors:
            with contextlib.suppress(FileNotFoundError):
                if int(descriptor.name) > 2 and os.readlink(descriptor).endswith(" (deleted)"):
                    about = os.stat(descriptor)
                    files[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(files.values())


def large_file(path: Path, size: int = GIB) -> str:
    """Make a file that is sparse and yet nowhere like itself, and give its SHA-256.

    A number in each 64 KiB: a piece that is lost, doubled or out of place changes the sum.
    """
    digest = hashlib.sha256()
    zeros = bytes(PART - 8)
    with path.open("wb") as file:
        for index in range(size // PART):
            mark = (index + 1).to_bytes(8, "big")
            digest.update(mark)
            digest.update(zeros)
            file.seek(index * PART)
            file.write(mark)
        file.truncate(size)
    return digest.hexdigest()
