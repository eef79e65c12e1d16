"""The upgrade: a new program takes the place of this one, while both serve, on the same sockets.

It is started by the command line of this one, as its child, and inherits what listens. Until it is ready it dies with
this one; then it says so, and this one drains. If it ends before, nothing has changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

from gateway.listeners import Listener, decode, encode
from gateway.parent import Parent, end_in_words, outlive_parent, send_signal
from gateway.systemd import Notifier

_LISTENERS, _CHANNEL, _POOLS = "GATEWAY_LISTENERS", "GATEWAY_PREDECESSOR", "GATEWAY_POOL_LISTENERS"
# From the start of the new program until it is ready, and from TERM to KILL where it was not, in seconds.
_PATIENCE = 60.0
_GRACE = 5.0


class Predecessor:
    """The program whose place this one takes, if there is one."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = decode(os.environ.pop(_LISTENERS, "[]"))
        self.pool_listeners: list[Listener] = decode(os.environ.pop(_POOLS, "[]"))
        channel = os.environ.pop(_CHANNEL, "")
        self._channel = socket.socket(fileno=int(channel)) if channel else None

    @property
    def is_there(self) -> bool:
        """Whether another program serves until this one is ready."""
        return self._channel is not None

    def needs(self, listener: Listener) -> bool:
        """Whether another program listens there, too, and goes on if this one does not."""
        return self.is_there and listener in self.listeners

    def relieve(self, kept: Sequence[Listener]) -> None:
        """This program serves, on the listeners `kept`: the other one may go."""
        if self._channel:
            for listener in self.listeners:
                if listener not in kept:
                    listener.close()
            outlive_parent()
            with contextlib.suppress(OSError):
                self._channel.send(b"ready")
            self._channel.close()
            self._channel = None


class Successor:
    """The program that is to take the place of this one; raises OSError."""

    def __init__(
        self, parent: Parent, listeners: Sequence[Listener], pools: Sequence[Listener], notifier: Notifier
    ) -> None:
        """Start it; it inherits the server's `listeners`, and those of `pools`."""
        if not os.access(sys.executable, os.X_OK):
            raise FileNotFoundError(errno.ENOENT, f"there is no {sys.executable} any more")
        self._parent = parent
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._is_ended = False  # we have told it to end
        self.is_ready = False
        self.due = time.monotonic() + _PATIENCE
        parent.watch(self._channel, self._listen)
        try:
            self.pid = parent.fork(
                lambda: self._become(theirs, listeners, pools, notifier),
                [listener.socket for listener in (*listeners, *pools)],
            )
        except OSError:
            parent.drop(self._channel)
            raise
        finally:
            theirs.close()

    def _become(
        self, channel: socket.socket, listeners: Sequence[Listener], pools: Sequence[Listener], notifier: Notifier
    ) -> None:
        self._parent.die_with_me()
        for inherited in (channel, *(listener.socket for listener in (*listeners, *pools))):
            inherited.set_inheritable(True)
        more = {_LISTENERS: encode(listeners), _POOLS: encode(pools), _CHANNEL: str(channel.fileno())}
        more |= notifier.environment(os.getpid())
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **more})

    def _listen(self) -> None:
        try:
            message = self._channel.recv(64)
        except OSError:
            message = b""
        self._parent.drop(self._channel)
        if message:
            self.is_ready = True
            self.due = float("inf")

    def act(self, now: float) -> None:
        """End it if it takes too long to get ready."""
        if now >= self.due:
            if not self._is_ended:
                self._parent.log.error(f"upgrade: pid {self.pid} is not ready within {_PATIENCE:g} s; it is ended")
            self.end()

    def end(self) -> None:
        """End it, before it is ready."""
        send_signal(self.pid, signal.SIGKILL if self._is_ended else signal.SIGTERM)
        self._is_ended = True
        self.due = time.monotonic() + _GRACE

    def reaped(self, pid: int, status: int) -> bool:
        """Take the end of a process; return whether it was this one."""
        if pid != self.pid:
            return False
        self.pid = 0
        self.due = float("inf")
        if not self.is_ready and not self._is_ended:
            self._parent.log.error(
                f"upgrade failed: the new program (pid {pid}) ended before it was ready, {end_in_words(status)}; "
                "this one goes on; what it said stands on standard error"
            )
        return True
