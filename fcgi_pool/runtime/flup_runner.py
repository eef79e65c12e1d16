"""The same application on flup's servers instead of ours, for those who know them. The only file that imports flup.

Some facts about flup 1.0.3. Its forked server loses a SIGTERM: since Python 3.5 a system call goes on after a signal
handler, and its loop waits in one without end; so here the handler raises. Its children end once their parent has. Its
threaded server waits at its end for every connection, idle ones too; so here those are closed. On a Unix socket it
would compare FCGI_WEB_SERVER_ADDRS with no address and refuse everybody, so the variable is heeded over TCP alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from flup.server.fcgi import WSGIServer as _Threaded
from flup.server.fcgi_base import Connection as _Connection
from flup.server.fcgi_fork import WSGIServer as _Forked

if TYPE_CHECKING:
    from collections.abc import Callable


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)


class _KnownConnection(_Connection):  # type: ignore[misc]
    """A connection that its server knows of while it is open."""

    def run(self) -> None:
        self.server.open_connections.add(self)
        try:
            super().run()
        finally:
            self.server.open_connections.discard(self)


class _ThreadedServer(_Threaded):  # type: ignore[misc]
    """The threaded server, which at its end waits for requests, not for idle connections."""

    def __init__(self, application: Callable[..., Any], **options: Any) -> None:
        super().__init__(application, **options)
        self.open_connections: set[_KnownConnection] = set()
        self._jobClass = _KnownConnection

    def shutdown(self) -> None:
        for connection in list(self.open_connections):
            connection._keepGoing = False
            if not connection._requests:
                with contextlib.suppress(OSError):
                    connection._sock.shutdown(socket.SHUT_RD)
        super().shutdown()

    def _installSignalHandlers(self) -> None:
        super()._installSignalHandlers()
        for number in _ENDING:
            signal.signal(number, self._intHandler)


class _ForkedServer(_Forked):  # type: ignore[misc]
    """The forked server, which ends on a signal."""

    def _installSignalHandlers(self) -> None:
        super()._installSignalHandlers()
        for number in _ENDING:
            signal.signal(number, _end)

    def _restoreSignalHandlers(self) -> None:
        super()._restoreSignalHandlers()
        # A child that is told to end by the pool, not by its parent.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)


def run_threaded(application: Callable[..., Any], threads: int) -> int:
    """Serve by one process with up to `threads` threads until SIGTERM; return the exit status."""
    _forget_addresses()
    _ThreadedServer(application, minSpare=1, maxSpare=threads, maxThreads=threads).run()
    return 0


def run_forked(application: Callable[..., Any], children: int, max_requests: int) -> int:
    """Serve by so many children of this process until SIGTERM; return the exit status.

    `max_requests`: after how many a child is replaced, 0 for never.
    """
    _forget_addresses()
    server = _ForkedServer(application, minSpare=1, maxSpare=children, maxChildren=children, maxRequests=max_requests)
    server.run()
    return 0


def _end(_number: int, _frame: object) -> None:
    sys.exit(0)


def _forget_addresses() -> None:
    with socket.socket(fileno=os.dup(0)) as listener:
        if listener.family == socket.AF_UNIX:
            os.environ.pop("FCGI_WEB_SERVER_ADDRS", None)
