"""The head of a response as bytes (RFC 9112 section 4)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from gateway import __version__
from gateway.http.message import Fields

SERVER_SOFTWARE = f"gateway/{__version__}"

REASONS: dict[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus}
# RFC 9110 renamed these; Python 3.13 follows, earlier versions do not.
REASONS[413] = b"Content Too Large"
REASONS[499] = b"Client Closed Request"

_STATUS_LINES = {status: b"HTTP/1.1 %d %s\r\n" % (status, reason) for status, reason in REASONS.items()}
_SERVER_LINE = b"Server: " + SERVER_SOFTWARE.encode() + b"\r\n"
# For the Allow field, where a method is refused whatever the target.
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_date_second = 0
_date_line = b""


def date_line() -> bytes:
    """Return the Date field, formatted once a second (RFC 9110 section 6.6.1)."""
    global _date_second, _date_line
    now = int(time.time())
    if now != _date_second:
        _date_second = now
        _date_line = b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n"
    return _date_line


@dataclass(frozen=True, slots=True)
class Start:
    """The first lines of a head: status line, fields, Server. `has_date`: the fields hold a Date."""

    lines: bytes
    has_date: bool


def encode_start(status: int, reason: bytes, fields: Fields) -> Start:
    """Return what a head begins with. Server is added where `fields`, whose names may be of any case, lack it."""
    if not reason or reason == REASONS.get(status):
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    else:
        line = b"HTTP/1.1 %d %s\r\n" % (status, reason)
    parts = [line]
    has_date = has_server = False
    for name, value in fields:
        if len(name) == 4 and name.lower() == b"date":
            has_date = True
        elif len(name) == 6 and name.lower() == b"server":
            has_server = True
        parts.append(b"%s: %s\r\n" % (name, value))
    if not has_server:
        parts.append(_SERVER_LINE)
    return Start(b"".join(parts), has_date)


def with_status(start: Start, status: int) -> Start:
    """Return the same first lines for another status."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return Start(line + start.lines.partition(b"\r\n")[2], start.has_date)


def with_fields(start: Start, fields: Iterable[tuple[bytes, bytes]]) -> Start:
    """Return the same first lines with `fields` in place of those of the same names; one without a value goes."""
    fields = list(fields)
    names = {name.lower() for name, _ in fields}
    status, *lines = start.lines.splitlines(keepends=True)
    kept = [line for line in lines if line.partition(b":")[0].lower() not in names]
    own = [b"%s: %s\r\n" % (name, value) for name, value in fields if value]
    has_date = b"date" in names or (start.has_date and b"date" not in names)
    return Start(b"".join([status, *kept, *own]), has_date)


def encode_head(start: Start, framing: bytes) -> bytes:
    """Return the head's bytes. `framing` holds complete lines about length and persistence; a Date is added."""
    return b"".join((start.lines, b"" if start.has_date else date_line(), framing, b"\r\n"))
