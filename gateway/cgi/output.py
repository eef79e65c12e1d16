"""The one judge of what a program writes (RFC 3875 section 6). Bytes in, a verdict out, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gateway.http.message import Fields
from gateway.http.response import Start, encode_start

# A header larger than this is no header. nginx 4 or 8 KiB (fastcgi_buffer_size), lighttpd 64 KiB.
HEADER_LIMIT = 64 * 1024
# Blocks of status 1xx before the real header; a program that writes more has lost its way.
INTERIM_LIMIT = 10

# A program writes the same header with most of its responses; what it means is kept. So many headers, each of at most
# so many bytes; then all are forgotten.
_KNOWN_HEADERS = 256
_KNOWN_SIZE = 1024
_known: dict[bytes, Header] = {}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r?\n")
_HEADER = re.compile(
    rb"(?:HTTP/1\.[01] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*+)?\r?\n)?(?:"
    + _TOKEN
    + rb":[\t\x20-\x7e\x80-\xff]*+\r?\n)*+\r?\n"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?\r?\n")
_STATUS = re.compile(rb"([1-9][0-9]{2})(?:[ \t]+(.*))?")
_END = re.compile(rb"(?:\A|\n)\r?\n")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_LOCAL = re.compile(rb"/(?!/)[\x21\x22\x24-\x7e]*")

# Of one connection, not of the message (RFC 9110 section 7.6.1), or ours to say.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)


class BadOutput(ValueError):
    """Output that is no CGI response; the text says what is wrong with it."""


@dataclass(slots=True)
class Header:
    """What a program's header says.

    `fields` are for the client, without those of one connection or for this server. `local_redirect` is the target of
    a redirect within the server, which holds only if no body follows.
    """

    status: int = 200
    reason: bytes = b""
    fields: Fields = field(default_factory=list)
    content_length: int | None = None
    local_redirect: bytes | None = None
    # What answers instead, whatever the body: a path of this server (X-Accel-Redirect), or a file (X-Sendfile).
    accelerated: bytes | None = None
    file: bytes | None = None
    _start: Start | None = None

    @property
    def is_handed_on(self) -> bool:
        """Whether something else answers."""
        return self.accelerated is not None or self.file is not None

    @property
    def start(self) -> Start:
        """What the head of the response begins with."""
        if self._start is None:
            self._start = encode_start(self.status, self.reason, self.fields)
        return self._start


class HeaderReader:
    """Reads the header off a program's output, however it is cut."""

    __slots__ = ("_buffer", "_checked", "_interims")

    def __init__(self) -> None:
        self._buffer = b""
        self._checked = 0
        self._interims = 0

    @property
    def first_bytes(self) -> bytes:
        """What the program has written so far, for an explanation."""
        return self._buffer

    def feed(self, data: bytes) -> tuple[Header, bytes] | None:
        """Take output; return the header and the bytes after it once it is complete, else None. Raise BadOutput."""
        known = known_header(data) if not self._buffer else None
        if known:
            return known[0], data[known[1] :]
        # Looked at before the parts are joined, so that a header that dribbles in costs no more than a whole one.
        begin = max(len(self._buffer) - 3, 0)
        buffer = self._buffer = self._buffer + data if self._buffer else data
        while True:
            match = _HEADER.match(buffer) if _END.search(buffer, begin) else None
            if not match:
                self._check_lines()
                return None
            if match.end() > HEADER_LIMIT:
                raise BadOutput(f"the header is longer than {HEADER_LIMIT} bytes")
            header = _interpret(match.group())
            if header.status >= 200:
                _remember(match.group(), header)
                return header, buffer[match.end() :]
            self._interims += 1
            if self._interims > INTERIM_LIMIT:
                raise BadOutput(f"more than {INTERIM_LIMIT} interim responses (status 1xx)")
            buffer = self._buffer = buffer[match.end() :]
            self._checked = begin = 0

    def _check_lines(self) -> None:
        """Raise BadOutput if a line that is complete cannot belong to a header."""
        buffer = self._buffer
        while (newline := buffer.find(b"\n", self._checked) + 1) > 0:
            if not _FIELD.fullmatch(buffer, self._checked, newline) and not (
                self._checked == 0 and _STATUS_LINE.fullmatch(buffer, 0, newline)
            ):
                raise BadOutput(_why_not_a_field(buffer[self._checked : newline]))
            self._checked = newline
        if len(buffer) > HEADER_LIMIT:
            raise BadOutput(f"the header is longer than {HEADER_LIMIT} bytes")


def known_header(data: bytes) -> tuple[Header, int] | None:
    """Return the header that `data` begins with, and its length, if it was seen before."""
    end = data.find(b"\r\n\r\n") + 4
    known = _known.get(data[:end])
    return (known, end) if known else None


def _remember(block: bytes, header: Header) -> None:
    if len(block) <= _KNOWN_SIZE and block.endswith(b"\r\n\r\n"):
        if len(_known) >= _KNOWN_HEADERS:
            _known.clear()
        _known[block] = header


def _why_not_a_field(line: bytes) -> str:
    text = line.rstrip(b"\r\n")
    shown = ascii(text[:60].decode("latin-1"))
    if b"\0" in text:
        return f"a NUL byte in the header line {shown}"
    if b"\r" in text:
        return f"a CR within the header line {shown}"
    if text[:1] in (b" ", b"\t"):
        return f"a header line begins with white space: {shown}"
    if b":" not in text:
        return f"a header line without a colon: {shown}"
    return f"malformed header line {shown}"


def _interpret(block: bytes) -> Header:
    header = Header()
    seen: dict[bytes, bytes] = {}
    status_line = _STATUS_LINE.match(block)
    if status_line:
        header.status, header.reason = int(status_line[1]), (status_line[2] or b"").strip()
    fields: Fields = _FIELD.findall(block, status_line.end() if status_line else 0)
    if not fields and not status_line:
        raise BadOutput("the output begins with an empty line: there is no header, such as Content-Type")
    for name, raw in fields:
        value = raw.rstrip(b" \t")
        lower = name.lower()
        if lower == b"status":
            _read_status(header, value)
        elif lower == b"content-length":
            _read_length(header, value)
        elif lower == b"x-accel-redirect":
            if not _LOCAL.fullmatch(value):
                shown = value[:40].decode("latin-1")
                raise BadOutput(f"malformed X-Accel-Redirect {shown!a}; write a path, as /files/a")
            header.accelerated = value
        elif lower == b"x-sendfile":
            header.file = value
        elif lower not in _HOP_BY_HOP:
            header.fields.append((name, value))
        seen[lower] = value
    if b"connection" in seen:
        named = {option.strip().lower() for option in seen[b"connection"].split(b",")}
        header.fields = [item for item in header.fields if item[0].lower() not in named]
    if b"location" in seen and b"status" not in seen and not status_line:
        header.status = 302
        if seen.keys() <= {b"location", b"content-type"} and _LOCAL.fullmatch(seen[b"location"]):
            header.local_redirect = seen[b"location"]
    return header


def _read_status(header: Header, value: bytes) -> None:
    match = _STATUS.fullmatch(value)
    if not match:
        raise BadOutput(f"malformed Status {value[:40].decode('latin-1')!a}; write, say, 'Status: 404 Not Found'")
    header.status, header.reason = int(match[1]), match[2] or b""


def _read_length(header: Header, value: bytes) -> None:
    if not _LENGTH.fullmatch(value):
        raise BadOutput(f"malformed Content-Length {value[:40].decode('latin-1')!a}")
    length = int(value)
    if header.content_length not in (None, length):
        raise BadOutput("two Content-Length fields that differ")
    header.content_length = length
