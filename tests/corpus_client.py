"""A client that sends bytes in given pieces and believes nothing: every response is read by a strict parser."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType

# Seconds after which a server that neither answers nor closes has failed. Nothing waits that long otherwise.
GUARD = 20

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?)")
_DATE = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")
_SINGULAR = (b"content-length", b"content-type", b"transfer-encoding", b"date", b"server", b"location", b"connection")


class BadResponse(AssertionError):
    """The server sent what no server may send."""


@dataclass
class Response:
    status: int
    head: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    is_whole: bool = True

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field == name]

    @property
    def announces_close(self) -> bool:
        return [value.lower() for value in self.values(b"connection")] == [b"close"]

    @property
    def text(self) -> bytes:
        """Head, empty line, body without its coding."""
        return self.head + b"\r\n\r\n" + self.body


def _check(condition: object, complaint: str, response: object) -> None:
    if not condition:
        raise BadResponse(f"{complaint}: {response!r}")


def _read_head(head: bytes) -> Response:
    line, *rest = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if not match:
        raise BadResponse(f"malformed status line {line!r}")
    fields = []
    for field_line in rest:
        field = _FIELD.fullmatch(field_line)
        if not field:
            raise BadResponse(f"malformed field {field_line!r}")
        fields.append((field[1].lower(), field[2].rstrip(b" \t")))
    response = Response(int(match[1]), head, fields)
    for name in _SINGULAR:
        _check(len(response.values(name)) <= 1, f"more than one {name.decode()}", head)
    return response


def _check_fields(response: Response) -> None:
    """What every final response must have (RFC 9110 sections 6.6.1, 8.6, 15.5.6; RFC 9112 section 6)."""
    head = response.head
    dates = response.values(b"date")
    _check(len(dates) == 1 and _DATE.fullmatch(dates[0]), "no good Date", head)
    parsedate_to_datetime(dates[0].decode())
    lengths, codings = response.values(b"content-length"), response.values(b"transfer-encoding")
    _check(not (lengths and codings), "two framings", head)
    _check(codings in ([], [b"chunked"]), "a strange transfer coding", head)
    _check(not lengths or re.fullmatch(rb"0|[1-9][0-9]*", lengths[0]), "a bad length", head)
    if response.status == 204:
        _check(not lengths and not codings, "a framing for no content", head)
    if response.status == 405:
        _check(response.values(b"allow"), "no Allow", head)


def _read_chunks(data: bytes) -> tuple[bytes, int] | None:
    """Return the decoded body and where it ends, or None while it is not whole."""
    body, position = b"", 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size_line = data[position:end]
        _check(re.fullmatch(rb"0|[1-9A-Fa-f][0-9A-Fa-f]*", size_line), "a bad chunk size", data[position : end + 80])
        size = int(size_line, 16)
        following = end + 2 + size
        if len(data) < following + 2:
            return None
        _check(data[following : following + 2] == b"\r\n", "a chunk without its end", data[position : following + 80])
        if size == 0:
            return body, following + 2
        body += data[end + 2 : following]
        position = following + 2
    return None


class Client:
    """One connection. `read` gives one response at a time, interim ones too."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.was_reset = False
        self._socket = socket.create_connection(address, GUARD)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._at_end = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send, unless the server has reset the connection; then what it sent before can still be read."""
        try:
            if not self.was_reset:
                self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.was_reset = True

    def _receive(self) -> bool:
        """Wait for more bytes; return whether there are more. Raises TimeoutError when there is not even an end."""
        try:
            data = b"" if self._at_end else self._socket.recv(65536)
        except ConnectionResetError:
            data = b""
            self.was_reset = True
        self._received += data
        self._at_end = not data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def read_to_end(self) -> bytes:
        """What comes until the server closes."""
        while self._receive():
            pass
        return self._take(len(self._received))

    def read(self, to_head: bool) -> Response | None:
        """Return the next response, or None when the server has closed instead. Raises BadResponse."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if not self._receive():
                _check(not self._received, "a head without its end", self._received)
                return None
        response = _read_head(self._take(end + 4)[:-4])
        if response.status < 200:
            _check(not response.fields, "fields in an interim response", response.head)
            return response
        _check_fields(response)
        if not to_head and response.status not in (204, 304):
            self._read_body(response)
        return response

    def _read_body(self, response: Response) -> None:
        if lengths := response.values(b"content-length"):
            size = int(lengths[0])
            while len(self._received) < size and response.is_whole:
                response.is_whole = self._receive()
            response.body = self._take(size)
        elif response.values(b"transfer-encoding"):
            while (chunks := _read_chunks(self._received)) is None:
                if not self._receive():
                    response.is_whole = False
                    return
            response.body, size = chunks
            self._take(size)
        else:
            _check(response.announces_close, "no framing, and no close", response.head)
            response.body = self.read_to_end()
