"""The worker's end of the channel to one spawner: what is said goes out in its order, what is told comes in."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable

from gateway.cgi import wire

# Too many descriptors in flight, for a user's processes together (unix(7)), or no memory: tried again, in seconds.
_FOR_NOW = frozenset((errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM))
_RETRY = 0.05


class Link:
    """A channel, and one in its place after the spawner's death.

    `came`: the spawner is ready. `told`: takes the events that have come together. `gone`: the spawner has died.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        came: Callable[[], None],
        told: Callable[[list[wire.Event]], None],
        gone: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._came = came
        self._told = told
        self._gone = gone
        self.is_ready = False  # the spawner starts programs
        self._channel: socket.socket | None = None
        self._outbox: deque[tuple[int, bytes, list[int]]] = deque()
        self._buffer = memoryview(bytearray(wire.MESSAGE_LIMIT))

    def connect(self, channel: socket.socket) -> None:
        """Take the channel to a spawner, the first one or one in place of one that died."""
        self._disconnect()
        channel.setblocking(False)
        self._channel = channel
        self._loop.add_reader(channel.fileno(), self._read)

    def send(self, run_id: int, message: bytes, descriptors: list[int]) -> None:
        """Say something about a run; `descriptors` are closed once they have been sent."""
        self._outbox.append((run_id, message, descriptors))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        channel = self._channel
        while self._outbox and channel:
            run_id, message, descriptors = self._outbox[0]
            try:
                if descriptors:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                    channel.sendmsg((message,), rights)
                else:
                    channel.send(message)
            except BlockingIOError:
                self._loop.add_writer(channel.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno in _FOR_NOW:
                    self._loop.call_later(_RETRY, self._flush)
                    return
                if error.errno != errno.EMSGSIZE:
                    return  # the spawner died; the reader learns it too, and tells everyone
                failed: list[wire.Event] = [("failed", run_id, "exec", errno.E2BIG)]
                self._loop.call_soon(self._told, failed)
            self._outbox.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        if channel:
            self._loop.remove_writer(channel.fileno())

    def _read(self) -> None:
        assert self._channel
        try:
            length = self._channel.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if not length:
            self._disconnect()
        elif self.is_ready:
            self._told(wire.decode_events(self._buffer[:length]))
        else:
            self.is_ready = True
            self._came()

    def _disconnect(self) -> None:
        """The spawner is gone: forget what was to be said to it."""
        if not self._channel:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._channel = None
        self.is_ready = False
        for _, _, descriptors in self._outbox:
            for descriptor in descriptors:
                os.close(descriptor)
        self._outbox.clear()
        self._gone()
