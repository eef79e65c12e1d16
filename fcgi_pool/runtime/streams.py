"""What a request gives an application to read from and write to: `wsgi.input`, `wsgi.errors`, `wsgi.file_wrapper`."""

from __future__ import annotations

import contextlib
import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fcgi_pool.runtime.connection import Connection

# Bytes a file is read by: some records, in one system call each way.
_BLOCK = 256 * 1024


class Input:
    """The request body, read as it comes (PEP 3333, "Input and Error Streams").

    Reading raises WebServerGone, a ConnectionError, if the body ends before its end.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._serial = connection.serial
        self._buffer = b""
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; all that is left without a size."""
        if size is None or size < 0:
            return b"".join((self._take(len(self._buffer)), *iter(self._read_part, b"")))
        if self._at + size <= len(self._buffer):
            return self._take(self._at + size)
        parts = [self._take(len(self._buffer))]
        missing = size - len(parts[0])
        while missing > 0:
            part = self._read_part()
            if not part:
                break
            if len(part) > missing:
                self._buffer, self._at = part, 0
                part = self._take(missing)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """Return the next line with its end, of at most `size` bytes; b"" at the end."""
        limit = -1 if size is None else size
        parts: list[bytes] = []
        length = 0
        while limit < 0 or length < limit:
            if self._at == len(self._buffer):
                self._buffer, self._at = self._read_part(), 0
                if not self._buffer:
                    break
            newline = self._buffer.find(b"\n", self._at) + 1
            end = newline or len(self._buffer)
            if limit >= 0:
                end = min(end, self._at + limit - length)
            part = self._take(end)
            parts.append(part)
            length += len(part)
            if end == newline:
                break
        return b"".join(parts)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return the lines that are left; with a hint, about so many bytes of them."""
        lines = []
        length = 0
        for line in self:
            lines.append(line)
            length += len(line)
            if hint and 0 < hint <= length:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _read_part(self) -> bytes:
        """Return the next part, b"" at the end and for an application that reads after its request has ended."""
        return self._connection.read_body() if self._connection.serial == self._serial else b""

    def _take(self, end: int) -> bytes:
        """Return what is held up to `end`."""
        taken = self._buffer[self._at : end]
        self._at = end
        if end == len(self._buffer):
            self._buffer, self._at = b"", 0
        return taken


class Errors:
    """Words for the web server's error log, sent at a flush or with the response.

    What comes when the request has ended, or from another thread, which could write into the midst of a record,
    goes to this process's own standard error.
    """

    encoding = "utf-8"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._serial = connection.serial
        self._thread = get_ident()

    def write(self, text: str) -> int:
        """Take words."""
        if self._is_ours():
            self._connection.write_stderr(text.encode("utf-8", "backslashreplace"))
        else:
            with contextlib.suppress(OSError):
                sys.stderr.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Take some lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what was written."""
        if self._is_ours():
            self._connection.flush_stderr()
        else:
            with contextlib.suppress(OSError):
                sys.stderr.flush()

    def _is_ours(self) -> bool:
        return self._connection.serial == self._serial and get_ident() == self._thread

    def isatty(self) -> bool:
        """No terminal."""
        return False


class FileWrapper:
    """A file as a response (PEP 3333, "Optional Platform-Specific File Handling"), read in blocks."""

    def __init__(self, file: Any, block_size: int = _BLOCK) -> None:
        """Take a file, or what has its `read` and perhaps its `close`."""
        self._file = file
        # Applications ask for blocks of 8 KiB, as in the PEP's example; more at once is read faster.
        self._block_size = max(block_size, _BLOCK)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self._file.read(self._block_size), b"")

    def close(self) -> None:
        """Close the file."""
        if hasattr(self._file, "close"):
            self._file.close()
