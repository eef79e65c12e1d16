"""Files that are only appended to: written in whole lines, reopened for rotation."""

from __future__ import annotations

import os
import re
import sys

from gateway.own_file import open_to_write

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\\"\ud800-\udfff]")


def escape(text: str) -> str:
    """Return `text` with control characters, quotes and backslashes escaped, so that it stays within its line."""
    return _CONTROL.sub(lambda match: _escaped(match.group()), text) if _CONTROL.search(text) else text


def _escaped(character: str) -> str:
    if character in '\\"':
        return "\\" + character
    code = ord(character)
    # A byte that was no UTF-8 comes as a lone surrogate (PEP 383).
    return f"\\x{code - 0xDC00 if code > 0xFF else code:02x}"


class LogFile:
    """One log: a path, ``-`` for the standard stream `standard`, or ``off``.

    Every write appends whole lines by one system call, so several processes can share a file. What cannot be written,
    to a full disk say, is dropped: a log never stops the server.
    """

    def __init__(self, path: str, standard: int) -> None:
        """Open the log; raise OSError if the file cannot be opened."""
        self.path = path
        self._descriptor = -1
        self._standard = standard
        self._open()

    def _open(self) -> None:
        if self.path == "-":
            self._descriptor = self._standard
        elif self.path != "off":
            self._descriptor = open_to_write(self.path, os.O_APPEND)

    @property
    def is_off(self) -> bool:
        """Whether nothing is kept."""
        return self._descriptor < 0

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks on."""
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def reopen(self) -> None:
        """Open the path again, after the old file was moved away; keep the old one if that fails."""
        if self.path in ("-", "off"):
            return
        old = self._descriptor
        try:
            self._open()
        except OSError as error:
            self._descriptor = old
            print(f"gateway: log {self.path} not reopened: {error.strerror}", file=sys.stderr)
        else:
            os.close(old)

    def close(self) -> None:
        """Close a file that was opened here."""
        if self.path not in ("-", "off") and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def write(self, text: str) -> None:
        """Append `text`, which ends with a newline."""
        if self._descriptor < 0:
            return
        data = text.encode("utf-8", "backslashreplace")
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):
                data = data[written:]
                written = os.write(self._descriptor, data)
        except OSError:
            pass
