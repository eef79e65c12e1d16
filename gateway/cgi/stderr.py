"""What a program says on stderr: logged line by line, bounded, its last lines kept for an explanation."""

from __future__ import annotations

import os
from collections.abc import Callable

# Logged of one run; the rest is counted. A program in a loop of warnings must not fill the disk.
LOG_LIMIT = 64 * 1024
# A longer line is cut into several.
LINE_LIMIT = 4 * 1024
# Kept for an explanation.
TAIL = 2 * 1024
# Read at one readiness, so that a flood does not hold the loop.
_PIECE = 64 * 1024


class ErrorText:
    """Cuts what a program says into lines. `log` takes lines as they come."""

    __slots__ = ("_dropped", "_log", "_logged", "_partial", "_tail")

    def __init__(self, log: Callable[[list[str]], None]) -> None:
        self._log = log
        self._logged = 0
        self._dropped = 0
        self._partial = b""
        self._tail = b""

    @property
    def tail(self) -> str:
        """The last that was said."""
        return self._tail.decode("utf-8", "backslashreplace").strip()

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        self._tail = (self._tail + data)[-TAIL:]
        room = LOG_LIMIT - self._logged
        if room <= 0:
            self._dropped += len(data)
            return
        self._dropped += max(len(data) - room, 0)
        self._logged += min(len(data), room)
        *lines, self._partial = (self._partial + data[:room]).split(b"\n")
        while len(self._partial) > LINE_LIMIT:
            lines.append(self._partial[:LINE_LIMIT])
            self._partial = self._partial[LINE_LIMIT:]
        if lines:
            self._log([_text(line) for line in lines])

    def finish(self) -> None:
        """Log what is left: nothing more is said."""
        last = [_text(self._partial)] if self._partial else []
        self._partial = b""
        if self._dropped:
            last.append(f"({self._dropped} more bytes of stderr were dropped; {LOG_LIMIT} are logged of one run)")
            self._dropped = 0
        if last:
            self._log(last)


class ErrorStream:
    """Drains the read end of a program's stderr."""

    __slots__ = ("_text", "descriptor")

    def __init__(self, descriptor: int, log: Callable[[list[str]], None]) -> None:
        self.descriptor = descriptor
        self._text = ErrorText(log)

    @property
    def tail(self) -> str:
        """The last that was said."""
        return self._text.tail

    def read(self) -> bool:
        """Take what is there, a piece at most; return whether there may be more."""
        try:
            data = os.read(self.descriptor, _PIECE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._text.feed(data)
        return bool(data)

    def close(self) -> None:
        """Take what is still there, log what is left of it, and close."""
        for _ in range(64):
            if not self.read():
                break
        self._text.finish()
        os.close(self.descriptor)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "backslashreplace")
