"""The error log: what went wrong, in words, with the request's id; and what programs say on stderr."""

from __future__ import annotations

import time
import traceback

from gateway.log_file import LogFile, escape

_COLOURS = {"error": "\x1b[31m", "warning": "\x1b[33m", "script": "\x1b[36m", "notice": ""}
_PLAIN = "\x1b[0m"


class ErrorLog:
    """Writes one line per event: ``2026-11-23T11:35:44.123Z error [id] text``.

    ``error`` is a response 5xx or a failure of ours, ``warning`` what the administrator should know, ``notice`` a
    change of state, ``script`` a line of a program's stderr.
    """

    def __init__(self, path: str, standard: int = 2) -> None:
        """Open the log; raise OSError."""
        self._file = LogFile(path, standard)
        self._coloured = self._file.is_terminal

    def reopen(self) -> None:
        """Open the log's path again."""
        self._file.reopen()

    def move(self, path: str) -> None:
        """Go on in the log at another path; stay where that cannot be opened."""
        try:
            new = LogFile(path, 2)
        except OSError as error:
            self.error(f"log {path} not opened: {error.strerror}")
            return
        self._file.close()
        self._file = new
        self._coloured = new.is_terminal

    def close(self) -> None:
        """Close the log's file, in a process that does not write to it."""
        self._file.close()

    def error(self, text: str, request_id: str = "") -> None:
        """Log a failure."""
        self._write("error", text, request_id)

    def warning(self, text: str, request_id: str = "") -> None:
        """Log what needs attention."""
        self._write("warning", text, request_id)

    def notice(self, text: str) -> None:
        """Log a change of state."""
        self._write("notice", text, "")

    def script(self, lines: list[str], name: str, pid: int, request_id: str) -> None:
        """Log lines of the stderr of program `name`."""
        stamp = _stamp()
        colour, plain = (_COLOURS["script"], _PLAIN) if self._coloured else ("", "")
        start = f"{stamp} {colour}script{plain} [{request_id}] {escape(name)}[{pid or '-'}]: "
        self._file.write("".join(f"{start}{_printable(line)}\n" for line in lines))

    def unexpected(self, text: str, error: BaseException | None) -> None:
        """Log a fault of ours with its traceback, for a bug report."""
        lines = traceback.format_exception(error) if error else []
        self._write("error", f"unexpected, please report: {text}", "")
        self._file.write("".join(lines))

    def say(self, text: str) -> None:
        """Write a line to the operator, without a time: what is listened on, and that the server is ready."""
        self._file.write(f"gateway: {_printable(text)}\n")

    def _write(self, level: str, text: str, request_id: str) -> None:
        colour = _COLOURS[level] if self._coloured else ""
        plain = _PLAIN if colour else ""
        mark = f"[{request_id}] " if request_id else ""
        self._file.write(f"{_stamp()} {colour}{level}{plain} {mark}{_printable(text)}\n")


def _printable(line: str) -> str:
    """Return a line whose control characters but the tab are escaped; quotes stay as they are, for reading."""
    return "".join(
        character if character in '\t"\\' or character.isprintable() else escape(character) for character in line
    )


def _stamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
