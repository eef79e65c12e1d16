"""Many short-lived descriptors behind one descriptor of the event loop.

A loop's own `add_reader` makes a handle per descriptor and, in libuv, several system calls per change. A program's
pipes and the connections to FastCGI servers live for milliseconds; here each costs one system call to watch and none
to forget, since the kernel drops a closed descriptor from an epoll set by itself.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

# Taken at once; more wait for the next turn of the loop.
_BATCH = 64

READING = select.EPOLLIN
WRITING = select.EPOLLOUT


class Readiness:
    """Calls back when a watched descriptor, which must not block, can be read, or written to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, descriptor: int, callback: Callable[[], object], events: int = READING) -> None:
        """Call `callback` whenever `descriptor` is ready for one of `events`, or broken."""
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Watch a descriptor that is watched already for other `events`."""
        self._epoll.modify(descriptor, events)

    def ignore(self, descriptor: int) -> None:
        """Stop watching a descriptor that stays open."""
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor that is closed next."""
        del self._callbacks[descriptor]

    def _dispatch(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _BATCH):
            # An earlier one of this batch may have ended it; a number given anew meanwhile finds nothing to read.
            callback = self._callbacks.get(descriptor)
            if callback:
                callback()


def has_input(descriptor: int) -> bool:
    """Whether there is something to be read now."""
    return _is_now(descriptor, select.POLLIN)


def has_hung_up(descriptor: int) -> bool:
    """Whether the other end of a socket has left, which is seen here while nothing is read from it."""
    return _is_now(descriptor, select.POLLRDHUP)


def _is_now(descriptor: int, events: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(0))
