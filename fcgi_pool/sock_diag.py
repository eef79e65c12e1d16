"""What the kernel knows about a listening socket: who waits to be accepted, and who has been (sock_diag(7)).

Some facts about sock_diag. A dump names each socket by its inode, the number that /proc/PID/fd shows. An accepted Unix
socket has its listener's name and, as the same path may have been bound twice, the device and inode of the listener's
file. A connection that nobody has accepted yet has no inode, and is only counted: for a listening socket the receive
queue is the number of those, the send queue its backlog. A TCP connection that was reset is in no dump, though a
program may still hold it. No privilege is needed; only sockets of one's own network namespace are seen.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300

_ESTABLISHED = 1 << 1
_LISTEN = 1 << 10
# FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: one side has ended its sending, a program may still hold it.
_HALF_CLOSED = 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
_STATE_LISTEN = 10

_SHOW_NAME_FILE_PEER_QUEUE = 0x1 | 0x2 | 0x4 | 0x10
_NAME = 0
_FILE = 1
_PEER = 2
_QUEUE = 4

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBBIII")
_UNIX_ATTRIBUTES_AT = _HEADER.size + _UNIX_MESSAGE.size
_TWO = struct.Struct("=II")
_INET_REQUEST = struct.Struct("=BBBBI2s2s16s16sIII")
# family, state, timer, retransmissions, (ports, addresses, interface, cookie), expires, queues, user, inode
_INET_MESSAGE = struct.Struct("=BBBB48sIIIII")
_ANY_COOKIE = 0xFFFFFFFF
# The kernel fills at most 32 KiB a message where the reader has room for it (netlink_dump).
_ROOM = 64 * 1024


class Connection(NamedTuple):
    """One accepted connection: the inodes of both sides, the peer's 0 over TCP, and the bytes not yet read there."""

    inode: int
    peer: int
    unread: int


class Sockets(NamedTuple):
    """A listening socket: connections that wait, how many may, and those that were accepted, by inode."""

    queue: int = 0
    limit: int = 0
    connections: dict[int, Connection] = {}


class SockDiag:
    """Asks the kernel about `listener`, a Unix or TCP socket that listens.

    Raises OSError where the kernel does not answer: it is built without CONFIG_UNIX_DIAG or CONFIG_INET_DIAG, or
    netlink is forbidden.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._inode = os.fstat(listener.fileno()).st_ino
        self._family = listener.family
        self._name = b""
        self._port = 0
        self._questions = 0
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        try:
            # Answers come while the question is put; a kernel that gives none must not stop us.
            self._netlink.settimeout(1.0)
            if self._family == socket.AF_UNIX:
                (message,) = self._ask(unix_request(self._inode))
                self._name = unix_name(message)
            else:
                self._port = listener.getsockname()[1]
                self.look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def look(self) -> Sockets:
        """Return the queue and the accepted connections as they are now; raise OSError."""
        if self._family == socket.AF_UNIX:
            return read_unix(self._ask(unix_request()), self._inode, self._name)
        return read_inet(self._ask(inet_request(self._family, self._port)), self._inode)

    def _ask(self, request: bytes) -> list[bytes]:
        # Numbered, so that the rest of an answer that came too late is not taken for this one's.
        self._questions = number = self._questions + 1 & 0x7FFFFFFF
        length, kind, flags, _, _ = _HEADER.unpack_from(request)
        self._netlink.send(_HEADER.pack(length, kind, flags, number, 0) + request[_HEADER.size :])
        is_dump = flags & _NLM_F_DUMP
        found: list[bytes] = []
        is_done = False
        while True:
            for kind, answered, message in messages(self._netlink.recv(_ROOM)):
                if answered != number:
                    continue
                if kind == _NLMSG_DONE:
                    is_done = True
                elif kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message, _HEADER.size)
                    raise OSError(-code, os.strerror(-code))
                elif kind == _SOCK_DIAG_BY_FAMILY:
                    found.append(message)
                    is_done = not is_dump
            if is_done:
                return found


def unix_request(inode: int = 0) -> bytes:
    """Return the question about the Unix socket of that inode; by default, about all that listen or are connected."""
    flags = _NLM_F_REQUEST if inode else _NLM_F_REQUEST | _NLM_F_DUMP
    states = _ESTABLISHED | _LISTEN
    content = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, states, inode, _SHOW_NAME_FILE_PEER_QUEUE, _ANY_COOKIE, _ANY_COOKIE
    )
    return _HEADER.pack(_HEADER.size + len(content), _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + content


def inet_request(family: int, port: int) -> bytes:
    """Return the question about all TCP sockets of our side whose port is `port`."""
    states = _ESTABLISHED | _HALF_CLOSED | _LISTEN
    source = port.to_bytes(2, "big")
    content = _INET_REQUEST.pack(
        family, socket.IPPROTO_TCP, 0, 0, states, source, b"", b"", b"", 0, _ANY_COOKIE, _ANY_COOKIE
    )
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    return _HEADER.pack(_HEADER.size + len(content), _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + content


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Take apart what was received: type, sequence number and message, its header included (netlink(7))."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise OSError(errno.EBADMSG, "a netlink message that cannot be taken apart")
        yield kind, number, data[at : at + length]
        at += length + 3 & ~3


def _attributes(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of each attribute of a message about a Unix socket, its own header included."""
    at = _UNIX_ATTRIBUTES_AT
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, at, at + length
        at += length + 3 & ~3


def unix_name(message: bytes) -> bytes:
    """Return the part of a Unix socket's message that its accepted sockets share: its name and its file."""
    ends = [end for kind, _, end in _attributes(message) if kind in (_NAME, _FILE)]
    return message[_UNIX_ATTRIBUTES_AT : max(ends, default=_UNIX_ATTRIBUTES_AT)]


def read_unix(found: list[bytes], inode: int, name: bytes) -> Sockets:
    """Return what a dump says about the listening socket `inode`, whose `unix_name` is known."""
    queue = limit = 0
    connections = {}
    end = _UNIX_ATTRIBUTES_AT + len(name)
    for message in found:
        # Most sockets of a machine are of others: told apart by one comparison.
        if message[_UNIX_ATTRIBUTES_AT:end] != name or not name:
            continue
        _, _, state, _, own, _, _ = _UNIX_MESSAGE.unpack_from(message, _HEADER.size)
        peer = received = to_send = 0
        for kind, start, _ in _attributes(message):
            if kind == _PEER:
                (peer,) = struct.unpack_from("=I", message, start + _ATTRIBUTE.size)
            elif kind == _QUEUE:
                received, to_send = _TWO.unpack_from(message, start + _ATTRIBUTE.size)
        if state != _STATE_LISTEN:
            connections[own] = Connection(own, peer, received)
        elif own == inode:
            queue, limit = received, to_send
    return Sockets(queue, limit, connections)


def read_inet(found: list[bytes], inode: int) -> Sockets:
    """Return what a dump of one port's TCP sockets says about the listening socket `inode`."""
    queue = limit = 0
    connections = {}
    for message in found:
        _, state, _, _, _, _, received, to_send, _, own = _INET_MESSAGE.unpack_from(message, _HEADER.size)
        if state == _STATE_LISTEN:
            if own == inode:
                queue, limit = received, to_send
        elif own:
            connections[own] = Connection(own, 0, received)
    return Sockets(queue, limit, connections)
