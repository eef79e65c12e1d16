"""One connection to a FastCGI server: a request at a time goes out, what comes back is handed to its run."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

from fcgi_pool.protocol.records import ProtocolError
from fcgi_pool.protocol.web_server import ABORT, END_OF_STDIN, End, ResponseReader, Stderr, Stdout, stdin_records
from fcgi_pool.told import Place, Places
from gateway.body import Body
from gateway.body_stream import BodyStream
from gateway.readiness import READING, WRITING

if TYPE_CHECKING:
    from gateway.fastcgi.backend import Backend

# Read at once: most answers fit into the small piece, and a stream fills the large one. Above 128 KiB the C library
# maps memory for each piece anew (mallopt(3), M_MMAP_THRESHOLD), and its page faults cost more than the copying.
_PIECE = 32 * 1024
_LARGE_PIECE = 96 * 1024
# Of a request's body, put into records at once.
_BODY_PIECE = 256 * 1024
# Pieces sent at one readiness, so that an upload does not hold the loop.
_TURN = 8
# Buffers for one call of sendmsg (Linux takes 1,024).
_BUFFERS = 16
# Joined into one piece below this size, so that a small request is one write.
_SMALL = 16 * 1024


class Requester(Protocol):
    """Whose request a link carries."""

    @property
    def is_full(self) -> bool:
        """Whether nothing should be read for it now."""

    def sent(self) -> None:
        """The server has taken a piece of the request."""

    def take(self, data: bytes, end: End | None) -> None:
        """Take output, and the request's end if it has come."""

    def take_stderr(self, data: bytes) -> None:
        """Take what the application says about errors."""

    def refused(self, error: int) -> None:
        """The server cannot be connected to, for errno `error`."""

    def lost(self, why: str, was_reset: bool) -> None:
        """The connection broke before the end. `was_reset`: the server had not read all of the request."""


class Link:
    """A connected, or connecting, socket of a `Backend`. The server's manager is told of it in one of `places`."""

    __slots__ = (
        "_backend", "_body", "_connecting", "_events", "_is_ready", "_offset", "_out", "_piece", "_reader", "_run",
        "_socket", "heard", "keeps", "opened", "place", "sent", "served",
    )  # fmt: skip

    def __init__(
        self, backend: Backend, connected: socket.socket, connecting: bool, keeps: bool, places: Places | None
    ) -> None:
        self._backend = backend
        self._socket = connected
        self._connecting = connecting
        self.keeps = keeps
        self.opened = backend.worker.now()
        self.place: Place | None = places.take(os.fstat(connected.fileno()).st_ino) if places else None
        self.served = 0  # requests before this one
        self.heard = False  # something of this one's answer has come, if not all
        self.sent = False  # something of this one may have reached the server
        self._reader = ResponseReader()
        self._run: Requester | None = None
        self._out: deque[bytes | memoryview] = deque()
        self._body: Body | BodyStream | None = None  # that is still to be sent, from `_offset` on
        self._offset = 0
        self._events = 0
        self._piece = _PIECE
        self._is_ready = True  # the reader, for a response
        self._watch(READING)

    def __repr__(self) -> str:
        return f"<Link {self._socket.fileno()}: {'busy' if self._run else 'idle'}, {self.served} served>"

    @property
    def requester(self) -> Requester | None:
        """Whose request is on its way."""
        return self._run

    def begin(self, run: Requester, request: bytes, body: Body | BodyStream | None) -> None:
        """Send a request; its `body`, if there is one, follows `request`."""
        self._run = run
        if self.place:
            self.place.begin(self._backend.worker.now())
        self.heard = self.sent = False
        if not self._is_ready:
            self._reader.begin()
        self._is_ready = False
        if body:
            self._body, self._offset = body, 0
            self._out.append(request)
            self._pump()
        elif self._connecting:
            self._out.append(request)
        else:
            try:
                sent = self._socket.send(request)
            except BlockingIOError:
                sent = 0
            except OSError:
                # What broke the connection, and whether an answer came before, is learnt by reading.
                return
            self.sent = sent > 0
            if sent == len(request):
                return
            self._out.append(memoryview(request)[sent:])
        self._attend()

    def _watch(self, events: int) -> None:
        if events == self._events:
            return
        readiness = self._backend.worker.readiness
        descriptor = self._socket.fileno()
        if not self._events:
            readiness.watch(descriptor, self._ready, events)
        elif events:
            readiness.change(descriptor, events)
        else:
            readiness.ignore(descriptor)
        self._events = events

    def _attend(self) -> None:
        """Watch for what can go on: reading unless the client is behind, writing while something is left."""
        run = self._run
        reading = 0 if run and run.is_full else READING
        writing = self._out or self._connecting or (self._body and self._body.is_readable(self._offset))
        self._watch(reading | (WRITING if writing else 0))

    def send_more(self) -> None:
        """More of the body has come, or nothing more comes."""
        if self._body:
            self._pump()
            self._attend()

    def resume(self) -> None:
        """The client has caught up: read again."""
        self._attend()

    def _ready(self) -> None:
        if self._connecting:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._backend.not_connected(self, error)
                return
            self._connecting = False
        if self._events == READING:
            self._read()
            return
        self._pump()
        if self._events & READING:
            self._read()
        if self._events:
            self._attend()

    # -- to the server

    def _pump(self) -> None:
        """Send what is left of the request, as far as the server takes it now."""
        if self._connecting:
            return
        try:
            for _ in range(_TURN):
                if not self._out and not self._refill():
                    return
                if self._body and len(self._out) == 1:
                    self._refill()
                self._send_some()
                if self._run:
                    self._run.sent()
        except BlockingIOError:
            pass
        except OSError:
            # It takes no more of the request. Whether it answers all the same is learnt by reading.
            self._out.clear()
            self._body = None

    def _send_some(self) -> None:
        out = self._out
        if len(out) <= _BUFFERS and sum(map(len, out)) <= _SMALL:
            whole = b"".join(out)
            out.clear()
            out.append(whole)
        sent = self._socket.sendmsg([out[number] for number in range(min(len(out), _BUFFERS))])
        self.sent = True
        while sent:
            first = out.popleft()
            if len(first) > sent:
                out.appendleft(memoryview(first)[sent:])
                break
            sent -= len(first)

    def _refill(self) -> bool:
        """Put the next piece of the body into records; return whether there was one."""
        body = self._body
        if not body or not body.is_readable(self._offset):
            return False
        try:
            data = body.read(self._offset, _BODY_PIECE)
        except OSError as error:
            self._broken(f"the body of the request could not be read: {error.strerror}", was_reset=False)
            return False
        self._offset += len(data)
        self._out.extend(stdin_records(data) if data else ())
        if self._offset >= body.length:
            self._out.append(END_OF_STDIN)
            self._body = None
        elif not data:
            # The client has its answer, and the body was given up with it: what is missing must not look like an end.
            self._out.append(ABORT)
            self._body = None
        return True

    # -- from the server

    def _read(self) -> None:
        try:
            data = self._socket.recv(self._piece)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error.strerror or str(error), was_reset=isinstance(error, ConnectionResetError))
            return
        self._piece = _LARGE_PIECE if len(data) >= _PIECE else _PIECE
        run = self._run
        if not data or run is None:
            self._broken("it closed the connection", was_reset=False)
            return
        reader = self._reader
        whole = reader.receive_whole(data)
        if whole:
            self._is_ready = True
            self._ended(run, *whole)
            return
        self.heard = True
        reader.receive(data)
        pieces: list[bytes] = []
        end: End | None = None
        try:
            while (event := reader.next_event()) is not None:
                if type(event) is Stdout:
                    pieces.append(event.data)
                elif type(event) is Stderr:
                    run.take_stderr(event.data)
                elif type(event) is End:
                    end = event
                    break
        except ProtocolError as error:
            self._broken(f"it does not speak FastCGI: {error}", was_reset=False)
            return
        output = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if end:
            self._ended(run, output, end)
        elif output:
            run.take(output, None)
            if run.is_full:
                self._attend()

    def _ended(self, run: Requester, output: bytes, end: End) -> None:
        # First the next request, so that the server works on it while this one's answer is passed on.
        self._run = None
        if self.place:
            self.place.end()
        self.served += 1
        is_clean = self._is_ready or self._reader.is_idle
        self._backend.done(self, self.keeps and is_clean and not self._out and not self._body)
        run.take(output, end)

    def _broken(self, why: str, was_reset: bool) -> None:
        run, self._run = self._run, None
        self._backend.lost(self)
        if run:
            run.lost(why, was_reset)

    # -- the end

    def give_up(self) -> None:
        """Nobody wants the answer any more: tell the server, and close."""
        self._run = None
        # Between two records; within one it would be taken for content.
        if not self._out and not self._connecting:
            with contextlib.suppress(OSError):  # it will notice the close
                self._socket.send(ABORT)
        self._backend.lost(self)

    def close(self) -> None:
        """Close the socket; called by the backend alone, which counts."""
        if self._events:
            self._backend.worker.readiness.forget(self._socket.fileno())
            self._events = 0
        if self.place:
            self.place.close()
            self.place = None
        self._socket.close()
