"""A program's stdin as a pipe, into which a request's body goes while it comes."""

from __future__ import annotations

import os
from collections.abc import Callable

from gateway.body_stream import BodyStream
from gateway.readiness import WRITING, Readiness


class StdinPipe:
    """The write end of the pipe. `on_taken` is called when the program, or the pipe, has taken a piece.

    It is closed when the body has ended, and not where it is cut off: the program would take the end of what came for
    the end of the body. Then `close` follows when the program has ended.
    """

    __slots__ = ("_descriptor", "_is_watched", "_on_taken", "_readiness", "_rest", "_stream")

    def __init__(
        self, readiness: Readiness, descriptor: int, stream: BodyStream, on_taken: Callable[[], None]
    ) -> None:
        self._readiness = readiness
        self._descriptor = descriptor
        self._stream = stream
        self._on_taken = on_taken
        self._rest = memoryview(b"")
        self._is_watched = False
        os.set_blocking(descriptor, False)
        stream.on_data = self._pump

    @property
    def awaits_client(self) -> bool:
        """Whether the program has all that has come, and more is to come."""
        return self._stream.is_awaited and not self._rest

    @property
    def is_open(self) -> bool:
        """Whether the program may wait for more of the body, as far as is known."""
        return self._descriptor >= 0

    def _pump(self) -> None:
        """Write what there is, as far as the pipe takes it."""
        if self._descriptor < 0:
            return
        try:
            while self._rest or self._refill():
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
                self._on_taken()
        except BlockingIOError:
            if not self._is_watched:
                self._is_watched = True
                self._readiness.watch(self._descriptor, self._pump, WRITING)
            return
        except OSError:
            self.close()  # the program reads no more of it, which is its right
            return
        if self._stream.has_ended:
            self.close()
        elif self._is_watched:
            self._is_watched = False
            self._readiness.ignore(self._descriptor)

    def _refill(self) -> bool:
        self._rest = memoryview(self._stream.read(0, 0))
        return bool(self._rest)

    def close(self) -> None:
        """Close it, and drop what comes."""
        self._stream.discard()
        self._rest = memoryview(b"")
        if self._descriptor >= 0:
            if self._is_watched:
                self._is_watched = False
                self._readiness.forget(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
