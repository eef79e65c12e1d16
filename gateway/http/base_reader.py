"""Requests out of bytes: the reader's interface and what both readers share. Bytes in, events out, no I/O."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from gateway.http.framing import ChunkedBody, LengthBody
from gateway.http.grammar import FIELDS, REQUEST_LINE, HeadScan
from gateway.http.limits import Limits
from gateway.http.message import END, NEED_DATA, Data, Fields, Refused, Request, Signal
from gateway.http.semantics import interpret

_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
_LINE_ENDS = (b"\r", b"\n")
_HEAD = b"HEAD "

# A client sends the same fields with each of its requests, but for a few; so what they mean is kept for the next, where
# no body follows. So many blocks of fields, each of at most so many bytes; then all are forgotten.
_KNOWN_BLOCKS = 256
_KNOWN_SIZE = 2048
_HTTP_1_1 = (1, 1)

Event = Request | Data | Refused | Signal

# The bytes after a request line: a request of these fields.
_Known = dict[bytes, Request]
_known_of: dict[tuple[type, Limits], _Known] = {}


class Reader(ABC):
    """Reads the requests of one connection.

    `receive` stores bytes, `next_event` is pulled: a `Request`, then, if it has a body, `Data` … `END`; `NEED_DATA`
    when the bytes do not suffice; `Refused` for good when the client broke the protocol.
    """

    __slots__ = ("_body", "_buffer", "_known", "_limits", "_position", "_refused", "_scan", "_was_head")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known = _known_of.setdefault((type(self), limits), {})
        self._buffer = b""
        self._position = 0  # of the first byte that no event has consumed
        self._scan: HeadScan | None = None
        self._body: LengthBody | ChunkedBody | None = None
        self._refused: Refused | None = None
        self._was_head = False  # what is refused

    @abstractmethod
    def _parse_fields(self, head: bytes, line_end: int) -> Fields | None:
        """Return the fields of a well-formed `head` whose first line ends at `line_end`; None if it is refused."""

    @property
    def buffered(self) -> int:
        """How many received bytes no event has consumed."""
        return len(self._buffer) - self._position

    @property
    def has_begun(self) -> bool:
        """Whether a part of the next request is here."""
        return len(self._buffer) > self._position

    @property
    def has_request_line(self) -> bool:
        """Whether the next request's first line is here while its head is not complete."""
        return self._scan is not None and self._scan.has_request_line

    @property
    def is_for_head(self) -> bool:
        """Whether what was refused, or is not complete, begins as a HEAD: then no body answers it (RFC 9110 9.3.2)."""
        return self._was_head if self._refused else self._buffer.startswith(_HEAD, self._position)

    def receive(self, data: bytes) -> None:
        """Store received bytes."""
        rest = self._buffer[self._position :] if self._position else self._buffer
        self._buffer = rest + data if rest else data
        self._position = 0

    def limit_body(self, most: int) -> None:
        """Let the body that follows the request have `most` bytes, and not what the limits say, if none was read."""
        if isinstance(self._body, ChunkedBody):
            self._body.most = most

    def next_event(self) -> Event:
        """Return the next event; see the class."""
        if self._refused:
            return self._refused
        event: Event
        if self._body is None:
            buffer, begin = self._buffer, self._position
            event = self._next_request()
            if isinstance(event, Refused):
                self._was_head = buffer.startswith(_HEAD, _end_of_empty_lines(buffer, begin))
        else:
            event, self._position = self._body.next_event(self._buffer, self._position)
            if event is END:
                self._body = None
        if isinstance(event, Refused):
            self._refused = event
            self._buffer, self._position = b"", 0
        elif self._position == len(self._buffer):
            self._buffer, self._position = b"", 0  # an idle connection keeps nothing
        return event

    def _next_request(self) -> Event:
        buffer, begin = self._buffer, self._position
        if buffer[begin : begin + 1] in _LINE_ENDS and self._scan is None:
            begin = self._position = _end_of_empty_lines(buffer, begin)
            if buffer[begin:] == b"\r":
                return NEED_DATA
        if begin == len(buffer):
            return NEED_DATA
        limits = self._limits
        end = buffer.find(b"\r\n\r\n", begin, begin + limits.head) + 4
        if end >= 4:
            line = REQUEST_LINE.match(buffer, begin)
            if line and line.end() - begin <= limits.request_line:
                line_end = line.end()
                known = self._known.get(buffer[line_end:end])
                if known:
                    method, target, major, minor = line.groups()
                    if target[0] == 0x2F and major == minor == b"1" and method != b"CONNECT":
                        self._scan = None
                        self._position = end
                        return _like(known, method, target)
                if buffer.count(b"\n", begin, end) <= limits.fields + 2 and FIELDS.match(buffer, line_end):
                    self._scan = None
                    self._position = end
                    method, target, major, minor = line.groups()
                    head = buffer[begin:end]
                    return self._begin(method, target, (int(major), int(minor)), head, line_end - begin)
        # Incomplete, or with something wrong: looked at line by line.
        if begin:
            self._buffer, self._position = buffer[begin:], 0
        if self._scan is None:
            self._scan = HeadScan(limits)
        return self._scan.verdict(self._buffer) or NEED_DATA

    def _begin(
        self, method: bytes, target: bytes, version: tuple[int, int], head: bytes, line_end: int
    ) -> Request | Refused:
        request = interpret(method, target, version, head, self._limits)
        if isinstance(request, Refused):
            return request
        fields = self._parse_fields(head, line_end)
        if fields is None:
            return Refused(400, "malformed request")
        request.fields = fields
        if request.chunked:
            self._body = ChunkedBody(self._limits)
        elif request.content_length:
            self._body = LengthBody(request.content_length)
        elif request.content_length is None and len(head) - line_end <= _KNOWN_SIZE:
            self._remember(request, head[line_end:])
        return request

    def _remember(self, request: Request, block: bytes) -> None:
        if request.version == _HTTP_1_1 and request.target[0] == 0x2F:
            if len(self._known) >= _KNOWN_BLOCKS:
                self._known.clear()
            self._known[block] = request


def _like(known: Request, method: bytes, target: bytes) -> Request:
    """Return a request for a path with the fields of another, which had no body."""
    path, _, query = target.partition(b"?")
    return Request(
        method, target, _HTTP_1_1, known.fields, path, query, known.authority,
        None, False, known.keep_alive, False, known.notes,
    )  # fmt: skip


def _end_of_empty_lines(buffer: bytes, position: int) -> int:
    """Return where the empty lines that may precede a request line end (RFC 9112 section 2.2)."""
    match = _EMPTY_LINES.match(buffer, position)
    return match.end() if match else position
