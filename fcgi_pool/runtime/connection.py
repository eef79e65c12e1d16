"""One connection from a web server, read without waiting between requests and with waiting in one."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING, Any

from fcgi_pool.protocol.application import Abort, ApplicationSide, BeginRequest, Environment, Stdin, StdinEnd
from fcgi_pool.protocol.records import ProtocolError, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fcgi_pool.protocol.application import Event

# Bytes read at once: about a record of the largest size.
_READ = 64 * 1024
# Bytes of a request body that are taken while the application writes, only to see whether the web server gives up.
_AHEAD = 256 * 1024
# Bytes of words for the error log that may wait for the next write, or a flush.
_STDERR_HELD = 8 * 1024
# Pieces of one sendmsg; the kernel takes 1024 (IOV_MAX).
_PIECES = 512
# Up to so many bytes, copying pieces into one costs less than telling the kernel of each.
_JOINED = 32 * 1024


class WebServerGone(ConnectionAbortedError):
    """The web server has closed the connection, or has given the request up (section 5.4)."""


class Connection:
    """A connected socket and the state of its protocol. Serves one request after the other."""

    def __init__(self, connected: socket.socket, is_fresh: bool = True) -> None:
        """Take a socket; `is_fresh`: no request has begun on it yet."""
        self._socket = connected
        self._side = ApplicationSide(as_text=True)
        self._role = Role.RESPONDER
        # How many requests have begun: which one runs.
        self.serial = 0 if is_fresh else 1
        # Parts of the request body that have come and were not read yet.
        self._body: list[bytes] = []
        self._held = 0
        self._body_ended = False
        self._stderr: list[bytes | memoryview] = []
        self._stderr_held = 0
        # Why nothing more can be sent about this request.
        self._gone: WebServerGone | None = None
        # Its response has ended, and what still comes of the request is thrown away until the web server closes.
        self._lingers = False
        # It cannot be told any more where a record begins.
        self._is_broken = False

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed."""
        return self._socket.fileno()

    def take_no_more(self) -> None:
        """Let the web server send no more.

        What it has sent stays to be read. Over a Unix socket its next request fails as it is sent, so that it knows
        that nobody has begun it; one that is met by a mere close may have been read or not.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    @property
    def role(self) -> Role:
        """The role of the request that runs."""
        return self._role

    @property
    def is_drained(self) -> bool:
        """Whether nothing has been received that was not looked at."""
        return self._side.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether it could as well be another worker's: no request is left on it, nor a part of one."""
        return self._side.is_idle and not self._lingers and not self._is_broken

    @property
    def is_expected(self) -> bool:
        """Whether the web server is about to begin a request, or in the middle of saying what it asks for."""
        return not self._lingers and not (self.serial and self._side.is_idle)

    @property
    def must_close(self) -> bool:
        """Whether the connection is of no more use, no request being left on it."""
        return self._is_broken or not (self._side.is_busy or self._side.keeps or self._lingers)

    def maybe_environ(self) -> dict[str, Any] | None:
        """Read what has come; return the variables of a request that begins, None if more must come first.

        Raises WebServerGone, ProtocolError or OSError when the connection is to be closed.
        """
        try:
            data = self._socket.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not data:
            raise WebServerGone("the web server has closed the connection")
        if self._lingers:
            return None
        found = self._side.receive_request(data)
        if found is None:
            return self.maybe_environ_held()
        self._begin(Role.RESPONDER)
        self._body_ended = self._side.has_all
        return found

    def maybe_environ_held(self) -> dict[str, Any] | None:
        """Do the same with what was read before."""
        side = self._side
        found: dict[str, Any] | None = None
        while found is None and (event := side.next_event()) is not None:
            if isinstance(event, BeginRequest):
                self._begin(event.role)
                self._body_ended = event.role is Role.AUTHORIZER
            elif isinstance(event, Environment):
                found = event.variables
            elif isinstance(event, Abort):
                self._send_now(b"".join(side.end()))
        answers = side.data_to_send()
        if answers:
            self._send_now(answers)
        return found

    def _begin(self, role: Role) -> None:
        self.serial += 1
        self._role = role
        self._body.clear()
        self._held = 0
        self._gone = None

    def read_body(self) -> bytes:
        """Return the next part of the request body, b"" at its end; waits for it. Raises WebServerGone."""
        while True:
            if self._body:
                part = self._body.pop(0)
                self._held -= len(part)
                return part
            if self._body_ended:
                return b""
            if self._gone is not None:
                raise self._gone
            if not self._take_next():
                self._receive(0)

    def check(self) -> None:
        """Raise WebServerGone if the web server has given the request up; waits for nothing."""
        if self._gone is None and self._held < _AHEAD:
            with contextlib.suppress(BlockingIOError):
                self._receive(socket.MSG_DONTWAIT)
            while self._gone is None and self._take_next():
                pass
        if self._gone is not None:
            raise self._gone

    def send_stdout(self, pieces: Sequence[bytes | memoryview], ends: bool) -> None:
        """Send a part of the response, and with `ends` the end of a request that went well; waits until it is taken.

        Raises WebServerGone.
        """
        side = self._side
        records, self._stderr, self._stderr_held = self._stderr, [], 0
        if sum(map(len, pieces)) <= _JOINED:
            records += side.stdout(b"".join(pieces))
        else:
            for piece in pieces:
                records += side.stdout(piece)
        if ends:
            records += self._end(0)
        self._send(records)

    def write_stderr(self, data: bytes) -> None:
        """Pass words on to the web server's error log, with the next write or flush; to our own after the end."""
        if self._side.is_busy and self._gone is None:
            self._stderr += self._side.stderr(data)
            self._stderr_held += len(data)
            if self._stderr_held > _STDERR_HELD:
                self.flush_stderr()
        elif data:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(data.decode("utf-8", "backslashreplace"))

    def flush_stderr(self) -> None:
        """Send the words that wait. A web server that has gone is not told of here."""
        if self._stderr and self._gone is None:
            records, self._stderr, self._stderr_held = self._stderr, [], 0
            with contextlib.suppress(WebServerGone):
                self._send(records)

    def end(self, app_status: int) -> None:
        """End the request if it still runs (section 5.5). Raises WebServerGone if the connection is lost."""
        if self._side.is_busy:
            records, self._stderr, self._stderr_held = self._stderr, [], 0
            self._send(records + self._end(app_status))

    def _end(self, app_status: int) -> list[bytes | memoryview]:
        if not self._body_ended and not self._side.keeps and self._gone is None:
            # Closing with bytes unread would reset the connection, and the response could be lost with it.
            with contextlib.suppress(WebServerGone):
                while self._take_next():
                    pass
            self._lingers = not self._body_ended and self._gone is None
        return self._side.end(app_status)

    def _take_next(self) -> bool:
        """Note what has come next for the request that runs; return whether anything has. Raises WebServerGone."""
        try:
            event = self._side.next_event()
        except ProtocolError as error:
            self._is_broken = True
            self._gone = WebServerGone(f"the web server breaks the protocol: {error}")
            raise self._gone from None
        if event is not None:
            self._take(event)
        return event is not None

    def _take(self, event: Event) -> None:
        if isinstance(event, Stdin):
            self._body.append(event.data)
            self._held += len(event.data)
        elif isinstance(event, StdinEnd):
            self._body_ended = True
        elif isinstance(event, Abort):
            self._gone = WebServerGone("the web server has given the request up")

    def _receive(self, flags: int) -> None:
        try:
            data = self._socket.recv(_READ, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            self._gone = WebServerGone(f"the connection to the web server is lost: {error.strerror}")
            raise self._gone from None
        if not data:
            self._gone = WebServerGone("the web server has closed the connection")
            raise self._gone
        self._side.receive(data)

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        """Send all pieces; waits until the kernel has taken them."""
        answers = self._side.data_to_send()
        if answers:
            pieces = [answers, *pieces]
        try:
            if sum(map(len, pieces)) <= _JOINED:
                self._socket.sendall(b"".join(pieces))
            else:
                self._send_pieces(pieces)
            if self._lingers and not self._side.is_busy:
                self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._gone = WebServerGone(f"the connection to the web server is lost: {error.strerror}")
            raise self._gone from None

    def _send_pieces(self, pieces: list[bytes | memoryview]) -> None:
        at = 0
        while at < len(pieces):
            sent = self._socket.sendmsg(pieces[at : at + _PIECES])
            while at < len(pieces) and sent >= len(pieces[at]):
                sent -= len(pieces[at])
                at += 1
            if sent:
                pieces[at] = memoryview(pieces[at])[sent:]

    def _send_now(self, data: bytes) -> None:
        """Send what is short between requests; a peer that takes not even that loses its connection."""
        if data and self._socket.send(data, socket.MSG_DONTWAIT) != len(data):
            raise ProtocolError("the web server does not read the answers to what it sends")
