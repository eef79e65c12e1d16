"""A line of connections that the workers of a pool hand over to each other.

Some facts about connections that wait in a worker. A worker that serves a request hears nothing of its other
connections, and a request that comes on one of them would wait for it, with another worker free. To close them first
loses requests: a web server may be sending one at that moment, cannot tell whether anybody has begun it, and must not
do a POST twice. So they are handed over, open as they are, by a message that carries the descriptor (unix(7),
SCM_RIGHTS), with whatever has come on them unread. The kernel keeps them until somebody takes them, as it does with
connections that nobody has accepted. All workers of a generation, and the manager, hold both ends of one line: it
outlives each of them.

A descriptor that finds no room in who takes it is lost (MSG_CTRUNC), so one is held in reserve.

The worker's side runs in foreign installations too: Python 3.9, standard library, nothing else of this package.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket

_INT = array.array("i").itemsize
_FRESH = b"f"
_USED = b"u"


class Line:
    """Both ends of a line; raises OSError. Messages keep their bounds, so that each is one connection."""

    def __init__(self) -> None:
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def filenos(self) -> tuple[int, int]:
        """Return the descriptors that a worker inherits."""
        return self._ends[0].fileno(), self._ends[1].fileno()

    @property
    def environment(self) -> str:
        """The value of FCGI_POOL_HANDOVER."""
        return "{}:{}".format(*self.filenos())

    @property
    def is_empty(self) -> bool:
        """Whether nobody stands in it."""
        watched = select.poll()
        watched.register(self._ends[1].fileno(), select.POLLIN)
        return not watched.poll(0)

    def close(self) -> None:
        """Give the descriptors back; with the last worker's, who still stands in the line is closed."""
        for end in self._ends:
            end.close()


class Handover:
    """A worker's side of the line: `giving` and `taking` are its two ends."""

    def __init__(self, giving: socket.socket, taking: socket.socket) -> None:
        self._giving = giving
        self._taking = taking
        self._reserve = -1

    @classmethod
    def from_environment(cls, value: str) -> Handover:
        """Take the descriptors that FCGI_POOL_HANDOVER names; raise ValueError or OSError."""
        giving, taking = map(int, value.split(":"))
        ends = []
        for descriptor in (giving, taking):
            os.set_inheritable(descriptor, False)
            ends.append(socket.socket(fileno=descriptor))
        return cls(*ends)

    def fileno(self) -> int:
        """Return the descriptor that is readable while somebody stands in the line."""
        return self._taking.fileno()

    def give(self, descriptor: int, is_fresh: bool) -> bool:
        """Put a connection into the line, to be closed afterwards; return False if there is no room.

        `is_fresh`: no request has begun on it.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._giving.sendmsg([_FRESH if is_fresh else _USED], rights, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def maybe_take(self) -> tuple[socket.socket, bool] | None:
        """Take the next connection, and whether it is fresh; None if nobody stands in the line.

        Raises OSError if no descriptor is left for it; then it stays.
        """
        if self._reserve < 0:
            self._reserve = os.dup(self._taking.fileno())
        os.close(self._reserve)
        self._reserve = -1
        space = socket.CMSG_SPACE(_INT)
        try:
            data, rights, _, _ = self._taking.recvmsg(1, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        finally:
            with contextlib.suppress(OSError):
                self._reserve = os.dup(self._taking.fileno())
        for level, kind, content in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                (descriptor,) = array.array("i", content[:_INT])
                return socket.socket(fileno=descriptor), data == _FRESH
        return None

    def close(self) -> None:
        """Give the descriptors back."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        self._giving.close()
        self._taking.close()
