"""The accept loop of one worker: one request at a time, however many connections are kept open.

Some facts about waiting for connections. Many workers wait for the same listening socket. A wake-up for each of them at
every connection would cost more than serving it, so a worker without a connection waits exclusively: the kernel wakes
one. One that keeps connections does not claim exclusiveness, since it may be about to serve.

An idle connection costs a descriptor and nothing else: it is read only when it has something to say. But while a worker
serves a request it hears of no other, and what comes then would wait for it though another worker may be free. So
before it serves, it hands its other connections over (see `handover`), to whoever is free now or first; that may be
itself. Where a web server has no more connections than there are workers, each soon has one, and nothing is moved.

A worker that was started without a line to hand over can only be careful. It lets free workers go first, and takes a
connection while it keeps others only if that still waits a moment later: then no other is free, and it need not wait
for the next. And it gives a new connection a moment to begin its request, rather than take another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Any

from fcgi_pool.protocol.records import ProtocolError
from fcgi_pool.runtime.connection import Connection, WebServerGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fcgi_pool.handover import Handover
    from fcgi_pool.scoreboard import Slot

# Connections a worker keeps; past it the one idle for longest is closed. Far above what a web server that counts opens
# (one a worker), and below the usual 1024 descriptors.
KEPT_LIMIT = 256
# Seconds that free workers have to take a connection before one that keeps others does: some wake-ups' worth.
_LET_OTHERS_GO_FIRST = 0.002
# Connections it takes at once after a wait in which nobody took one: waiting for each would cost more than it saves.
_WITHOUT_WAITING = 16
# Seconds in which a web server that has connected begins a request, for a worker that is to end; and for one that has
# no line to hand over, which others wait for meanwhile: they come at once, but for a machine that is loaded.
_FIRST_WORDS = 1.0
_FIRST_WORDS_SOON = 0.02
# Seconds until the next look when there is no descriptor or memory for another connection.
_PAUSE = 0.1

# Events taken at once; the others come first the next time.
_EVENTS = 64

_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)


class Worker:
    """Serves an application on a listening socket until a signal, the number of requests, or the application ends it.

    SIGTERM, SIGINT, SIGQUIT and SIGUSR1 end it: at once if it is idle, else after the request it serves. What has
    arrived by then on kept connections is answered, too.
    """

    def __init__(
        self,
        listener: socket.socket,
        respond: Callable[[dict[str, Any], Connection], bool],
        slot: Slot | None = None,
        max_requests: int = 0,
        allowed: frozenset[str] | None = None,
        handover: Handover | None = None,
    ) -> None:
        """Take a listening socket, what answers a request, and a slot of the scoreboard.

        `respond` gets the variables of a request and its connection, and returns whether it may be called again.
        `max_requests`: how many requests it serves, 0 for any number. `allowed`: the addresses of web servers that
        may connect over TCP, None for all. `handover`: the line to the other workers of its pool.
        """
        self._listener = listener
        self._respond = respond
        self._slot = slot
        self._max_requests = max_requests
        self._allowed = allowed
        self._handover = handover
        self._served = 0
        self._ends = False
        # By descriptor, the one that was used last at the end.
        self._kept: dict[int, Connection] = {}
        self._poll = select.epoll()
        self._accepts_first = False
        # To the kept connections, once: those that are never idle must not keep it from accepting either.
        self._gave_way = False
        self._without_waiting = 0

    def run(self) -> None:
        """Serve until the end."""
        # Of workers that are woken for one connection only one gets it; the others must not wait in accept.
        self._listener.setblocking(False)
        woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        wakeup_before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._mark_end)
        try:
            self._poll.register(woken, select.EPOLLIN)
            while not self._ends:
                self._watch_listener()
                gives_way = False
                for descriptor, _ in self._poll.poll(-1, _EVENTS):
                    if descriptor in self._kept:
                        self._go_on(self._kept[descriptor])
                    elif descriptor == woken:
                        _drain(woken)
                    elif self._handover and descriptor == self._handover.fileno():
                        self._take_over(self._handover)
                    elif descriptor != self._listener.fileno():
                        # Of one that was handed over since.
                        continue
                    elif self._handover or self._accepts_first or self._gave_way or self._nobody_else_takes_it():
                        self._accept()
                    else:
                        gives_way = True
                    if self._ends:
                        break
                self._gave_way = gives_way
            self._finish()
        finally:
            signal.set_wakeup_fd(wakeup_before)
            os.close(woken)
            os.close(waker)
            self._poll.close()
            if self._slot is not None:
                self._slot.close()
            if self._handover:
                self._handover.close()

    def _mark_end(self, _number: int, _frame: object) -> None:
        self._ends = True

    def _watch_listener(self) -> None:
        """Wait for connections exclusively, unless there are kept ones; the kernel cannot change that in place."""
        first = not self._kept
        if first == self._accepts_first:
            return
        for source in (self._listener, self._handover):
            if source:
                with contextlib.suppress(FileNotFoundError):
                    self._poll.unregister(source.fileno())
                self._poll.register(source.fileno(), select.EPOLLIN | (select.EPOLLEXCLUSIVE if first else 0))
        self._accepts_first = first

    def _nobody_else_takes_it(self) -> bool:
        """Whether a connection still waits after a moment in which no kept one has become readable."""
        if self._without_waiting:
            self._without_waiting -= 1
            return True
        if _is_readable(self._kept, _LET_OTHERS_GO_FIRST) or not _is_readable((self._listener.fileno(),), 0):
            return False
        self._without_waiting = _WITHOUT_WAITING
        return True

    def _accept(self) -> None:
        """Take a connection and serve what it has brought."""
        try:
            accepted, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._make_room(error)
            return
        if accepted.family != socket.AF_UNIX:
            if self._allowed is not None and address[0] not in self._allowed:
                accepted.close()
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(accepted)
        if not self._handover:
            _is_readable((connection.fileno(), *self._kept), _FIRST_WORDS_SOON)
        self._go_on(connection)

    def _make_room(self, error: OSError) -> None:
        """Let another connection have a descriptor, if that is what is missing."""
        if error.errno not in _OUT_OF:
            raise error
        if self._kept:
            self._drop(next(iter(self._kept.values())))
        else:
            select.select([], [], [], _PAUSE)

    def _take_over(self, handover: Handover) -> bool:
        """Take a connection that another worker had, and serve what has come; return whether there was one."""
        try:
            taken = handover.maybe_take()
        except OSError as error:
            self._make_room(error)
            return True
        if taken:
            self._go_on(Connection(*taken))
        return taken is not None

    def _hand_over_all_but(self, connection: Connection, handover: Handover) -> None:
        """Let others have the connections that nothing is known of. A request of which a part was read stays here."""
        for other in list(self._kept.values()):
            if other is not connection and other.is_idle:
                if not handover.give(other.fileno(), not other.serial):
                    break
                self._drop(other)

    def _go_on(self, connection: Connection) -> None:
        """Serve what has come on a connection; afterwards it is kept, or closed."""
        try:
            environ = connection.maybe_environ()
            while environ is not None:
                self._serve(connection, environ)
                # What came together with the request.
                done = self._ends or connection.is_drained or connection.must_close
                environ = None if done else connection.maybe_environ_held()
            if connection.must_close:
                self._drop(connection)
            else:
                self._keep(connection)
        except (WebServerGone, ProtocolError, OSError):
            # A connection that breaks harms itself alone.
            self._drop(connection)

    def _serve(self, connection: Connection, environ: dict[str, Any]) -> None:
        """Answer one request."""
        if self._handover and self._kept and not self._ends:
            self._hand_over_all_but(connection, self._handover)
        slot = self._slot
        if slot is not None:
            length = environ.get("CONTENT_LENGTH", "")
            slot.begin(
                environ.get("REQUEST_METHOD", "").encode("latin-1"),
                environ.get("REQUEST_URI", "").encode("latin-1"),
                int(length) if length.isdigit() and len(length) < 19 else 0,
                environ.get("REMOTE_USER", "").encode("latin-1"),
                environ.get("SCRIPT_FILENAME", "").encode("latin-1"),
            )
        self._served += 1
        if self._served == self._max_requests:
            self._ends = True
        try:
            if not self._respond(environ, connection):
                self._ends = True
        finally:
            if slot is not None:
                slot.end()

    def _keep(self, connection: Connection) -> None:
        descriptor = connection.fileno()
        kept = self._kept
        if descriptor in kept:
            if len(kept) > 1:
                kept[descriptor] = kept.pop(descriptor)
            return
        while len(kept) >= KEPT_LIMIT:
            self._drop(next(iter(kept.values())))
        kept[descriptor] = connection
        self._poll.register(descriptor, select.EPOLLIN)

    def _drop(self, connection: Connection) -> None:
        if self._kept.pop(connection.fileno(), None):
            self._poll.unregister(connection.fileno())
        connection.close()

    def _finish(self) -> None:
        """Answer what has already arrived on kept connections, and close them: a web server that gets nothing for a
        request must ask again elsewhere. One that has just connected, or has begun to ask, is waited for."""
        self._max_requests = 0
        self._close_kept()
        # What this worker has put into the line, or others before they ended, is not left there.
        for _ in range(KEPT_LIMIT):
            if not self._handover or not self._take_over(self._handover):
                break
            self._close_kept()

    def _close_kept(self) -> None:
        # First those without a request: none that is sent from now on is to wait for those that are served.
        for connection in list(self._kept.values()):
            if not connection.is_expected and not _is_readable((connection.fileno(),), 0):
                self._close_when_read(connection)
        for connection in list(self._kept.values()):
            while connection.is_expected and _is_readable((connection.fileno(),), _FIRST_WORDS):
                self._go_on(connection)
                if connection.fileno() < 0:
                    break
            else:
                self._go_on(connection)
            if connection.fileno() >= 0:
                self._close_when_read(connection)

    def _close_when_read(self, connection: Connection) -> None:
        """Close a connection, but for what has come since it was looked at; more cannot."""
        connection.take_no_more()
        self._go_on(connection)
        self._drop(connection)


def _is_readable(descriptors: Iterable[int], seconds: float) -> bool:
    """Whether one of them has something to be read, or has within so many seconds."""
    watched = select.poll()
    for descriptor in descriptors:
        watched.register(descriptor, select.POLLIN)
    return bool(watched.poll(seconds * 1000))


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 512):
            pass
