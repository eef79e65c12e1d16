"""Where a request's body ends, and what it is without its transfer coding (RFC 9112 sections 6 and 7)."""

from __future__ import annotations

from gateway.http.grammar import CHUNK_LINE, FIELD_LINE
from gateway.http.limits import Limits
from gateway.http.message import END, NEED_DATA, Data, Refused, Signal

BodyEvent = Data | Refused | Signal


class LengthBody:
    """A body of known length."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        self._left = length

    def next_event(self, buffer: bytes, position: int) -> tuple[BodyEvent, int]:
        """Return the next event of what `buffer` holds from `position`, and the position after it."""
        if not self._left:
            return END, position
        data = _piece(buffer, position, self._left)
        self._left -= len(data)
        return (Data(data) if data else NEED_DATA), position + len(data)


class ChunkedBody:
    """A chunked body. Extensions and trailer fields are checked and dropped; a chunk's data need not be whole."""

    __slots__ = ("_left", "_limits", "_read", "_total", "_trailer_lines", "_trailer_size", "most")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.most = limits.body
        self._read = self._size_line
        self._left = 0
        self._total = 0
        self._trailer_size = 0
        self._trailer_lines = 0

    def next_event(self, buffer: bytes, position: int) -> tuple[BodyEvent, int]:
        """Return the next event of what `buffer` holds from `position`, and the position after it."""
        while True:
            event, position = self._read(buffer, position)
            if event is not None:
                return event, position

    def _size_line(self, buffer: bytes, position: int) -> tuple[BodyEvent | None, int]:
        limit = self._limits.chunk_line
        end = buffer.find(b"\n", position, position + limit) + 1
        if not end:
            if len(buffer) - position >= limit:
                return Refused(400, f"the line of a chunk's size is longer than {limit} bytes"), position
            return NEED_DATA, position
        match = CHUNK_LINE.fullmatch(buffer, position, end)
        if not match:
            return Refused(400, "malformed chunk size or chunk extension"), position
        self._left = int(match[1], 16)
        self._total += self._left
        if self._total > self.most:
            return Refused(413, f"the request's body is larger than {self.most} bytes"), position
        self._read = self._data if self._left else self._trailer
        return None, end

    def _data(self, buffer: bytes, position: int) -> tuple[BodyEvent | None, int]:
        data = _piece(buffer, position, self._left)
        if not data:
            return NEED_DATA, position
        self._left -= len(data)
        if not self._left:
            self._read = self._data_end
        return Data(data), position + len(data)

    def _data_end(self, buffer: bytes, position: int) -> tuple[BodyEvent | None, int]:
        end = buffer[position : position + 2]
        if end != b"\r\n":
            if end in (b"", b"\r"):
                return NEED_DATA, position
            return Refused(400, "a chunk's data does not end where its size says"), position
        self._read = self._size_line
        return None, position + 2

    def _trailer(self, buffer: bytes, position: int) -> tuple[BodyEvent | None, int]:
        room = self._limits.head - self._trailer_size
        end = buffer.find(b"\n", position, position + room) + 1
        if not end:
            if len(buffer) - position >= room:
                return Refused(431, f"the trailer section is longer than {self._limits.head} bytes"), position
            return NEED_DATA, position
        if buffer[position:end] == b"\r\n":
            return END, end
        self._trailer_size += end - position
        self._trailer_lines += 1
        if self._trailer_lines > self._limits.fields:
            return Refused(431, f"more than {self._limits.fields} trailer fields"), position
        if not FIELD_LINE.fullmatch(buffer, position, end):
            return Refused(400, "malformed trailer field"), position
        return None, end


def _piece(buffer: bytes, position: int, most: int) -> bytes:
    """Return what `buffer` holds from `position`, at most `most` bytes; without a copy where it is all of it."""
    if not position and len(buffer) <= most:
        return buffer
    return buffer[position : position + most]
