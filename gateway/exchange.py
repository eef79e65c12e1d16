"""One request and its response: framing, the record for the access log, and what happens when either side fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from gateway import pages
from gateway.access_log import Record
from gateway.body import Body
from gateway.body_stream import BodyStream
from gateway.clients.peer import Peer
from gateway.fault import LIMITED, Fault
from gateway.http.compression import LEAST, Coding, Encoder
from gateway.http.message import Fields, Request
from gateway.http.response import LAST_CHUNK, REASONS, Start, encode_head, encode_start, with_fields, with_status

if TYPE_CHECKING:
    from gateway.connection import Connection
    from gateway.routes import Policy
    from gateway.settings import Timeouts
    from gateway.worker import Worker

_HTML: Fields = [(b"Content-Type", b"text/html; charset=utf-8")]
# Joined into one piece below this size, so that a small response is one write; above it, copying costs more.
_SMALL = 16 * 1024

_ids_begin = ""
_ids_given = 0


def _new_id() -> str:
    """Return an id that no other request of this machine has: a random begin per process, then a count."""
    global _ids_begin, _ids_given
    if not _ids_begin:
        _ids_begin = os.urandom(4).hex()
    _ids_given += 1
    return f"{_ids_begin}-{_ids_given:x}"


def renew_ids() -> None:
    """Begin anew, in a process that was forked."""
    global _ids_begin, _ids_given
    _ids_begin, _ids_given = "", 0


class Grant:
    """What guards have said: who lets the request pass, `variables` for the program, and what it is not told."""

    __slots__ = ("_said", "hides_authorization", "variables")

    def __init__(self, said: dict[object, dict[bytes, bytes]], hides_authorization: bool) -> None:
        self._said = said
        self.hides_authorization = hides_authorization
        self.variables = {name: value for variables in said.values() for name, value in variables.items()}

    def passes(self, guard: object) -> bool:
        """Whether `guard` lets the request pass."""
        return guard in self._said

    def and_by(self, guard: object, variables: dict[bytes, bytes], hides_authorization: bool) -> Grant:
        """Return what they and `guard` said. Another of its kind was asked before a redirect, and has no say here."""
        others = {other: said for other, said in self._said.items() if type(other) is not type(guard)}
        return Grant({**others, guard: variables}, self.hides_authorization or hides_authorization)


class Responder(Protocol):
    """What answers an exchange over time."""

    def client_gone(self) -> None:
        """The client left before the response ended."""

    def client_ready(self) -> None:
        """The client takes bytes again after `Exchange.is_congested`."""


class Exchange:
    """The response side of one request.

    A response is begun once, written any number of times, and ended or truncated. Its record is logged when the
    response has ended *and* its program, if there is one, has: two facts, set in any order.
    """

    __slots__ = (
        "_begun", "_chunked", "_coding", "_connection", "_encoder", "_ended", "_forced", "_left", "_mute",
        "_persistence", "_programs", "_promised", "_start", "_started", "body", "carried", "granted", "id",
        "is_counted", "is_routed", "peer", "policy", "record", "request", "responder", "seats", "timeouts", "worker",
    )  # fmt: skip

    def __init__(self, connection: Connection, request: Request, worker: Worker) -> None:
        self.id = _new_id()
        self.request = request
        self.worker = worker
        self.responder: Responder | None = None
        self.body: Body | BodyStream | None = None
        self.granted: Grant | None = None
        self.policy: Policy | None = None  # of the route that answers
        self.carried: Fields = []  # of a program that has let a file answer; they win
        self._forced = 0  # the status of the error whose page is being made
        self.peer = connection.peer
        self.seats: tuple[int, ...] = ()  # under what it is counted, beside its connection
        self.timeouts = worker.settings.timeouts  # or those of the route that answers
        self.is_routed = False  # the limit of its body is its route's
        self.is_counted = False  # by a route
        self.record = Record(self.peer.address, request, self.id)
        self._connection = connection
        self._started = worker.now()
        self._begun = False
        self._ended = False
        self._mute = False  # the response has no body, whatever is written
        self._chunked = False
        self._left: int | None = None  # bytes that Content-Length still promises
        self._coding: Coding | None = None  # that the response may be sent in
        self._encoder: Encoder | None = None
        self._promised: int | None = None  # bytes that the program still owes, where they are coded
        self._start: Start | None = None  # of a head that has not been sent
        self._persistence = b""
        self._programs = 0  # started and not ended

    @property
    def variables(self) -> dict[bytes, bytes]:
        """The CGI variables of the client."""
        return self.peer.variables

    @property
    def connection_notes(self) -> dict[bytes | None, bytes]:
        """The same, encoded for FastCGI, by the host that is asked for."""
        return self.peer.notes

    @property
    def is_begun(self) -> bool:
        """Whether a status has been decided."""
        return self._begun

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will be sent."""
        return self._ended

    @property
    def is_congested(self) -> bool:
        """Whether the client has yet to take what was written."""
        return self._connection.is_congested and not self._ended

    @property
    def needs_no_more(self) -> bool:
        """Whether all that this response may carry has been written."""
        return self._begun and (self._mute or self._left == 0 or self._promised == 0)

    @property
    def bytes_missing(self) -> int:
        """How many bytes the response's Content-Length promises beyond what was written."""
        return 0 if self._mute else self._left or self._promised or 0

    def see(self, peer: Peer) -> None:
        """Take the request for that of another client, for which the connection's is a proxy."""
        self.peer = peer
        self.record.client = peer.address

    def grant(self, guard: object, variables: dict[bytes, bytes], *, hides_authorization: bool = False) -> None:
        """Let the request pass `guard`. With `hides_authorization`, no program is told by which password it did."""
        self.granted = (self.granted or Grant({}, False)).and_by(guard, variables, hides_authorization)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Have the times of a route hold."""
        self.timeouts = self._connection.timeouts = timeouts

    def limit_body(self, most: int) -> bool:
        """Let the request's body, none of which has been read, have `most` bytes; return whether it may."""
        if self.request.body_follows:
            self._connection.limit_body(most)
        return (self.request.content_length or 0) <= most

    def receive_body(self, body: Body | BodyStream) -> None:
        """Read the request's body into `body`, whose `finish` follows, at once if the body is here."""
        self.body = body
        self._connection.receive_body()

    def refuse_body(self, fault: Fault) -> None:
        """The request's body does not come whole: who answers gives up, and the client is told."""
        if self._ended:
            return
        responder, self.responder = self.responder, None
        if responder:
            responder.client_gone()
        self.fail(fault)

    def body_has_room(self) -> None:
        """The request's body may be read on."""
        self._connection.body_has_room()

    def begin(self, status: int, reason: bytes, fields: Fields, length: int | None) -> None:
        """Begin a response whose body has `length` bytes, or an unknown number for None. Sent with the first bytes."""
        self.begin_with(status, encode_start(status, reason, fields), length)

    def begin_coded(self, status: int, coding: Coding, length: int | None) -> None:
        """Begin a response of a program that may be sent in `coding`; its length counts before that.

        Whether it is, is decided with the first bytes: what ends at once, and is small, is sent as it is. The head for
        HEAD is that of a body of `length`.
        """
        is_coded = bool(coding.name) and self.request.version >= (1, 1)
        if is_coded and length is not None and self.request.method == b"HEAD":
            self.begin_with(status, coding.coded, None)
            return
        self.begin_with(status, coding.plain, length)
        if is_coded and not self._mute:
            self._coding = coding

    def _encode(self, data: bytes, is_last: bool) -> bytes:
        """Return the next piece of a body that may be coded, and is from the first one on."""
        coding, self._coding = self._coding, None
        if coding:
            if is_last and len(data) < LEAST:
                return data
            self._encoder = Encoder(coding.name)
            self._start = self._edited(coding.coded)
            self._promised, self._left = self._left, None
            self._chunked = True
        if self._encoder is None:
            return data
        if self._promised is not None:
            data = data[: self._promised]
            self._promised -= len(data)
        return self._encoder.encode(data, is_last)

    def begin_with(self, status: int, start: Start, length: int | None) -> None:
        """Begin a response, see `begin`, whose head begins with `start`."""
        request = self.request
        start = self._edited(start)
        status = self._forced or status
        self._begun = True
        self.record.status = status
        self._mute = request.method == b"HEAD" or status in (204, 304)
        persistent = self._connection.may_persist(request)
        self._left = length
        if length is None and not self._mute:
            if request.version >= (1, 1):
                self._chunked = True
            else:
                persistent = False
        if not persistent:
            self._persistence = b"Connection: close\r\n"
        elif request.version < (1, 1):
            self._persistence = b"Connection: keep-alive\r\n"
        self._connection.persists = persistent
        self._start = start

    def _edited(self, start: Start) -> Start:
        """Return the first lines of a head as the route wants them, for the status of an error page that is made, and
        with the fields of a program that has let a file answer."""
        if self._forced:
            start = with_status(start, self._forced)
        if self.carried:
            start = with_fields(start, self.carried)
        return self.policy.edit(start) if self.policy else start

    def _take_head(self) -> bytes:
        """Return the head if it has not been sent, else b''."""
        start, self._start = self._start, None
        if start is None:
            return b""
        if self._chunked:
            length = b"Transfer-Encoding: chunked\r\n"
        elif self._left is not None and self.record.status != 204:
            length = b"Content-Length: %d\r\n" % self._left
        else:
            length = b""
        return encode_head(start, b"%s%sX-Request-Id: %s\r\n" % (length, self._persistence, self.id.encode()))

    def begin_raw(self, status: int) -> None:
        """Begin a response whose every byte is the program's own (``nph-``); the connection ends with it."""
        self._begun = True
        self.record.status = status
        self._connection.persists = False

    def write(self, data: bytes) -> None:
        """Send a piece of the body. What exceeds its length, or has no place in this response, is dropped."""
        if self._ended:
            return
        self._write(self._encode(data, False) if self._coding or self._encoder else data)

    def _write(self, data: bytes) -> None:
        head = self._take_head()
        if self._mute:
            data = b""
        elif self._left is not None:
            if len(data) > self._left:
                data = data[: self._left]
            self._left -= len(data)
        self.record.bytes += len(data)
        if self._chunked and data:
            if len(data) <= _SMALL:
                self._connection.send(b"%s%x\r\n%s\r\n" % (head, len(data), data))
            else:
                self._connection.send_pieces([b"%s%x\r\n" % (head, len(data)), data, b"\r\n"])
        elif head and len(data) > _SMALL:
            self._connection.send_pieces([head, data])
        elif head or data:
            self._connection.send(head + data if head else data)

    @property
    def can_send_files(self) -> bool:
        """Whether `send_file` is to be had: nothing is done to the bytes on their way."""
        return self._connection.can_send_files

    def send_file(self, descriptor: int, begin: int, most: int, left: int) -> int | None:
        """Have the kernel send up to `most` of the `left` bytes of a file from `begin` as a piece of the body.

        Return how many went, 0 at the file's end, None where `Responder.client_ready` follows, or `client_gone`. Raise
        OSError where it cannot be done. The response must have a length and a body.
        """
        sent = self._connection.send_file(self._take_head(), descriptor, begin, most, left)
        if sent:
            assert self._left is not None
            self._left -= sent
            self.record.bytes += sent
        return sent

    def end(self, last: bytes = b"") -> None:
        """Send `last` and end the response well."""
        if self._ended:
            return
        if self._coding or self._encoder:
            last = self._encode(last, True)
        if self._chunked and self._start and len(last) <= _SMALL:
            # Nothing was sent: now that the length is known, say it.
            self._chunked = False
            self._left = len(last)
            self.record.bytes += len(last)
            self._connection.send(self._take_head() + last)
        else:
            if last or self._start:
                self._write(last)
            if self._chunked:
                self._connection.send(LAST_CHUNK)
        self._finish()

    def truncate(self, outcome: str) -> None:
        """End the response short of its end, and let the client see it: no last chunk, the connection closed."""
        if self._ended:
            return
        self.record.outcome = outcome
        self._start = None
        self._connection.cut_off()
        self._finish()

    def respond_whole(self, status: int, start: Start, body: bytes) -> None:
        """Send a complete response that may have a body, not to HEAD; its head begins with `start`."""
        connection = self._connection
        is_edited = self.policy or self._forced or self.carried
        if is_edited or self.request.version < (1, 1) or len(body) > _SMALL or not connection.may_persist(self.request):
            self.begin_with(status, start, len(body))
            self.end(body)
            return
        # The way of most responses: what the others do in steps.
        self._begun = True
        connection.persists = True
        self.record.status = status
        self.record.bytes = len(body)
        framing = b"Content-Length: %d\r\nX-Request-Id: %s\r\n" % (len(body), self.id.encode())
        connection.send(encode_head(start, framing) + body)
        self._finish()

    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a complete response."""
        self.begin(status, b"", fields, len(body))
        self.write(body)
        self._finish()

    def fail(self, fault: Fault) -> None:
        """Answer with an error page, or cut the response off if it has begun. A 5xx is logged with its words."""
        if self._ended:
            return
        if fault.status >= 500 and fault.outcome != LIMITED:
            self.worker.error_log.error(f"{fault.status} {fault.words}", self.id)
        outcome = fault.outcome or ("failed" if fault.status >= 500 else "refused")
        if self._begun:
            self.truncate(outcome)
            return
        self.record.outcome = outcome
        told: Fields = []
        if fault.retry_after:
            told.append((b"Retry-After", b"%d" % fault.retry_after))
        if fault.allow:
            told.append((b"Allow", fault.allow.encode()))
        if fault.challenge:
            told.append((b"WWW-Authenticate", fault.challenge.encode()))
        if self._is_answered_by_page(fault, told):
            return
        if fault.status == 400 or fault.closes:
            self._connection.refuse_more()
        words = fault.words if self.worker.settings.debug or fault.is_public else ""
        page = pages.error_page(fault.status, REASONS.get(fault.status, b""), self.id, words)
        self.respond(fault.status, [*_HTML, *told], page)

    def _is_answered_by_page(self, fault: Fault, told: Fields) -> bool:
        """Have the route's own page for this error answer, with the fields `told`, unless it is that which fails."""
        path = self.policy.error_pages.get(fault.status) if self.policy and not self._forced else None
        # After a request that is broken off nothing else is done for its connection.
        if not path or fault.status in (400, 408):
            return False
        self._forced = fault.status
        self.responder = None
        self.carried = told
        target, _, query = path.partition(b"?")
        self.request = self.request.for_error_page(target, query)
        self.worker.route(self, 1)
        return True

    def program_runs(self) -> None:
        """A program was started for this exchange; its end will be told."""
        self._programs += 1

    def program_ended(self, pid: int, exit_word: str, cpu: float, memory: int) -> None:
        """Take what is known of the program, 0 and '' for what is not; log the record if the response has ended too."""
        record = self.record
        if pid:
            record.pid, record.exit = pid, exit_word
        record.cpu += cpu
        record.memory = max(record.memory, memory)
        self._programs -= 1
        self._log_if_done()

    def client_gone(self) -> None:
        """The connection is lost."""
        if self._ended:
            return
        self._ended = True
        if not self.record.outcome or self.record.outcome == "ok":
            self.record.outcome = "client-gone"
            self.record.status = 499
        if self.responder:
            self.responder.client_gone()
        if self.body:
            self.body.close()
        for seat in self.seats:
            self.worker.leave(seat)
        self._log_if_done()

    def client_ready(self) -> None:
        """The client takes bytes again."""
        if self.responder and not self._ended:
            self.responder.client_ready()

    def _finish(self) -> None:
        self._ended = True
        if self.body:
            self.body.close()
        for seat in self.seats:
            self.worker.leave(seat)
        self._log_if_done()
        self._connection.exchange_ended()

    def _log_if_done(self) -> None:
        if self._ended and not self._programs and self.record.duration == 0.0:
            self.record.duration = max(self.worker.now() - self._started, 1e-6)
            self.worker.access_log.add(self.record)
