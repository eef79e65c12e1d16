"""The web server's side of a connection: one request at a time, of the id 1. Bytes in, events out, no I/O.

To the application go BEGIN_REQUEST, PARAMS, STDIN and perhaps ABORT_REQUEST; from it come STDOUT and STDERR, mixed,
and END_REQUEST. What a stream brings is passed on as it comes: a record may be of 64 KiB, and its first bytes are not
kept back for its last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from fcgi_pool.protocol.params import decode_params, encode_params, params_records
from fcgi_pool.protocol.records import (
    HEADER,
    HEADER_LENGTH,
    KEEP_CONN,
    MAX_CONTENT,
    PADDING,
    VERSION,
    ProtocolError,
    RecordType,
    Role,
    encode_record,
    stream_records,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REQUEST_ID = 1

_PARAMS = int(RecordType.PARAMS)
_STDIN = int(RecordType.STDIN)
_STDOUT = int(RecordType.STDOUT)
_STDERR = int(RecordType.STDERR)
_END_REQUEST = int(RecordType.END_REQUEST)
_VALUES = int(RecordType.GET_VALUES_RESULT)
_UNKNOWN_TYPE = int(RecordType.UNKNOWN_TYPE)

END_OF_STDIN = encode_record(_STDIN, REQUEST_ID)
ABORT = encode_record(RecordType.ABORT_REQUEST, REQUEST_ID)

_END_OF_PARAMS = encode_record(_PARAMS, REQUEST_ID)
_END_OF_STDOUT = encode_record(_STDOUT, REQUEST_ID)
# The header of END_REQUEST without padding.
_END_RECORD = HEADER.pack(VERSION, _END_REQUEST, REQUEST_ID, 8, 0)
_LEAST_WHOLE = 2 * HEADER_LENGTH + 9
_END_OF_INPUT = _END_OF_PARAMS + END_OF_STDIN
# appStatus, protocolStatus and three bytes reserved (section 5.5).
_END_BODY = struct.Struct(">IB3x")
_RESPONDER = Role.RESPONDER


def _begin(role: int, keep: bool) -> bytes:
    return encode_record(
        RecordType.BEGIN_REQUEST, REQUEST_ID, struct.pack(">HB5x", int(role), KEEP_CONN if keep else 0)
    )


_BEGIN_AND_CLOSE = _begin(_RESPONDER, False)
_BEGIN_AND_KEEP = _begin(_RESPONDER, True)
_pack_header = HEADER.pack
_unpack_header = HEADER.unpack_from


def encode_request(params: bytes, *, role: Role = _RESPONDER, keep: bool, ends: bool) -> bytes:
    """Return what begins a request: BEGIN_REQUEST, all PARAMS, and with `ends` the end of STDIN.

    `params` is what encode_params returns. With `keep` the application leaves the connection open (section 5.1).
    `ends` says that there is no request body. Raises ProtocolError if `params` is longer than a record and malformed.
    """
    if role is _RESPONDER:
        begin = _BEGIN_AND_KEEP if keep else _BEGIN_AND_CLOSE
    else:
        begin = _begin(role, keep)
    length = len(params)
    last = _END_OF_INPUT if ends else _END_OF_PARAMS
    if 0 < length <= MAX_CONTENT:
        padding = -length & 7
        header = _pack_header(VERSION, _PARAMS, REQUEST_ID, length, padding)
        return b"".join((begin, header, params, PADDING[padding], last))
    return b"".join((begin, params_records(params, REQUEST_ID), last))


def stdin_records(data: bytes | memoryview) -> list[bytes | memoryview]:
    """Return a part of the request body as STDIN records, in pieces for sendmsg; the content is not copied."""
    return stream_records(_STDIN, REQUEST_ID, data)


def data_records(data: bytes | memoryview) -> list[bytes | memoryview]:
    """Return a part of the file that a Filter is to filter (section 6.4), as DATA records, in pieces for sendmsg."""
    return stream_records(RecordType.DATA, REQUEST_ID, data)


def get_values(names: Iterable[bytes]) -> bytes:
    """Return a record that asks for the values of variables (section 4.1), such as MAX_CONNS."""
    return encode_record(RecordType.GET_VALUES, 0, encode_params((name, b"") for name in names))


@dataclass
class Stdout:
    """A part of the response."""

    __slots__ = ("data",)
    data: bytes


@dataclass
class Stderr:
    """A part of what the application has to say about its errors."""

    __slots__ = ("data",)
    data: bytes


@dataclass
class StreamEnd:
    """The end of STDOUT or STDERR; `stream` is the type of its records. Many applications never tell it."""

    __slots__ = ("stream",)
    stream: RecordType


@dataclass
class End:
    """The end of the request (section 5.5). `protocol_status` can be a number that ProtocolStatus does not know."""

    __slots__ = ("app_status", "protocol_status")
    app_status: int
    protocol_status: int


# The usual end.
_WELL = End(0, 0)
_ALL_ZERO = bytes(8)


@dataclass
class Values:
    """The answer to get_values: those of the variables that the application knows."""

    __slots__ = ("values",)
    values: Mapping[bytes, bytes]


@dataclass
class UnknownType:
    """The application does not know the type `kind` of a management record (section 4.2)."""

    __slots__ = ("kind",)
    kind: int


_STREAM_ENDS = {_STDOUT: StreamEnd(RecordType.STDOUT), _STDERR: StreamEnd(RecordType.STDERR)}

if TYPE_CHECKING:
    Event = Stdout | Stderr | StreamEnd | End | Values | UnknownType


class _State(IntEnum):
    # No request runs.
    IDLE = 0
    # Both streams may bring more.
    OPEN = 1
    STDOUT_ENDED = 2
    STDERR_ENDED = 3
    BOTH_ENDED = 4


# What may come in which state, and the state after it; a record of a stream without content (False) ends the stream.
# Ending a stream again is harmless, and is done.
_TRANSITIONS = {
    _State.IDLE: {},
    _State.OPEN: {
        (_STDOUT, True): _State.OPEN,
        (_STDOUT, False): _State.STDOUT_ENDED,
        (_STDERR, True): _State.OPEN,
        (_STDERR, False): _State.STDERR_ENDED,
        (_END_REQUEST, True): _State.IDLE,
    },
    _State.STDOUT_ENDED: {
        (_STDOUT, False): _State.STDOUT_ENDED,
        (_STDERR, True): _State.STDOUT_ENDED,
        (_STDERR, False): _State.BOTH_ENDED,
        (_END_REQUEST, True): _State.IDLE,
    },
    _State.STDERR_ENDED: {
        (_STDOUT, True): _State.STDERR_ENDED,
        (_STDOUT, False): _State.BOTH_ENDED,
        (_STDERR, False): _State.STDERR_ENDED,
        (_END_REQUEST, True): _State.IDLE,
    },
    _State.BOTH_ENDED: {
        (_STDOUT, False): _State.BOTH_ENDED,
        (_STDERR, False): _State.BOTH_ENDED,
        (_END_REQUEST, True): _State.IDLE,
    },
}
# The same as a row for each state, of plain numbers: read for every record. -1: not legal.
_NEXT = tuple(
    tuple(
        tuple(int(_TRANSITIONS[state].get((kind, has_content), -1)) for has_content in (False, True))
        for kind in range(256)
    )
    for state in _State
)
_OPEN = int(_State.OPEN)
_IDLE = int(_State.IDLE)


class ResponseReader:
    """Reads what an application answers to one request after the other; a new one is ready for the first.

    Everything it holds between two calls is what it was given last and at most one record that is not a stream's.
    """

    __slots__ = ("_at", "_content", "_data", "_kind", "_left", "_padding", "_state")

    def __init__(self) -> None:
        self._state = _OPEN
        self._data = b""
        self._at = 0
        # Of the record that has come in part: its type (0: there is none), content and padding still to come.
        self._kind = 0
        self._left = 0
        self._padding = 0
        # What has come of it, if it can be read only when whole.
        self._content = bytearray()

    def begin(self) -> None:
        """Be ready for the response to the next request; raise ProtocolError if the last has not ended."""
        if self._state != _IDLE:
            raise ProtocolError("the last request has not ended")
        self._state = _OPEN

    @property
    def is_idle(self) -> bool:
        """Whether the request has ended and nothing has come after it: the connection can be used again."""
        return self._state == _IDLE and not self._kind and self._at == len(self._data)

    def receive(self, data: bytes) -> None:
        """Take what the application has sent."""
        if self._at == len(self._data):
            self._data = data
        else:
            self._data = self._data[self._at :] + data
        self._at = 0

    def receive_whole(self, data: bytes) -> tuple[bytes, End] | None:
        """Take what the application has sent if it is a whole response and no more, as most are that are short.

        That is one STDOUT record, perhaps the end of that stream, and END_REQUEST. Returns the content and the end, and
        is ready for the next request; returns None, having taken nothing, for all else.
        """
        if self._state != _OPEN or self._kind or self._padding or self._at != len(self._data):
            return None
        size = len(data)
        if size < _LEAST_WHOLE:
            return None
        version, kind, request_id, length, padding = _unpack_header(data, 0)
        at = HEADER_LENGTH + length + padding
        if version != VERSION or kind != _STDOUT or request_id != REQUEST_ID or not length or at + 16 > size:
            return None
        if data.startswith(_END_OF_STDOUT, at):
            at += HEADER_LENGTH
        if at + 16 != size or not data.startswith(_END_RECORD, at):
            return None
        self._data, self._at = b"", 0
        end = _WELL if data.endswith(_ALL_ZERO) else End(*_END_BODY.unpack_from(data, at + HEADER_LENGTH))
        return data[HEADER_LENGTH : HEADER_LENGTH + length], end

    def next_event(self) -> Event | None:
        """Return what has happened next, None until more comes.

        Raises ProtocolError for a record of another version, request or type than may come now, and for more than
        the request's end.
        """
        while True:
            if self._kind or self._padding:
                event = self._go_on()
                if event is not None or self._kind or self._padding:
                    return event
            data, at = self._data, self._at
            content = at + HEADER_LENGTH
            if content > len(data):
                return None
            version, kind, request_id, length, padding = _unpack_header(data, at)
            if version != VERSION or request_id != REQUEST_ID:
                self._check_management(version, kind, request_id)
            else:
                state = _NEXT[self._state][kind][length > 0]
                if state < 0:
                    raise ProtocolError(self._why_not(kind, length))
            end = content + length
            if end + padding > len(data):
                self._at = content
                self._kind, self._left, self._padding = kind, length, padding
                continue
            self._at = end + padding
            if kind == _STDOUT and length:
                return Stdout(data[content:end])
            event = self._finish(kind, data[content:end])
            if event is not None:
                return event

    def _go_on(self) -> Event | None:
        """Read on in a record that has come in part; None if more must come, or if there is nothing to tell of it."""
        kind, at = self._kind, self._at
        event: Event | None = None
        if kind:
            piece = self._data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            if kind in (_STDOUT, _STDERR) and (piece or self._left):
                event = (Stdout(piece) if kind == _STDOUT else Stderr(piece)) if piece else None
                if not self._left:
                    self._kind = 0
            else:
                self._content += piece
                if not self._left:
                    event = self._finish(kind, bytes(self._content))
                    self._content.clear()
                    self._kind = 0
        if not self._kind:
            # The next request may begin before the padding of END_REQUEST has come.
            skipped = min(len(self._data) - at, self._padding)
            self._padding -= skipped
            at += skipped
        self._at = at
        return event

    def _finish(self, kind: int, content: bytes) -> Event | None:
        """Return the event of a whole record that may come now."""
        if kind == _VALUES:
            return Values(dict(decode_params(content)))
        if kind == _UNKNOWN_TYPE:
            if len(content) != 8:
                raise ProtocolError(f"UNKNOWN_TYPE with {len(content)} bytes instead of 8")
            return UnknownType(content[0])
        state = self._state
        self._state = _NEXT[state][kind][len(content) > 0]
        if kind == _END_REQUEST:
            if len(content) != 8:
                raise ProtocolError(f"END_REQUEST with {len(content)} bytes instead of 8")
            return End(*_END_BODY.unpack(content))
        if content:
            return Stdout(content) if kind == _STDOUT else Stderr(content)
        # To end a stream again is no event.
        return _STREAM_ENDS[kind] if state != self._state else None

    def _check_management(self, version: int, kind: int, request_id: int) -> None:
        if version != VERSION:
            raise ProtocolError(f"version {version} instead of {VERSION}: this is not FastCGI 1.0")
        if request_id != 0:
            raise ProtocolError(f"{type_name(kind)} for the request {request_id}, which does not exist")
        if kind not in (_VALUES, _UNKNOWN_TYPE):
            raise ProtocolError(f"{type_name(kind)} for no request (id 0)")

    def _why_not(self, kind: int, length: int) -> str:
        if kind not in (_STDOUT, _STDERR, _END_REQUEST):
            return f"{type_name(kind)}, which an application does not send about a request"
        if self._state == _IDLE:
            return f"{type_name(kind)} after END_REQUEST"
        if kind == _END_REQUEST:
            return "END_REQUEST without content"
        return f"{length} bytes of {type_name(kind)} after the end of that stream"
