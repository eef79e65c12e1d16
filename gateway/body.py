"""A request's body, complete before the program starts: small in memory, large in a file without a name.

That file is the program's stdin then. Nothing pumps, nothing deadlocks, the length is known, and a slow uploader
holds no process.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, cast

# Up to here a body stays in memory. nginx client_body_buffer_size 16 KiB, PHP 2 MiB.
MEMORY = 64 * 1024
# Written to disk at once, in a thread: a disk may stall, the loop must not.
_PIECE = 256 * 1024
# Received and not yet on disk; past it the client is not read from.
_PENDING = 1024 * 1024

_disk_thread: ThreadPoolExecutor | None = None


def start_disk_thread() -> ThreadPoolExecutor:
    """Return the thread that writes bodies, started now, so that it is there when threads are to be had no more."""
    global _disk_thread
    if _disk_thread is None:
        _disk_thread = ThreadPoolExecutor(1, "spool")
        _disk_thread.submit(_nothing).result()
    return _disk_thread


class Body:
    """Takes the body of one request.

    `on_complete` is called once after `finish`, when all of it is stored; `on_error` when it cannot be, with the
    OSError; `on_room` when the client may be read from again, after `is_congested`.
    """

    __slots__ = (
        "_directory", "_file", "_finishing", "_loop", "_parts", "_pending", "_writing",
        "length", "on_complete", "on_error", "on_room",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: str,
        on_complete: Callable[[], None],
        on_error: Callable[[OSError], None],
        on_room: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._parts: list[bytes] = []
        self._pending = 0
        self._file: BinaryIO | None = None
        self._writing = False
        self._finishing = False
        self.length = 0
        self.on_complete = on_complete
        self.on_error = on_error
        self.on_room = on_room

    @property
    def received(self) -> int:
        """How many bytes have come."""
        return self.length

    @property
    def is_congested(self) -> bool:
        """Whether more has come than the disk has taken."""
        return self._writing and self._pending > _PENDING

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        self.length += len(data)
        self._pending += len(data)
        self._parts.append(data)
        if self.length > MEMORY and self._pending >= _PIECE and not self._writing:
            self._write()

    def finish(self) -> None:
        """The body has ended."""
        self._finishing = True
        if self._writing:
            return
        if self.length > MEMORY and self._parts:
            self._write()
        else:
            self.on_complete()

    def descriptor(self) -> int:
        """Return a descriptor of the complete body, at its begin; the caller closes it. Raise OSError."""
        if self._file:
            descriptor = os.dup(self._file.fileno())
        else:
            descriptor = os.memfd_create("body")
            try:
                for part in self._parts:
                    os.write(descriptor, part)
            except OSError:
                os.close(descriptor)
                raise
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def is_readable(self, offset: int) -> bool:
        """Whether `read` has something at `offset`: always, it is complete."""
        return offset <= self.length

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the complete body from `offset`; b"" at its end. Raise OSError."""
        if self._file:
            return os.pread(self._file.fileno(), size, offset)
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0][offset : offset + size] if self._parts else b""

    def close(self) -> None:
        """Give up what is held. A write under way still ends, in its thread."""
        self._parts.clear()
        self.on_complete = self.on_room = _nothing
        self.on_error = _no_error
        if not self._writing and self._file:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        self._writing = True
        parts, self._parts = self._parts, []
        future = self._loop.run_in_executor(start_disk_thread(), self._store, parts)
        future.add_done_callback(self._written)

    def _store(self, parts: list[bytes]) -> int:
        """Write `parts` in a thread; return their length. Raise OSError."""
        if self._file is None:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._directory or None, buffering=0))  # noqa: SIM115
        total = sum(map(len, parts))
        written = os.writev(self._file.fileno(), parts) if len(parts) <= 64 else 0
        if written < total:
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        return total

    def _written(self, future: asyncio.Future[int]) -> None:
        self._writing = False
        error = future.exception()
        if self.on_complete is _nothing:
            self.close()
        elif isinstance(error, OSError):
            self.on_error(error)
        elif error:
            raise error
        else:
            was_congested = self._pending > _PENDING
            self._pending -= future.result()
            if self._parts and (self._finishing or self._pending >= _PIECE):
                self._write()
            elif self._finishing:
                self.on_complete()
            if was_congested and not self.is_congested:
                self.on_room()


def _nothing() -> None:
    pass


def _no_error(_error: OSError) -> None:
    pass
