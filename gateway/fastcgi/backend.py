"""One FastCGI server as one front worker sees it: connections, who waits for one, and who gets which.

A child of the server serves one connection at a time, so there are never more of them than it has children, over all
workers together (see `tokens`). A connection is kept while there is work for it, given back when it was idle for a
moment, and at once when another worker waits. A server of which it is not known how many connections it can serve
gets one for each request.

A program that ends closes its kept connection, and if a request was on its way there, nobody can tell whether it was
begun. One that must not be done twice therefore gets a new connection, which whoever accepts it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

from fcgi_pool.listener import Address
from gateway.fastcgi.link import Link, Requester
from gateway.fastcgi.tokens import Share
from gateway.settings import FastCgiServer

if TYPE_CHECKING:
    from gateway.worker import Worker

# An idle connection pins a child, which others may want, too. Kept for the next request for so many seconds.
_LEASE = 0.05
# At a pool of ours for longer: its manager looks four times a second, and only of a connection that it has seen does it
# know which worker's the requests were. Who needs the child asks for it.
_LEASE_OF_TOLD = 0.5
# A connection in use is renewed after so many seconds. Whoever watches a program from without sees the age of its
# connection, and takes that for the age of its request. And a worker that is to end, at a reload say, ends when it is
# between two connections.
_LIFE = 1.0
# A Unix socket whose queue is full refuses (EAGAIN) and tells nobody when it has room; tried again, in seconds.
_RETRY = 0.01


class Waiting(Requester, Protocol):
    """A request as the backend sees it."""

    since: float  # when it began to wait, monotonic seconds
    wants_new: bool  # only a new connection will do
    is_retry: bool  # it was lost, or turned away, and goes first

    def launch(self, link: Link) -> None:
        """Go: send the request on `link`."""

class Backend:
    """Connections of one worker to `server`; `share` counts them, None where nothing is counted."""

    def __init__(self, worker: Worker, server: FastCgiServer, share: Share | None) -> None:
        self.worker = worker
        self.server = server
        self._share = share
        self._lease = _LEASE_OF_TOLD if share and share.places else _LEASE
        self._family, self._name = resolve(server.address)
        self._idle: list[tuple[Link, float]] = []  # with the moment since which it is idle, the longest first
        self._open = 0
        self._waiting: deque[Waiting] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        if share:
            worker.readiness.watch(share.poked, self._poked)

    def __repr__(self) -> str:
        idle = len(self._idle)
        return f"<Backend {self.server.address}: {self._open - idle} active, {idle} idle, {len(self._waiting)} waiting>"

    # -- requests

    def submit(self, run: Waiting) -> bool:
        """Serve `run`, now or when it is its turn; return False if too many wait already."""
        run.since = self.worker.now()
        if not self._waiting:
            if self._idle and not run.wants_new:
                link, _ = self._idle.pop()
                self._tell()
                run.launch(link)
                return True
            if self._connect_for(run):
                return True
        if len(self._waiting) >= self.worker.settings.max_waiting:
            return False
        if run.is_retry:
            self._waiting.appendleft(run)
        else:
            self._waiting.append(run)
        self._tell()
        # Written down that it waits, so now look again: what was put back before that woke nobody.
        self._admit()
        if self._waiting and self._share:
            self._share.ask_for_idle()
        return True

    def withdraw(self, run: Waiting) -> None:
        """Take a waiting request out of the line."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(run)
            self._tell()

    def _admit(self, deferring: bool = False) -> None:
        """Serve those who wait, as far as there are connections; `deferring` to workers that wait for longer."""
        while self._waiting and not self._retry:
            if deferring and self._share and self._share.should_hand_over(self._waiting[0].since):
                self._share.poke_neediest()
                return
            run = self._waiting.popleft()
            if self._idle and not run.wants_new:
                link, _ = self._idle.pop()
                run.launch(link)
            elif not self._connect_for(run):
                self._waiting.appendleft(run)
                break
        self._tell()

    def sweep(self) -> None:
        """Look whether those who wait can be served; called some times a second: a poke may be lost with a worker."""
        if self._waiting:
            self._admit()

    def _tell(self) -> None:
        if self._share and self._share.has_peers:
            waiting = self._waiting
            self._share.tell(len(waiting), waiting[0].since if waiting else math.inf, len(self._idle))

    def _poked(self) -> None:
        assert self._share
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._share.poked)
        if self._waiting:
            self._admit()
        if not self._waiting:
            for _ in range(min(len(self._idle), self._share.others_waiting)):
                self._give_back(self._idle.pop(0)[0])
            self._tell()
            self._share.poke_neediest()

    # -- connections

    def _connect_for(self, run: Waiting) -> bool:
        """Serve `run` on a new connection; return False if there can be none now. A refusal serves it, too."""
        if self._retry:
            return False
        if self._share:
            if not self._share.take():
                if not (run.wants_new and self._idle):
                    return False
                # Its token does for the new one.
                self._drop(self._idle.pop(0)[0])
        elif self._open >= self.worker.settings.max_programs:
            return False
        try:
            connected, connecting = self._connect()
        except OSError as error:
            self._put_back()
            if error.errno == errno.EAGAIN:
                self._retry = self.worker.loop.call_later(_RETRY, self._try_again)
                return False
            run.refused(error.errno or 0)
            return True
        self._open += 1
        share = self._share
        run.launch(Link(self, connected, connecting, share is not None, share.places if share else None))
        return True

    def _connect(self) -> tuple[socket.socket, bool]:
        """Return a socket, and whether it has yet to be connected. Raise OSError."""
        connected = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if self._family != socket.AF_UNIX:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.connect(self._name)
        except BlockingIOError as error:
            if error.errno == errno.EINPROGRESS:
                return connected, True
            connected.close()
            raise
        except OSError:
            connected.close()
            raise
        return connected, False

    def _try_again(self) -> None:
        self._retry = None
        self._admit()

    def not_connected(self, link: Link, error: int) -> None:
        """A connection that was begun came to nothing."""
        run = link.requester
        self.lost(link)
        if run:
            run.refused(error)

    def done(self, link: Link, usable: bool) -> None:
        """The request on `link` has ended; `usable`: the link can serve another."""
        waiting = self._waiting
        if not usable or self.worker.now() - link.opened > _LIFE or (self.worker.is_draining and not waiting):
            self.lost(link)
            return
        if self._share and self._share.should_hand_over(waiting[0].since if waiting else math.inf):
            self._give_back(link)
            return
        if not waiting:
            self._idle.append((link, self.worker.now()))
            self._tell()
            if not self._reaper:
                self._reaper = self.worker.loop.call_later(self._lease, self._reap)
            return
        run = waiting.popleft()
        self._tell()
        if run.wants_new:
            self._give_back(link)
            if not self._connect_for(run):
                waiting.appendleft(run)
                self._tell()
        else:
            run.launch(link)

    def lost(self, link: Link) -> None:
        """`link` is of no use any more: close it, and let others have its place."""
        self._idle = [kept for kept in self._idle if kept[0] is not link]
        self._give_back(link)
        self._admit(deferring=True)

    def _give_back(self, link: Link) -> None:
        self._drop(link)
        self._put_back()

    def _drop(self, link: Link) -> None:
        self._open -= 1
        link.close()

    def _put_back(self) -> None:
        if self._share:
            self._share.give()

    def _reap(self) -> None:
        """Close the connections that were idle for longer than their lease."""
        self._reaper = None
        due = self.worker.now() - self._lease
        while self._idle and self._idle[0][1] <= due:
            self._give_back(self._idle.pop(0)[0])
        if self._idle:
            delay = self._idle[0][1] - due
            self._reaper = self.worker.loop.call_later(delay, self._reap)
        self._tell()

    def drain(self) -> None:
        """Give back what is idle: the worker keeps nothing any more that others may want."""
        while self._idle:
            self._give_back(self._idle.pop()[0])
        self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self._waiting and self._open == len(self._idle)


def resolve(address: Address) -> tuple[socket.AddressFamily, str | tuple[object, ...]]:
    """Return the family and the socket address for `address`. A name is looked up; raise OSError."""
    if address.path:
        return socket.AF_UNIX, address.path
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]
