"""Shared memory in which a web server tells a pool's manager what its connections carry.

Some facts about seeing a pool through its web server's connections. The kernel names both ends of a Unix connection, so
whoever knows what one end carries and who holds the other knows what each worker does, whatever the program. A web
server writes two numbers when a request begins and one when it ends, each by one store; what a request is, in words,
it writes only for one that takes long, some times a second. The requests of a slot are counted on and on, whatever
connection has it, so their sum is right also for connections that came and went between two looks. A slot says what it
said last until it is used again, for the same reason.

There are slots for as many connections as each process of the web server may have, so none waits for another. A reader
believes nothing that it reads: a writer may be killed at any point. As in `scoreboard` the memory cannot be shrunk.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from fcgi_pool.scoreboard import TEXT_LIMIT, pack_text, sealed_memory, unpack_text
from fcgi_pool.snapshot import RequestInfo

# The numbers of one slot, doubles, each in a place of its own: the inode of the web server's side; the count when the
# connection was made, and now; when the request began, 0 for none; which request the text is about; the text's bytes;
# those of the request's body. The texts of all slots follow.
_INODE, _FIRST, _COUNT, _SINCE, _WRITTEN, _LENGTH, _BODY = range(7)
_NUMBERS = 8
_SLOT_SIZE = _NUMBERS * 8 + TEXT_LIMIT
# A double has room for whole numbers up to here.
_WHOLE = 2.0**53
# A writer goes on to the next request while it is read hardly ever once, and never so often.
_ATTEMPTS = 3


class Carried(NamedTuple):
    """What one connection carries: how many requests it has had, and the one under way. Of that one `started` is known,
    and the rest, if it takes long."""

    requests: int
    request: RequestInfo | None = None


class Told(NamedTuple):
    """What a web server tells: its connections, by the inode of its side, and the requests it has sent in all."""

    connections: Mapping[int, Carried]
    requests: int


class Board:
    """The memory, made by the web server for its `processes`, each with up to `connections`; raises OSError."""

    def __init__(self, processes: int, connections: int) -> None:
        self._share = connections
        slots = processes * connections
        self._descriptor = sealed_memory("fcgi_pool told", slots * _SLOT_SIZE)
        self._memory = mmap.mmap(self._descriptor, slots * _SLOT_SIZE)
        self._numbers = memoryview(self._memory)[: slots * _NUMBERS * 8].cast("d")
        self._texts = memoryview(self._memory)[slots * _NUMBERS * 8 :]

    def fileno(self) -> int:
        """Return the descriptor that the manager inherits."""
        return self._descriptor

    def places(self, process: int) -> Places:
        """Return the slots of one process, for use in it."""
        return Places(self._numbers, self._texts, process * self._share, self._share)

    def close(self) -> None:
        """Give the descriptor back. The memory stays for as long as somebody uses it."""
        os.close(self._descriptor)

    def clear(self, process: int) -> None:
        """Forget the connections of a process that has died."""
        for slot in range(process * self._share, (process + 1) * self._share):
            self._numbers[slot * _NUMBERS + _INODE] = 0.0
            self._numbers[slot * _NUMBERS + _SINCE] = 0.0


class Places:
    """The slots of one process of the web server."""

    def __init__(self, numbers: memoryview[float], texts: memoryview, first: int, count: int) -> None:
        self._numbers = numbers
        self._texts = texts
        # The one that was free for longest is used first: what it says is read for as long as possible.
        self._free = deque(range(first, first + count))

    def take(self, inode: int) -> Place | None:
        """Return a place for a new connection whose socket is `inode`; None if all are taken."""
        if not self._free:
            return None
        slot = self._free.popleft()
        at = slot * _NUMBERS
        numbers = self._numbers
        numbers[at + _SINCE] = 0.0
        numbers[at + _FIRST] = numbers[at + _COUNT]
        numbers[at + _INODE] = inode
        return Place(self, slot, numbers)

    def give(self, slot: int) -> None:
        """Take back the place of a connection that is closed."""
        self._free.append(slot)

    def write(self, slot: int, text: bytes, content_length: int) -> None:
        """Write down what the request under way is."""
        numbers, at, start = self._numbers, slot * _NUMBERS, slot * TEXT_LIMIT
        # About none, while it is a mixture.
        numbers[at + _WRITTEN] = 0.0
        self._texts[start : start + len(text)] = text
        numbers[at + _LENGTH] = len(text)
        numbers[at + _BODY] = content_length
        numbers[at + _WRITTEN] = numbers[at + _COUNT]


class Place:
    """Where one connection's requests are told."""

    __slots__ = ("_at", "_numbers", "_places", "_slot", "is_described")

    def __init__(self, places: Places, slot: int, numbers: memoryview[float]) -> None:
        self._places = places
        self._slot = slot
        self._at = slot * _NUMBERS
        self._numbers = numbers
        self.is_described = False

    def begin(self, now: float) -> None:
        """A request begins at `now`, `time.monotonic()` seconds."""
        self._numbers[self._at + _COUNT] += 1.0
        self._numbers[self._at + _SINCE] = now
        self.is_described = False

    def describe(
        self, method: bytes, uri: bytes, content_length: int = 0, user: bytes = b"", script: bytes = b""
    ) -> None:
        """Say what the request under way is: it takes long."""
        self.is_described = True
        self._places.write(self._slot, pack_text(method, user, script, uri), content_length)

    def end(self) -> None:
        """The request has ended."""
        self._numbers[self._at + _SINCE] = 0.0

    def close(self) -> None:
        """The connection is closed."""
        self.end()
        self._places.give(self._slot)


class Reader:
    """The manager's side. `descriptor` may be closed afterwards; raises OSError or ValueError if that is no board."""

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        slots = size // _SLOT_SIZE
        if not slots or size % _SLOT_SIZE:
            raise ValueError("no memory in which a web server tells of its connections")
        self._memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        self._numbers = memoryview(self._memory)[: slots * _NUMBERS * 8].cast("d")
        self._texts = memoryview(self._memory)[slots * _NUMBERS * 8 :]
        # What an earlier manager of the pool has seen.
        self._before = self._count()

    def read(self, now: float) -> Told:
        """Return what the web server tells at `now`, `time.monotonic()` seconds."""
        found = {}
        for slot, inode in enumerate(self._numbers[_INODE::_NUMBERS]):
            if 0 < inode < _WHOLE:
                found[int(inode)] = self._carried(slot, now)
        return Told(found, max(0, self._count() - self._before))

    def _count(self) -> int:
        return sum(int(count) for count in self._numbers[_COUNT::_NUMBERS] if 0 < count < _WHOLE)

    def _carried(self, slot: int, now: float) -> Carried:
        first, count, since, written, length, body = self._slot(slot)
        text = b""
        for _ in range(_ATTEMPTS):
            if since > 0 and written == count and 0 < length <= TEXT_LIMIT:
                text = bytes(self._texts[slot * TEXT_LIMIT :][: int(length)])
            seen, (first, count, since, written, length, body) = (count, since, written), self._slot(slot)
            if seen == (count, since, written):
                break
            text = b""
        requests = int(count - first) if 0 <= first <= count < _WHOLE else 0
        if not since > 0:
            return Carried(requests)
        method, user, script, uri = unpack_text(text)
        content_length = int(body) if text and 0 < body < _WHOLE else 0
        return Carried(requests, RequestInfo(method, uri, content_length, user, script, min(since, now)))

    def _slot(self, slot: int) -> list[float]:
        return [*self._numbers[slot * _NUMBERS + _FIRST : slot * _NUMBERS + _BODY + 1]]
