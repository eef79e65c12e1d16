"""The application's side of a connection: one request at a time. Bytes in, events out, no I/O.

A connection that serves one request at a time answers a second one by CANT_MPX_CONN (section 5.5), and ignores what
comes for a request that does not run (section 3.3): the web server may not know yet that it has ended.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from fcgi_pool.protocol.params import ParamsReader, decode_environment, decode_params, encode_params
from fcgi_pool.protocol.records import (
    HEADER,
    KEEP_CONN,
    MAX_CONNS,
    MAX_REQS,
    MPXS_CONNS,
    VERSION,
    ProtocolError,
    ProtocolStatus,
    RecordReader,
    RecordType,
    Role,
    encode_record,
    stream_records,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_BEGIN_BODY = struct.Struct(">HB5x")
_END_BODY = struct.Struct(">IB3x")

_BEGIN_REQUEST = int(RecordType.BEGIN_REQUEST)
_ABORT_REQUEST = int(RecordType.ABORT_REQUEST)
_PARAMS = int(RecordType.PARAMS)
_STDIN = int(RecordType.STDIN)
_DATA = int(RecordType.DATA)
_GET_VALUES = int(RecordType.GET_VALUES)
_STDOUT = int(RecordType.STDOUT)
_STDERR = int(RecordType.STDERR)
_END_REQUEST = int(RecordType.END_REQUEST)
_COMPLETE = ProtocolStatus.REQUEST_COMPLETE


@dataclass
class BeginRequest:
    """A request has begun; with `keep` the connection is left open after it."""

    __slots__ = ("id", "keep", "role")
    id: int
    role: Role
    keep: bool


@dataclass
class Params:
    """All name–value pairs of the request."""

    __slots__ = ("id", "pairs")
    id: int
    pairs: list[tuple[bytes, bytes]]


@dataclass
class Environment:
    """The same as text, each byte a character (Latin-1), for an application that wants WSGI's `environ`."""

    __slots__ = ("id", "variables")
    id: int
    variables: dict[str, str]


@dataclass
class Stdin:
    """A part of the request body."""

    __slots__ = ("data", "id")
    id: int
    data: bytes


@dataclass
class StdinEnd:
    """The end of the request body."""

    __slots__ = ("id",)
    id: int


@dataclass
class DataStream:
    """A part of the file that a Filter is to filter (section 6.4)."""

    __slots__ = ("data", "id")
    id: int
    data: bytes


@dataclass
class DataStreamEnd:
    """The end of that file."""

    __slots__ = ("id",)
    id: int


@dataclass
class Abort:
    """The web server gives the request up (section 5.4); it still waits for its end."""

    __slots__ = ("id",)
    id: int


if TYPE_CHECKING:
    Event = BeginRequest | Params | Environment | Stdin | StdinEnd | DataStream | DataStreamEnd | Abort


class _State(IntEnum):
    # No request runs.
    IDLE = 0
    # The streams that come, one after the other.
    PARAMS = 1
    STDIN = 2
    FILTER_STDIN = 3
    DATA = 4
    # Everything has come; the application is at work.
    COMPLETE = 5
    # Given up by the web server; what still comes is of no interest.
    ABORTED = 6


# What may come for the request that runs, and the state after it; a record of a stream without content (False) ends
# the stream. After PARAMS the role decides.
_TRANSITIONS = {
    _State.PARAMS: {
        (_PARAMS, True): _State.PARAMS,
        (_PARAMS, False): _State.STDIN,
        (_ABORT_REQUEST, False): _State.ABORTED,
    },
    _State.STDIN: {
        (_STDIN, True): _State.STDIN,
        (_STDIN, False): _State.COMPLETE,
        (_ABORT_REQUEST, False): _State.ABORTED,
    },
    _State.FILTER_STDIN: {
        (_STDIN, True): _State.FILTER_STDIN,
        (_STDIN, False): _State.DATA,
        (_ABORT_REQUEST, False): _State.ABORTED,
    },
    _State.DATA: {
        (_DATA, True): _State.DATA,
        (_DATA, False): _State.COMPLETE,
        (_ABORT_REQUEST, False): _State.ABORTED,
    },
    _State.COMPLETE: {
        # An Authorizer gets no STDIN (section 6.3), but many web servers end it all the same.
        (_STDIN, False): _State.COMPLETE,
        (_ABORT_REQUEST, False): _State.ABORTED,
    },
    _State.ABORTED: {
        (kind, has_content): _State.ABORTED
        for kind in (_PARAMS, _STDIN, _DATA, _ABORT_REQUEST)
        for has_content in (False, True)
    },
}
# The same as a row for each state, of plain numbers. -1: not legal.
_NEXT = tuple(
    tuple(
        tuple(int(_TRANSITIONS.get(state, {}).get((kind, has_content), -1)) for has_content in (False, True))
        for kind in range(256)
    )
    for state in _State
)
_IDLE = int(_State.IDLE)
_STDIN_COMES = int(_State.STDIN)
_COMPLETE_INPUT = int(_State.COMPLETE)
_ABORTED = int(_State.ABORTED)
_AFTER_PARAMS = {
    Role.RESPONDER: _State.STDIN,
    Role.AUTHORIZER: _State.COMPLETE,
    Role.FILTER: _State.FILTER_STDIN,
}


class ApplicationSide:
    """Reads what a web server asks for, and makes the records of the answers.

    What the protocol alone answers gathers in data_to_send, which the caller sends after each receive: it is at most
    twice of what was received.
    """

    def __init__(
        self,
        *,
        roles: Iterable[Role] = (Role.RESPONDER, Role.AUTHORIZER),
        max_conns: int = 1,
        max_reqs: int = 1,
        as_text: bool = False,
    ) -> None:
        """Take the roles that the application plays, and what it tells of how much it serves at once (section 4.1).

        With `as_text` there comes an Environment instead of Params.
        """
        self._as_text = as_text
        self._records = RecordReader()
        self._params = ParamsReader()
        self._roles = {int(role): role for role in roles}
        self._values = {MAX_CONNS: b"%d" % max_conns, MAX_REQS: b"%d" % max_reqs, MPXS_CONNS: b"0"}
        self._state = _IDLE
        self._id = 0
        self._role = Role.RESPONDER
        self._answers: list[bytes] = []
        self._stderr_used = False
        self._keep = True

    @property
    def is_idle(self) -> bool:
        """Whether no request runs and nothing of a record has come."""
        return self._state == _IDLE and self._records.is_empty

    @property
    def keeps(self) -> bool:
        """Whether the connection is to be left open once no request runs (section 5.1)."""
        return self._keep

    @property
    def is_busy(self) -> bool:
        """Whether a request runs: it has begun and `end` has not been called."""
        return self._state != _IDLE

    def receive(self, data: bytes) -> None:
        """Take what the web server has sent."""
        self._records.receive(data)

    def receive_request(self, data: bytes) -> dict[str, str] | None:
        """Take what the web server has sent; return the variables of a request if it is the beginning of one in the
        usual shape, else None: then, and afterwards, `next_event` tells.

        The usual shape: one record for all PARAMS, not cut; id 1, Responder. It is read in one go, and its events are
        not told one by one. Raises ProtocolError.
        """
        keep = _USUAL_BEGINS.get(data[:16])
        if keep is None or self._state != _IDLE or not self._records.is_empty or len(data) < _USUAL_LENGTH:
            self._records.receive(data)
            return None
        version, kind, request_id, length, padding = HEADER.unpack_from(data, 16)
        end = 24 + length
        last = end + padding + 8
        is_usual = version == VERSION and kind == _PARAMS and request_id == 1 and length
        if not is_usual or data[end + padding : last] != _END_OF_PARAMS:
            self._records.receive(data)
            return None
        self._id = 1
        self._role = Role.RESPONDER
        self._keep = keep
        self._stderr_used = False
        rest = data[last:]
        if rest == _END_OF_STDIN:
            self._state = _COMPLETE_INPUT
        else:
            self._state = _STDIN_COMES
            self._records.receive(rest)
        return decode_environment(data[24:end])

    @property
    def has_all(self) -> bool:
        """Whether all streams of the request have ended."""
        return self._state == _COMPLETE_INPUT

    def data_to_send(self) -> bytes:
        """Return what must be sent before anything else, b"" for nothing, and forget it."""
        if not self._answers:
            return b""
        answers = b"".join(self._answers)
        self._answers.clear()
        return answers

    def next_event(self) -> Event | None:
        """Return what has happened next, None until more comes.

        Raises ProtocolError for what breaks the protocol; the connection then is to be closed.
        """
        while (record := self._records.next_record()) is not None:
            kind, request_id, content = record
            if not request_id:
                self._answer_management(kind, content)
            elif kind == _BEGIN_REQUEST:
                event = self._begin(request_id, content)
                if event is not None:
                    return event
            elif request_id == self._id and self._state != _IDLE:
                happened = self._take(kind, content)
                if happened is not None:
                    return happened
            # Else for a request that does not run: ignored (section 3.3).
        return None

    def stdout(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return a part of the response as records, in pieces to be written one after the other."""
        return stream_records(_STDOUT, self._id, data)

    def stderr(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return words for the web server's error log as records, in pieces to be written one after the other."""
        self._stderr_used = self._stderr_used or bool(data)
        return stream_records(_STDERR, self._id, data)

    def end(self, app_status: int = 0, protocol_status: int = _COMPLETE) -> list[bytes | memoryview]:
        """End the request that runs; return the ends of its streams and END_REQUEST (section 5.5).

        `app_status` is what a CGI program's exit status would be. Streams are ended only by a request that was served.
        """
        request_id = self._id
        self._state = _IDLE
        if request_id == 1 and not app_status and protocol_status == _COMPLETE and not self._stderr_used:
            return [_USUAL_END]
        pieces: list[bytes | memoryview] = []
        if protocol_status == _COMPLETE:
            pieces.append(encode_record(_STDOUT, request_id))
        if self._stderr_used:
            pieces.append(encode_record(_STDERR, request_id))
        pieces.append(_end_record(request_id, app_status, protocol_status))
        return pieces

    def _begin(self, request_id: int, content: bytes) -> BeginRequest | None:
        if len(content) != _BEGIN_BODY.size:
            raise ProtocolError(f"BEGIN_REQUEST with {len(content)} bytes instead of {_BEGIN_BODY.size}")
        number, flags = _BEGIN_BODY.unpack(content)
        if self._state != _IDLE:
            if request_id == self._id:
                raise ProtocolError(f"BEGIN_REQUEST for the request {request_id}, which runs")
            self._answers.append(_end_record(request_id, 0, ProtocolStatus.CANT_MPX_CONN))
            return None
        self._keep = bool(flags & KEEP_CONN)
        role = self._roles.get(number)
        if role is None:
            self._answers.append(_end_record(request_id, 0, ProtocolStatus.UNKNOWN_ROLE))
            return None
        self._id = request_id
        self._role = role
        self._state = int(_State.PARAMS)
        self._params = ParamsReader()
        self._stderr_used = False
        return BeginRequest(request_id, role, self._keep)

    def _take(self, kind: int, content: bytes) -> Event | None:
        """Take a record of the request that runs."""
        state = self._state
        following = _NEXT[state][kind][len(content) > 0]
        if following < 0:
            raise ProtocolError(self._why_not(kind, len(content)))
        self._state = following
        if following == _ABORTED:
            return Abort(self._id) if state != _ABORTED else None
        if kind == _STDIN:
            if content:
                return Stdin(self._id, content)
            return StdinEnd(self._id) if state != following else None
        if kind == _DATA:
            return DataStream(self._id, content) if content else DataStreamEnd(self._id)
        if content:
            self._params.feed(content)
            return None
        self._state = int(_AFTER_PARAMS[self._role])
        if self._as_text:
            return Environment(self._id, decode_environment(self._params.take()))
        return Params(self._id, self._params.finish())

    def _why_not(self, kind: int, length: int) -> str:
        if kind == _ABORT_REQUEST:
            return f"ABORT_REQUEST with {length} bytes instead of none"
        if kind not in (_PARAMS, _STDIN, _DATA):
            return f"{type_name(kind)}, which a web server does not send about a request"
        what = f"{length} bytes" if length else "the end"
        return f"{what} of {type_name(kind)} at the wrong time"

    def _answer_management(self, kind: int, content: bytes) -> None:
        if kind != _GET_VALUES:
            # Section 4.2; any type that asks nothing of an application is unknown to it.
            self._answers.append(encode_record(RecordType.UNKNOWN_TYPE, 0, struct.pack("B7x", kind)))
            return
        asked = {name for name, _ in decode_params(content)}
        known = [(name, value) for name, value in self._values.items() if name in asked]
        self._answers.append(encode_record(RecordType.GET_VALUES_RESULT, 0, encode_params(known)))


def _end_record(request_id: int, app_status: int, protocol_status: int) -> bytes:
    return encode_record(_END_REQUEST, request_id, _END_BODY.pack(app_status & 0xFFFFFFFF, protocol_status))


_USUAL_BEGINS = {
    encode_record(_BEGIN_REQUEST, 1, _BEGIN_BODY.pack(Role.RESPONDER, flags)): bool(flags) for flags in (0, KEEP_CONN)
}
_END_OF_PARAMS = encode_record(_PARAMS, 1)
_END_OF_STDIN = encode_record(_STDIN, 1)
_USUAL_LENGTH = 32
_USUAL_END = encode_record(_STDOUT, 1) + _end_record(1, 0, _COMPLETE)
