"""A FastCGI server that a test leads by the hand: it sees each request as it came, and answers with any bytes."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import tempfile
from collections import deque
from dataclasses import dataclass, field

from fcgi_pool.protocol import RecordReader, RecordType, encode_record
from fcgi_pool.protocol.application import Abort, ApplicationSide, BeginRequest, Params, Stdin, StdinEnd
from tests.support import PATIENCE

PAGE = b"Content-Type: text/plain\r\n\r\nfine\n"
_END = struct.Struct(">IB3x")


def record(kind: int, content: bytes = b"", *, padding: int = 0, version: int = 1, request_id: int = 1) -> bytes:
    """Return a record that is as odd as wished."""
    return struct.pack(">BBHHBx", version, kind, request_id, len(content), padding) + content + b"\xaa" * padding


def end_record(app_status: int = 0, protocol_status: int = 0, padding: int = 0) -> bytes:
    """Return END_REQUEST."""
    return record(RecordType.END_REQUEST, _END.pack(app_status, protocol_status), padding=padding)


@dataclass
class Call:
    """One request."""

    connection: Connection
    keep: bool
    params: dict[str, bytes] = field(default_factory=dict)
    pairs: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    aborted: bool = False

    def send(self, *pieces: bytes) -> None:
        """Send raw bytes."""
        self.connection.socket.sendall(b"".join(pieces))

    def stdout(self, data: bytes) -> None:
        """Send output."""
        for start in range(0, len(data), 65528):
            self.send(encode_record(RecordType.STDOUT, 1, data[start : start + 65528]))

    def stderr(self, data: bytes) -> None:
        """Send words about errors."""
        self.send(encode_record(RecordType.STDERR, 1, data))

    def end(self, app_status: int = 0, protocol_status: int = 0) -> None:
        """End the request, and the connection where that is asked for."""
        self.send(end_record(app_status, protocol_status))
        self.connection.ended(self.keep)

    def answer(self, output: bytes = PAGE, app_status: int = 0) -> None:
        """Answer all at once."""
        self.send(encode_record(RecordType.STDOUT, 1, output), record(RecordType.STDOUT), end_record(app_status))
        self.connection.ended(self.keep)

    def close(self) -> None:
        """Close the connection, as a process that dies."""
        self.connection.close()

    def wait_for_abort(self) -> None:
        """Wait for ABORT_REQUEST."""
        while not self.aborted:
            assert not self.connection.is_closed
            self.connection.wait()
            self.connection.pull()

    def wait_for_close(self) -> None:
        """Wait until the web server closes the connection."""
        while not self.connection.is_closed:
            self.connection.wait()
            self.connection.pull()


class Connection:
    """A connection of the web server's."""

    def __init__(self, accepted: socket.socket, calls: deque[Call]) -> None:
        self.socket = accepted
        self.socket.settimeout(PATIENCE)
        self.is_closed = False
        self.records: list[tuple[int, int, bytes]] = []  # all but STDIN's
        self._calls = calls
        self.call: Call | None = None
        self._side = ApplicationSide()
        self._reader = RecordReader()

    def wait(self) -> None:
        """Wait until something comes."""
        assert select.select([self.socket], [], [], PATIENCE)[0], "nothing comes"

    def pull(self, size: int = 1 << 18) -> None:
        """Take what has come, at most `size` bytes of it."""
        try:
            data = self.socket.recv(size)
        except ConnectionResetError:
            data = b""
        if not data:
            self.close()
            return
        self._reader.receive(data)
        self.records += iter(self._next_record, None)
        self._side.receive(data)
        while event := self._side.next_event():
            if isinstance(event, BeginRequest):
                self.call = Call(self, event.keep)
                continue
            call = self.call
            assert call
            if isinstance(event, Params):
                call.pairs = event.pairs
                call.params = {name.decode(): value for name, value in event.pairs}
            elif isinstance(event, Stdin):
                call.body += event.data
            elif isinstance(event, StdinEnd):
                self._calls.append(call)
            elif isinstance(event, Abort):
                call.aborted = True
        assert not self._side.data_to_send()

    def _next_record(self) -> tuple[int, int, bytes] | None:
        while found := self._reader.next_record():
            if found[0] != RecordType.STDIN:
                return found
        return None

    def ended(self, keep: bool) -> None:
        """The request has ended."""
        if self._side.is_busy:
            self._side.end()
        if not keep:
            self.close()

    def has_left(self) -> bool:
        """Whether the web server has closed its end."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close. What has come and was not read makes that a reset."""
        self.is_closed = True
        self.socket.close()


class FcgiServer:
    """A listening Unix socket, or one of TCP, and the requests that come there."""

    def __init__(self, family: int = socket.AF_UNIX) -> None:
        self._directory = tempfile.mkdtemp(dir="/tmp")
        self._family = family
        self._name: object = os.path.join(self._directory, "s") if family == socket.AF_UNIX else ("127.0.0.1", 0)
        self._calls: deque[Call] = deque()
        self.connections: list[Connection] = []
        self.accepted = 0
        self.most = 0  # connections at once
        self.listener: socket.socket | None = None
        self.listen()

    @property
    def address(self) -> str:
        """What --fastcgi takes."""
        return f"unix:{self._name}" if self._family == socket.AF_UNIX else "tcp:{}:{}".format(*self._name)  # type: ignore[misc]

    def listen(self, backlog: int = 512) -> None:
        """Listen, again after `stop`."""
        self.listener = socket.socket(self._family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(self._name)  # type: ignore[arg-type]
        self._name = self.listener.getsockname()
        self.listener.listen(backlog)

    def stop(self, leaves_socket: bool = False) -> None:
        """Close everything, as a server that ends; one that was killed leaves its socket."""
        if self.listener:
            self.listener.close()
            self.listener = None
            if self._family == socket.AF_UNIX and not leaves_socket:
                os.unlink(str(self._name))
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self._calls.clear()

    def close(self) -> None:
        """Stop for good."""
        self.stop(leaves_socket=True)
        shutil.rmtree(self._directory)

    def accept(self) -> Connection:
        """Accept a connection, and read nothing from it."""
        assert self.listener
        self.listener.settimeout(PATIENCE)
        accepted, _ = self.listener.accept()
        connection = Connection(accepted, self._calls)
        self._forget_closed()
        self.connections.append(connection)
        self.accepted += 1
        self.most = max(self.most, sum(not one.has_left() for one in self.connections))
        return connection

    def take(self) -> Call:
        """Return the next request, complete, from whatever connection."""
        assert self.listener
        while not self._calls:
            self._forget_closed()
            sockets = [self.listener, *(connection.socket for connection in self.connections)]
            readable, _, _ = select.select(sockets, [], [], PATIENCE)
            assert readable, "no request comes"
            for connection in self.connections:
                if connection.socket in readable:
                    connection.pull()
            if self.listener in readable:
                self.accept()
        return self._calls.popleft()

    def take_begun(self) -> Call:
        """Return a request on a new connection, of whose body little may have come."""
        connection = self.accept()
        while not (connection.call and connection.call.params):
            connection.wait()
            connection.pull(1 << 12)
        return connection.call

    def is_quiet(self) -> bool:
        """Whether no connection and no request waits now."""
        assert self.listener
        self._forget_closed()
        sockets = [self.listener, *(connection.socket for connection in self.connections)]
        readable, _, _ = select.select(sockets, [], [], 0)
        return not self._calls and not any(one is self.listener or one.recv(1, socket.MSG_PEEK) for one in readable)

    def _forget_closed(self) -> None:
        self.connections = [connection for connection in self.connections if not connection.is_closed]
