"""One client's connection: requests are read from it in turn, each is answered before the next is looked at."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import sys
import termios
from typing import TYPE_CHECKING, cast

from gateway import pages
from gateway.clients.peer import Peer
from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.http.message import END, Data, Refused, Request
from gateway.http.response import CONTINUE
from gateway.phase import Phase
from gateway.readiness import WRITING, has_hung_up, has_input
from gateway.tls.transport import TlsTransport

if TYPE_CHECKING:
    from gateway.worker import Worker

# Bytes of later requests taken in while one is answered.
_PIPELINE = 64 * 1024
# Written and not yet taken by the client: above this, programs are not read from for it.
_WRITE_HIGH = 256 * 1024
# After an error with unread input: how long, in seconds, and how much of it is still read and dropped, so that the
# client reads the response before a reset destroys it. nginx lingering_timeout 5 s, lingering_time 30 s.
_LINGER_TIME = 5.0
_LINGER_SIZE = 8 * 1024 * 1024
# Requests answered in one turn of the loop, where answers are given at once.
_TURN = 32
_FOREVER = math.inf
# What a write to the client says when there is no way to it any more; other errors of sendfile(2) are the file's.
_LOST = frozenset(
    (errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH,
     errno.ENETDOWN, errno.ENOTCONN)
)  # fmt: skip
_ANSWERING = (Phase.ANSWER, Phase.BODY)


class Connection(asyncio.Protocol):
    """The protocol of one accepted socket."""

    __slots__ = (
        "_awaits_room", "_deadline", "_exchange", "_in_loop", "_is_narrow", "_is_told", "_is_watched", "_lingered",
        "_lingers", "_phase", "_reader", "_reading_paused", "_seen_waiting", "_transport", "_unread_body", "_worker",
        "is_congested", "peer", "persists", "timeouts",
    )  # fmt: skip

    def __init__(self, worker: Worker, peer: Peer) -> None:
        self.peer = peer
        self._worker = worker
        self._reader = worker.new_reader()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._phase = Phase.IDLE
        self.timeouts = worker.settings.timeouts  # for the body that is read and the response that is sent
        self._deadline = worker.now() + self.timeouts.header
        self._reading_paused = False
        self._unread_body = False
        self._in_loop = False
        self._lingered = 0
        self._lingers = False  # after the answer, in any case
        self._seen_waiting = 0
        self._is_told = False  # by the transport, that there is room
        self._is_narrow = False  # the transport tells when all that was written has gone
        self._awaits_room = False  # in the socket, for more of a file
        self._is_watched = False  # the socket, for room
        self.persists = True
        self.is_congested = False

    # -- the loop's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        # uvloop's transports are no instances of asyncio's class, and the same in all else.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(_WRITE_HIGH)
        self._deadline = self._worker.now() + self._worker.settings.timeouts.header  # a handshake had its own
        self._deadline = min(self._deadline, self._worker.last_call)
        self._worker.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or we closed."""
        self._worker.connection_lost(self)
        if self._is_watched:
            self._watch_no_more()
        self._transport = None
        self._phase = Phase.CLOSING
        if self._exchange:
            exchange, self._exchange = self._exchange, None
            exchange.client_gone()

    def eof_received(self) -> bool:
        """The client sends no more. As with nginx, a client that ended its side has gone: close."""
        return False

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self._phase is Phase.LINGER:
            self._lingered += len(data)
            if self._lingered > _LINGER_SIZE:
                self._abort()
            return
        self._reader.receive(data)
        if self._phase is Phase.BODY:
            self._read_body()
            return
        self._read_requests()
        self._pause_if_full()

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        self.is_congested = True
        self._note_waiting()
        self._deadline = self._worker.now() + self.timeouts.send

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_told = True
        try:
            self._go_on_writing()
        finally:
            self._is_told = False

    def _go_on_writing(self) -> None:
        self.is_congested = False
        if self._phase is Phase.ANSWER:
            self._deadline = _FOREVER
        elif self._phase is Phase.BODY:
            self._await_body()
        if self._exchange:
            self._exchange.client_ready()
        elif self._phase is Phase.IDLE:
            self._await_next()
            self._read_requests()
            self._read_on()

    # -- reading

    def _read_requests(self) -> None:
        """Answer what is here, one after the other. An answer given at once leads round the loop, not into itself."""
        if self._in_loop:
            return
        self._in_loop = True
        left = _TURN
        try:
            while (self._phase is Phase.IDLE or self._phase is Phase.HEAD) and not self.is_congested:
                if not left:
                    # Others have their turn first.
                    self._worker.loop.call_soon(self._go_on)
                    break
                left -= 1
                event = self._reader.next_event()
                if isinstance(event, Request):
                    self._begin(event)
                    if not self._reader.has_begun:
                        break
                elif isinstance(event, Refused):
                    self._refuse(event)
                else:
                    if self._phase is Phase.IDLE and self._reader.has_begun:
                        self._phase = Phase.HEAD
                        self._deadline = self._worker.now() + self._worker.settings.timeouts.header
                    break
        finally:
            self._in_loop = False

    def _go_on(self) -> None:
        if self._transport:
            self._read_requests()
            self._read_on()

    def _read_on(self) -> None:
        """Read from the client again if there is room for what it sends."""
        if self._phase is not Phase.ANSWER and not self.is_congested and self._reader.buffered <= _PIPELINE:
            self._resume_reading()

    def _begin(self, request: Request) -> None:
        self._phase = Phase.ANSWER
        self._deadline = _FOREVER
        self._unread_body = request.body_follows
        self._lingers = False
        self.persists = False
        self.timeouts = self._worker.settings.timeouts
        self._exchange = Exchange(self, request, self._worker)
        self._answer(self._exchange)

    def _answer(self, exchange: Exchange) -> None:
        self._worker.answer(exchange)

    def limit_body(self, most: int) -> None:
        """Let the current request's body, none of which has been read, have `most` bytes."""
        self._reader.limit_body(most)

    def receive_body(self) -> None:
        """Read the current request's body into what its exchange has for it."""
        exchange = self._exchange
        assert exchange and exchange.body
        if not self._unread_body:
            exchange.body.finish()
            return
        if exchange.request.expects_continue and not self._reader.buffered:
            self.send(CONTINUE)
        self._phase = Phase.BODY
        self._await_body()
        self._read_body()

    def _read_body(self) -> None:
        exchange = self._exchange
        assert exchange and exchange.body
        body = exchange.body
        while self._phase is Phase.BODY:
            event = self._reader.next_event()
            if isinstance(event, Data):
                body.feed(event.data)
            elif event is END:
                self._phase = Phase.ANSWER
                if not self.is_congested:
                    self._deadline = _FOREVER
                self._unread_body = False
                body.finish()
                return
            elif isinstance(event, Refused):
                self._phase = Phase.ANSWER
                exchange.refuse_body(Fault(event.status, event.reason))
                return
            else:
                break
        if body.is_congested:
            self._pause_reading()
        else:
            # It was paused where a verdict was waited for, and more had come than is taken in then.
            self._resume_reading()
        self._await_body()

    def _await_body(self) -> None:
        """Set the time for more of a body, unless the client has to take something first."""
        if not self.is_congested:
            self._deadline = _FOREVER if self._reading_paused else self._worker.now() + self.timeouts.body

    @property
    def body_received(self) -> int | None:
        """How many bytes of a body have come, as long as the client is waited for; None if it is not."""
        exchange = self._exchange
        if self._phase is not Phase.BODY or self._reading_paused or not exchange or not exchange.body:
            return None
        return exchange.body.received

    def refuse_body(self, words: str) -> None:
        """The client has had its time for the body."""
        if self._exchange:
            self._phase = Phase.ANSWER
            self._exchange.refuse_body(Fault(408, words, "timeout"))

    def body_has_room(self) -> None:
        """The disk, or the program, has caught up with the client."""
        if self._phase is Phase.BODY:
            self._resume_reading()
            self._await_body()

    def _pause_if_full(self) -> None:
        if self._reader.buffered > _PIPELINE and self._phase is not Phase.LINGER:
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport:
            self._reading_paused = False
            self._transport.resume_reading()

    # -- writing

    def may_persist(self, request: Request) -> bool:
        """Whether the connection can serve another request after this one."""
        if not request.keep_alive or self._unread_body or self._lingers:
            return False
        # A worker that drains still answers what was here before; the last answer says that it is the last.
        return not self._worker.is_draining or (self._reader.has_begun and self._worker.takes_more)

    def refuse_more(self) -> None:
        """Answer nothing after the current request: it was malformed, and what follows it may be, too."""
        self._lingers = True

    def cut_off(self) -> None:
        """The response ends before its end: close, so that the client sees it. A request that is on its way must not
        bring a reset over what the client has yet to read."""
        self.persists = False
        self._lingers = True
        if isinstance(self._transport, TlsTransport):
            self._transport.is_cut_off = True

    def send(self, data: bytes) -> None:
        """Write to the client."""
        if self._transport:
            self._transport.write(data)

    def send_pieces(self, pieces: list[bytes]) -> None:
        """Write several pieces without joining them."""
        if self._transport:
            self._transport.writelines(pieces)

    # -- files

    @property
    def can_send_files(self) -> bool:
        """Whether the kernel can send a file by itself."""
        return self._transport is not None and not isinstance(self._transport, TlsTransport)

    def send_file(self, head: bytes, descriptor: int, begin: int, most: int, left: int) -> int | None:
        """Write `head`, then sendfile(2) up to `most` of the `left` bytes of a file; see `Exchange.send_file`.

        The transport knows nothing of it, so all that it was given must have gone before.
        """
        transport = self._transport
        if not transport:
            return None
        if not self._is_narrow:
            self._is_narrow = True
            transport.set_write_buffer_limits(0)
        if head:
            transport.write(head)
        if self.is_congested:
            return None
        try:
            sent = os.sendfile(self._socket, descriptor, begin, most)
        except BlockingIOError:
            self._await_room()
            return None
        except OSError as error:
            if error.errno not in _LOST:
                raise
            self._abort()
            self.is_congested = True
            return None
        if 0 < sent < left:
            # Others have their turn, whether or not the client could take more at once.
            self._await_room()
        return sent

    @property
    def _socket(self) -> int:
        assert self._transport
        number = self._transport.get_extra_info("socket").fileno()
        assert isinstance(number, int)
        return number

    def _await_room(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._worker.readiness.watch(self._socket, self._has_room, WRITING)
        self.is_congested = self._awaits_room = True
        self._note_waiting()
        self._deadline = self._worker.now() + self.timeouts.send

    def _has_room(self) -> None:
        """The socket takes more. It stays watched if that is waited for again at once."""
        self._awaits_room = False
        self._go_on_writing()
        if self._is_watched and not self._awaits_room:
            self._watch_no_more()

    def _watch_no_more(self) -> None:
        self._is_watched = self._awaits_room = False
        self._worker.readiness.ignore(self._socket)

    def _waiting(self) -> int:
        """How many bytes the client has yet to take of what was written; of a file, what is in the socket."""
        if not self._transport:
            return 0
        waiting = self._transport.get_write_buffer_size()
        if self._awaits_room:
            waiting += int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return waiting

    def exchange_ended(self) -> None:
        """The response is written: go on to the next request, or close."""
        self._exchange = None
        if not self._transport:
            return
        if self._is_narrow:
            self._is_narrow = False
            self._transport.set_write_buffer_limits(_WRITE_HIGH)
        if self.persists:
            # Also where the worker drains by now: the client was told that it may ask again, and perhaps does.
            self._phase = Phase.IDLE
            self._await_next()
            if self._reader.has_begun:
                self._read_requests()
            self._read_on()
        elif self._unread_body or self._lingers or self._reader.buffered or self._worker.is_draining:
            # Requests that the client sent before it learned that this is the end must not bring a reset over the
            # answer (RFC 9112 section 9.6).
            self._linger()
        else:
            self._close()

    def _await_next(self) -> None:
        if self.is_congested:
            self._deadline = self._worker.now() + self.timeouts.send
        else:
            keepalive = self._worker.settings.timeouts.keepalive
            self._deadline = min(self._worker.now() + keepalive, self._worker.last_call)

    def _refuse(self, refused: Refused) -> None:
        """Answer what is no request."""
        outcome = "timeout" if refused.status == 408 else "refused"
        head, page = pages.refusal(refused, refused.reason if self._worker.settings.debug else "")
        page = b"" if self._reader.is_for_head else page
        self.send(head + page)
        self._worker.log_refused(self.peer.address, refused, len(page), outcome)
        self._linger()

    # -- the end

    def sweep(self, now: float) -> None:
        """Act if the deadline has passed; called some times a second."""
        if not self._transport:
            return
        if self._reading_paused and self._phase in _ANSWERING and has_hung_up(self._socket):
            self._abort()
            return
        if now < self._deadline:
            return
        if self._phase is Phase.IDLE and self._worker.is_draining and has_input(self._socket):
            return  # a request has come at the last moment; it is read before the next look
        waiting = self._waiting()
        if waiting != self._seen_waiting and (waiting or self._phase is Phase.LINGER):
            # The client takes, if slowly.
            self._seen_waiting = waiting
            self._deadline = now + (self.timeouts.send if waiting else _LINGER_TIME)
        elif waiting or self._awaits_room:
            self.abandon()
        elif self._phase is Phase.HEAD and self._reader.has_request_line:
            self._refuse(Refused(408, "the head of the request was not complete in time"))
        elif self._phase is Phase.BODY and self._exchange:
            self.refuse_body("the body of the request stalled")
        else:
            self._abort()

    def _note_waiting(self) -> int:
        """Remember how much the client has yet to take, so that progress can be seen; return it."""
        self._seen_waiting = self._waiting()
        return self._seen_waiting

    def drain(self) -> None:
        """Close soon if nothing is under way, see `Worker.last_call`; otherwise after the answer."""
        if self._phase is Phase.IDLE and not self.is_congested:
            self._deadline = min(self._deadline, self._worker.last_call)

    def _linger(self) -> None:
        transport = self._transport
        if not transport:
            return
        self._phase = Phase.LINGER
        waiting = self._note_waiting()
        self._deadline = self._worker.now() + (self.timeouts.send if waiting else _LINGER_TIME)
        self._resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            self._close_transport(transport)

    def _close_transport(self, transport: asyncio.Transport) -> None:
        # A transport of asyncio that is closed while it tells that there is room would close twice.
        if self._is_told:
            self._worker.loop.call_soon(transport.close)
        else:
            transport.close()

    def _close(self) -> None:
        if self._transport:
            self._phase = Phase.CLOSING
            self._note_waiting()
            self._deadline = self._worker.now() + self.timeouts.send
            self._close_transport(self._transport)

    def _abort(self) -> None:
        if self._transport:
            self._transport.abort()

    def abandon(self) -> None:
        """The client takes too little of what is sent: leave it."""
        if self._exchange:
            self._exchange.record.outcome = "timeout"
        self._abort()

    def shut(self) -> None:
        """End at once: the server stops."""
        self._abort()
