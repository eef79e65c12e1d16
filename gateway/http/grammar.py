"""The grammar of a request's head, strict (RFC 9112 sections 2 to 5, RFC 9110 section 5).

What a library's parser tolerates differs from library to library and from release to release; request smuggling
lives in those differences. So every head passes this grammar before a parser sees it, and the answer does not
depend on which parser reads it then, nor on how its bytes were cut.
"""

from __future__ import annotations

import re

from gateway.http.limits import Limits
from gateway.http.message import Refused

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"

# Groups: method, target, major and minor version. A target is printable ASCII without a space or a fragment.
REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]++) HTTP/([0-9])\.([0-9])\r\n")
FIELD_LINE = re.compile(_TOKEN + rb":" + _VALUE + rb"\r\n")
FIELDS = re.compile(rb"(?:" + FIELD_LINE.pattern + rb")*+\r\n")
# A byte that no head may hold, wherever it stands: controls, a CR without its LF, an LF without its CR.
FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
# Group: the size. 16 hexadecimal digits hold any 64-bit size.
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*+\r\n"
)


class HeadScan:
    """Looks at an incomplete or unacceptable head, line by line, and finds the first thing wrong with it.

    Reading goes on from where the last look ended, so a head that arrives byte by byte costs no more than one that
    arrives whole. The first offence by position decides: thus the verdict is the same for every way to cut.
    """

    __slots__ = ("_limits", "_line", "_lines", "_looked")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._line = 0  # where the incomplete line begins
        self._lines = 0  # complete lines before it
        self._looked = 0

    @property
    def has_request_line(self) -> bool:
        """Whether a complete first line has been seen."""
        return self._lines > 0

    def verdict(self, buffer: bytes) -> Refused | None:
        """Return what is wrong with the head that `buffer` begins with, or None while nothing is."""
        limits = self._limits
        while True:
            bound = limits.request_line if self._lines == 0 else limits.head - self._line
            newline = buffer.find(b"\n", max(self._line, self._looked - 1))
            end = len(buffer) if newline < 0 else newline + 1
            reach = min(end, self._line + bound)
            # One byte back, since a CR at the end of the last look may now have its LF, or not.
            if FORBIDDEN.search(buffer, max(self._looked - 1, self._line), reach) and not _is_cut(buffer, reach):
                return Refused(400, _describe_forbidden(buffer, max(self._looked - 1, self._line), reach))
            if end - self._line > bound:
                if self._lines == 0:
                    return Refused(414, f"the request line is longer than {limits.request_line} bytes")
                return Refused(431, f"the head is longer than {limits.head} bytes")
            self._looked = end
            if newline < 0:
                return None
            refused = self._complete_line(buffer[self._line : end])
            if refused:
                return refused
            self._line = end
            self._lines += 1

    def _complete_line(self, line: bytes) -> Refused | None:
        if self._lines == 0:
            if not REQUEST_LINE.fullmatch(line):
                return Refused(400, f"malformed request line {_shown(line)}")
        elif line != b"\r\n":
            if self._lines > self._limits.fields:
                return Refused(431, f"more than {self._limits.fields} header fields")
            if not FIELD_LINE.fullmatch(line):
                return Refused(400, f"malformed header field {_shown(line)}")
        return None


def _is_cut(buffer: bytes, reach: int) -> bool:
    """Whether the only offence is a CR that a limit, and not the end of the data, parted from its LF."""
    found = FORBIDDEN.search(buffer, 0, reach)
    return bool(found and found.start() == reach - 1 and buffer[reach - 1 : reach + 1] == b"\r\n")


def _describe_forbidden(buffer: bytes, start: int, reach: int) -> str:
    found = FORBIDDEN.search(buffer, start, reach)
    byte = found.group()[:1] if found else b""
    name = {b"\r": "a CR without LF", b"\n": "an LF without CR", b"\0": "a NUL byte"}.get(
        byte, f"control character 0x{byte.hex()}"
    )
    return f"{name} in the head"


def _shown(line: bytes) -> str:
    """Return a line as a log can show it, cut at 80 bytes."""
    return ascii(line[:80].rstrip(b"\r\n").decode("latin-1"))
