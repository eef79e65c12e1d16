"""The log of a manager: one line per event, with php-fpm's levels."""

from __future__ import annotations

import os
import re
import sys
import time

LEVELS = ("debug", "notice", "warning", "error", "alert")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")


class Log:
    """Writes lines such as ``2026-11-23T11:35:44.123Z notice [pool blog] text``.

    `path`: a file, or ``-`` for standard error. `level`: the least that is written, one of LEVELS. Raises OSError if
    the file cannot be opened. Every line is one write that appends, so several processes can share a file; a line that
    cannot be written, to a full disk say, is dropped: a log never stops a pool.
    """

    def __init__(self, path: str = "-", level: str = "notice") -> None:
        self.path = path
        self._level = LEVELS.index(level)
        self._descriptor = _open(path)

    def reopen(self) -> None:
        """Open the path again, after the old file was moved away; keep the old one if that fails."""
        if self.path == "-":
            return
        try:
            descriptor = _open(self.path)
        except OSError as error:
            self.write("error", f"the log {self.path} is not reopened: {error.strerror}")
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def change(self, path: str, level: str) -> None:
        """Go on with another path and level; raise OSError and keep the old ones if the file cannot be opened."""
        if path != self.path:
            descriptor = _open(path)
            self.close()
            self._descriptor = descriptor
            self.path = path
        self._level = LEVELS.index(level)

    def close(self) -> None:
        """Close the file."""
        if self.path != "-" and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def write(self, level: str, text: str, pool: str = "") -> None:
        """Write one line about `pool`, or about all of them."""
        if self._descriptor < 0 or LEVELS.index(level) < self._level:
            return
        mark = f"[pool {pool}] " if pool else ""
        line = f"{_stamp()} {level} {mark}{printable(text)}\n"
        try:
            os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))
        except OSError:
            pass


def printable(text: str) -> str:
    """Return `text` with control characters escaped, so that it stays within its line."""
    return _CONTROL.sub(lambda match: _escaped(ord(match.group())), text)


def _escaped(code: int) -> str:
    # A byte that was no UTF-8 comes as a lone surrogate (PEP 383).
    return f"\\x{code - 0xDC00 if code > 0xFF else code:02x}"


def _open(path: str) -> int:
    if path == "-":
        return sys.__stderr__.fileno() if sys.__stderr__ else 2
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _stamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
