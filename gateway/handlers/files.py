"""Answers by a file: whole, in part, or by saying that the client has it already (RFC 9110 sections 13, 14)."""

from __future__ import annotations

import mimetypes
import os
import re
import stat
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.http.message import Fields, Request

if TYPE_CHECKING:
    from gateway.worker import Worker

# Read and written at once.
_PIECE = 256 * 1024

_RANGE = re.compile(rb"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


def send_file(worker: Worker, exchange: Exchange, path: bytes) -> None:
    """Answer `exchange` by the regular file at `path`."""
    request = exchange.request
    if request.method not in (b"GET", b"HEAD"):
        exchange.fail(Fault(405, "a file can only be read", allow="GET, HEAD"))
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        worker.error_log.warning(f"{os.fsdecode(path)} cannot be read by the server's user: chmod +r", exchange.id)
        exchange.fail(Fault(403, f"{os.fsdecode(path)} cannot be read"))
        return
    except OSError as error:
        exchange.fail(Fault(404, f"{os.fsdecode(path)}: {error.strerror}"))
        return
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        exchange.fail(Fault(404, f"{os.fsdecode(path)} is not a regular file"))
        return
    _FileRun(exchange, descriptor, found, _content_type(os.path.basename(path))).begin()


class _FileRun:
    """The sending of one file."""

    __slots__ = ("_at", "_descriptor", "_end", "_exchange", "_fields", "_found")

    def __init__(self, exchange: Exchange, descriptor: int, found: os.stat_result, content_type: bytes) -> None:
        self._exchange = exchange
        self._descriptor = descriptor
        self._found = found
        self._at = 0
        self._end = found.st_size
        tag = b'"%x-%x"' % (found.st_mtime_ns, found.st_size)
        self._fields: Fields = [
            (b"Content-Type", content_type),
            (b"Last-Modified", formatdate(found.st_mtime, usegmt=True).encode()),
            (b"ETag", tag),
            (b"Accept-Ranges", b"bytes"),
        ]

    def begin(self) -> None:
        """Answer."""
        exchange = self._exchange
        size = self._found.st_size
        tag = self._fields[2][1]
        asked = _conditions(exchange.request)
        if _is_unchanged(asked, tag, int(self._found.st_mtime)):
            self._close()
            exchange.respond(304, self._fields[1:3], b"")
            return
        part = None
        if exchange.request.method == b"GET" and asked.get(b"if-range", tag) in (tag, self._fields[1][1]):
            part = _part(asked.get(b"range"), size)
        status = 200
        if part:
            self._at, self._end = part
            if self._at >= self._end:
                self._close()
                exchange.respond(416, [(b"Content-Range", b"bytes */%d" % size)], b"")
                return
            status = 206
            self._fields.append((b"Content-Range", b"bytes %d-%d/%d" % (self._at, self._end - 1, size)))
        exchange.responder = self
        exchange.begin(status, b"", self._fields, self._end - self._at)
        if exchange.needs_no_more:
            self._close()
            exchange.end()
        else:
            self.client_ready()

    def client_ready(self) -> None:
        """Send on."""
        exchange = self._exchange
        while self._at < self._end and not exchange.is_congested:
            try:
                data = os.pread(self._descriptor, min(_PIECE, self._end - self._at), self._at)
            except OSError:
                data = b""
            if not data:
                # It was cut short, or its disk fails.
                self._close()
                exchange.fail(Fault(500, "the file could not be read to its end"))
                return
            self._at += len(data)
            if self._at >= self._end:
                self._close()
                exchange.end(data)
                return
            exchange.write(data)

    def client_gone(self) -> None:
        """The client left."""
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@lru_cache(maxsize=512)
def _content_type(name: bytes) -> bytes:
    kind, encoding = mimetypes.guess_type(os.fsdecode(name))
    if encoding:
        # The file as it is: that it can be unpacked is not said, for then clients would.
        return b"application/gzip" if encoding == "gzip" else b"application/octet-stream"
    if kind is None:
        return b"application/octet-stream"
    return kind.encode() + (b"; charset=utf-8" if kind.startswith("text/") else b"")


def _conditions(request: Request) -> dict[bytes, bytes]:
    names = (b"if-none-match", b"if-modified-since", b"range", b"if-range")
    return {name: value for name, value in request.fields if name in names}


def _is_unchanged(asked: dict[bytes, bytes], tag: bytes, modified: int) -> bool:
    tags = asked.get(b"if-none-match")
    if tags is not None:
        return tags == b"*" or tag in [one.strip(b" \t").removeprefix(b"W/") for one in tags.split(b",")]
    since = asked.get(b"if-modified-since")
    if since is None:
        return False
    try:
        return modified <= parsedate_to_datetime(since.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return False


def _part(asked: bytes | None, size: int) -> tuple[int, int] | None:
    """Return the first byte asked for and the one after the last, None for the whole file.

    Several ranges, and what is no range, are answered by the whole file, as is allowed (section 14.2).
    """
    match = _RANGE.fullmatch(asked) if asked else None
    if not match:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(size - int(suffix), 0), size if int(suffix) else 0
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
