"""Answers a request by a FastCGI server: the request on one of a few connections, its output the response."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from fcgi_pool.protocol.records import ProtocolStatus
from fcgi_pool.protocol.web_server import End, encode_request
from gateway import diagnosis
from gateway.body import Body
from gateway.body_stream import BodyStream
from gateway.cgi.locate import path_info
from gateway.cgi.output import BadOutput, known_header
from gateway.cgi.stderr import ErrorText
from gateway.cgi.variables import Script, mount_variables
from gateway.exchange import Exchange
from gateway.fastcgi.backend import Backend
from gateway.fastcgi.link import Link
from gateway.fastcgi.params import Params
from gateway.fault import Fault
from gateway.relay import Relay
from gateway.settings import FastCgiMount

if TYPE_CHECKING:
    from gateway.worker import Worker

# Safe to be done twice (RFC 9110 section 9.2.2).
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


class FastCgiApplication:
    """A mounted application: everything below its prefix is its own to answer."""

    def __init__(self, worker: Worker, mount: FastCgiMount) -> None:
        self._worker = worker
        self._backend = worker.backend(mount.server)
        self._name = mount.prefix.rstrip("/").encode()
        self._streams = mount.stream_body
        self._params = Params(mount_variables(b"", mount.env), mount.pass_authorization)

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Pass the request on: SCRIPT_NAME is the prefix, PATH_INFO the rest."""
        script = Script(self._name, b"", path_info(segments, is_directory))
        FastCgiRun(self._backend, exchange, script, self._params, redirects, self._streams).begin()


class FastCgiRun:
    """One request at a FastCGI server: everything about it.

    It is done when its END_REQUEST has come, or its connection is gone; the response may be done before that.
    """

    __slots__ = (
        "_backend", "_body", "_deadline", "_errors", "_exchange", "_heard", "_is_awaited", "_link", "_params",
        "_redirects", "_relay", "_script", "_stream", "_streams", "_worker", "is_retry", "since", "wants_new",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        exchange: Exchange,
        script: Script,
        params: Params,
        redirects: int,
        streams: bool = False,
    ) -> None:
        """With `streams`, a body is passed on while it comes."""
        self._backend = backend
        self._worker = backend.worker
        self._exchange = exchange
        self._script = script
        self._params = params
        self._redirects = redirects
        self._relay: Relay | None = None  # made when the response does not come in one piece
        self._streams = streams
        self._body: Body | None = None
        self._stream: BodyStream | None = None
        self._link: Link | None = None
        self._errors: ErrorText | None = None
        self._deadline = math.inf
        self._heard = False  # a first byte of the answer has come
        self._is_awaited = False  # the record waits for the end of the request
        self.since = 0.0
        self.is_retry = False
        self.wants_new = exchange.request.method not in _IDEMPOTENT

    def __repr__(self) -> str:
        return f"<FastCgiRun {self._name} {'active' if self._link else 'waiting'}>"

    @property
    def _name(self) -> str:
        return os.fsdecode(self._script.filename or self._script.name or b"/")

    @property
    def _subject(self) -> str:
        server = self._backend.server
        return f"{self._name} at {server.name} ({server.address})"

    # -- before it is sent

    def begin(self) -> None:
        """Receive the request's body, then send."""
        exchange = self._exchange
        exchange.responder = self
        if self._streams:
            self._stream = self._worker.new_body_stream(exchange)
        if self._stream:
            # It cannot be sent a second time.
            self.wants_new = True
            self._stream.on_data = self._body_came
            self._submit()
        elif exchange.request.has_body:
            self._body = self._worker.new_body(exchange, self._submit)
            exchange.receive_body(self._body)
        else:
            self._submit()

    def _submit(self) -> None:
        self._worker.runs.add(self)
        self._queue()

    def _queue(self) -> None:
        self._deadline = self._worker.now() + self._exchange.timeouts.queue
        if not self._backend.submit(self):
            self._fail(Fault(503, f"too many requests wait for {self._subject}", retry_after=5))

    def launch(self, link: Link) -> None:
        """Send the request on `link`."""
        self._link = link
        self._deadline = self._worker.now() + self._exchange.timeouts.script
        link.begin(self, self._encode(link), self._body or self._stream)
        if self._stream:
            self._exchange.receive_body(self._stream)

    def _body_came(self) -> None:
        if self._link:
            self._link.send_more()

    def _encode(self, link: Link) -> bytes:
        body = self._body or self._stream
        params = self._params.encode(self._exchange, self._script, body.length if body else None)
        return encode_request(params, keep=link.keeps, ends=body is None)

    def sent(self) -> None:
        """The server has taken a piece of the request: it is not silent."""
        if self._deadline != math.inf:
            self._deadline = self._worker.now() + self._exchange.timeouts.script

    def refused(self, error: int) -> None:
        """The server cannot be connected to."""
        self._link = None
        self._fail(diagnosis.unreachable(f"{self._backend.server.name} ({self._backend.server.address})", error))

    # -- what the server answers

    @property
    def is_full(self) -> bool:
        """Whether the client has to catch up before more is read."""
        return self._relay is not None and self._relay.is_full

    def take(self, data: bytes, end: End | None) -> None:
        """Take a piece of the response, and the end of the request."""
        relay = self._relay
        if end:
            self._link = None
            self._exchange.record.exit = str(end.app_status)
            if relay is None and not end.protocol_status and self._is_whole(data):
                self._over()
                return
        elif not self._is_awaited:
            self._is_awaited = True
            self._exchange.program_runs()
        if relay is None:
            relay = self._relay = Relay(self._worker, self._exchange, is_raw=False)
        relay.is_last = end is not None
        self._deadline = self._worker.now() + self._exchange.timeouts.script
        if data:
            self._heard = True
            try:
                relay.take(data)
            except BadOutput as bad:
                self._fail(Fault(502, self._in_words(f"wrote what is no response: {bad}")))
                return
        if end:
            self._finish(end, relay)
        elif relay.is_full:
            self._deadline = math.inf

    def _is_whole(self, data: bytes) -> bool:
        """Whether `data` is a whole response with a header that was seen before, as most are; it is sent then."""
        found = known_header(data)
        exchange = self._exchange
        is_other = exchange.request.method == b"HEAD" or self._worker.settings.compress
        if not found or exchange.responder is not self or is_other:
            return False
        header, size = found
        length = len(data) - size
        if header.status in (204, 304) or header.content_length not in (None, length):
            return False
        if header.local_redirect or header.is_handed_on:
            return False
        exchange.respond_whole(header.status, header.start, data[size:])
        return True

    def take_stderr(self, data: bytes) -> None:
        """Take what the application says about errors."""
        if self._errors is None:
            self._errors = ErrorText(self._log_stderr)
        self._errors.feed(data)

    def _log_stderr(self, lines: list[str]) -> None:
        self._worker.error_log.script(lines, os.path.basename(self._name), 0, self._exchange.id)

    def _finish(self, end: End, relay: Relay) -> None:
        exchange = self._exchange
        if end.protocol_status and not self._heard and self._is_turned_away(end.protocol_status):
            return
        self._over()
        # After a redirect within the server another run answers.
        if exchange.is_ended or exchange.responder is not self:
            return
        if not relay.has_header:
            why = f"ended with status {end.app_status} before its header was complete"
            exchange.fail(Fault(502, self._in_words(why)))
        elif relay.redirect:
            relay.follow(self._redirects, self._name)
        else:
            relay.finish(self._in_words("was ended by its server") if end.protocol_status else "")

    def _is_turned_away(self, status: int) -> bool:
        """Whether the server has not served the request, and says so (section 5.5): tried again once, then 503."""
        if status == ProtocolStatus.UNKNOWN_ROLE:
            self._fail(Fault(500, f"{self._subject} is no Responder (UNKNOWN_ROLE): it serves another role"))
        elif status not in (ProtocolStatus.OVERLOADED, ProtocolStatus.CANT_MPX_CONN):
            return False
        elif not self._retry():
            words = "is overloaded" if status == ProtocolStatus.OVERLOADED else "takes no second request"
            self._fail(Fault(503, self._in_words(words), retry_after=5))
        return True

    def _retry(self) -> bool:
        """Send the request again, on a new connection, if that was not tried yet."""
        if self.is_retry or self._stream or self._exchange.is_ended:
            return False
        self.is_retry = self.wants_new = True
        self._link = None
        self._queue()
        return True

    def lost(self, why: str, was_reset: bool) -> None:
        """The connection broke before the end."""
        link, self._link = self._link, None
        exchange = self._exchange
        if exchange.is_ended or exchange.responder is not self:
            self._over()
        elif self._heard and self._relay:
            self._over()
            words = self._in_words(f"ended before its response did: {why}")
            if exchange.is_begun:
                self._relay.finish(words)
            else:
                exchange.fail(Fault(502, words))
        elif not (link and not link.heard and self._may_be_repeated(link, was_reset) and self._retry()):
            self._fail(Fault(502, self._in_words(f"gave no answer: {why}")))

    def _may_be_repeated(self, link: Link, was_reset: bool) -> bool:
        """Whether the request may be sent again, its connection having broken without a byte of an answer.

        What could not even be sent has reached nobody: the server had closed a kept connection, or has ended. A kept
        connection may have been closed while the request was on its way, too, and what is safe to be done twice is
        repeated; on a new one that broke only if something was left unread, since the request itself may be what breaks
        the server. A reset does not tell that nobody has begun a request: php-cgi leaves the end of STDIN unread.
        """
        if not link.sent:
            return True
        request = self._exchange.request
        return request.method in _IDEMPOTENT and (link.served > 0 or (was_reset and not request.body_follows))

    # -- the client

    def client_ready(self) -> None:
        """The client takes bytes again."""
        if self._relay:
            self._relay.client_ready()
        if self._link and not self.is_full:
            self._deadline = self._worker.now() + self._exchange.timeouts.script
            self._link.resume()

    def client_gone(self) -> None:
        """Nobody wants the response any more."""
        if self._relay:
            self._relay.discard()
        self._give_up()
        self._over()

    # -- the end

    def sweep(self, now: float) -> None:
        """Act if the deadline has passed; called some times a second."""
        place = self._link.place if self._link else None
        if place and not place.is_described:
            request = self._exchange.request
            user = self._exchange.record.user.encode("utf-8", "surrogateescape")
            body = self._body or self._stream
            length = body.length if body else 0
            place.describe(request.method, request.target, length, user, self._script.filename)
        if now < self._deadline:
            return
        if self._link and self._stream and self._stream.is_awaited:
            self._deadline = now + self._exchange.timeouts.script  # it is the client who is silent
            return
        self._deadline = math.inf
        exchange = self._exchange
        timeouts, named = exchange.timeouts, self._worker.settings.named
        if not self._link:
            limit = named("--queue-timeout")
            words = f"{timeouts.queue:g} s passed ({limit}) and no connection to {self._subject} was free"
            self._fail(Fault(503, words, "timeout", retry_after=5))
            return
        silence = self._in_words(f"was silent for {timeouts.script:g} s ({named('--script-timeout')})")
        if exchange.is_ended or exchange.responder is not self:
            self._give_up()
            self._over()
        elif exchange.is_begun and self._relay:
            self._give_up()
            self._over()
            self._relay.cut_off(silence, "timeout")
        else:
            self._fail(Fault(504, silence, "timeout"))

    def forsake(self) -> None:
        """The server stops now."""
        self._over()

    def _fail(self, fault: Fault) -> None:
        """Give the request up, and answer with an error."""
        self._give_up()
        self._over()
        if self._exchange.responder is self:
            self._exchange.fail(fault)

    def _give_up(self) -> None:
        link, self._link = self._link, None
        if link:
            link.give_up()
        else:
            self._backend.withdraw(self)

    def _over(self) -> None:
        self._deadline = math.inf
        self._worker.runs.discard(self)
        if self._stream:
            self._stream.discard()
        if self._errors:
            self._errors.finish()
        if self._is_awaited:
            self._is_awaited = False
            self._exchange.program_ended(0, "", 0.0, 0)

    def _in_words(self, why: str) -> str:
        """Return `why` with what there is of evidence. What of a response was not sent yet is given up."""
        first_bytes = b""
        if self._relay and not self._exchange.is_begun:
            first_bytes = self._relay.first_bytes
            self._relay.discard()
        if self._errors:
            self._errors.finish()
        stderr = self._errors.tail if self._errors else ""
        return "; ".join([f"{self._subject} {why}", *diagnosis.evidence(stderr, first_bytes)])
