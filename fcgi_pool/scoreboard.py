"""Shared memory in which workers write what they do and their manager reads it.

Some facts about memory that two processes share. A worker is the only writer of its slot, the manager the only reader.
A writer makes the slot's sequence number odd, writes, and makes it even; a reader that finds the number odd, or changed
after it has read, has seen a mixture and reads again. Writing costs a worker no system call. The descriptor is sealed:
a worker that shrank the file would kill its reader (SIGBUS). What is read is a worker's word and may be nonsense.

The worker's side runs in foreign installations too: Python 3.9, standard library, nothing else of this package.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

# Longer values are cut. php-fpm: 16, 32, 256, 128 + 512 (request URI and query).
METHOD_LIMIT = 16
USER_LIMIT = 64
SCRIPT_LIMIT = 512
URI_LIMIT = 1024
TEXT_LIMIT = METHOD_LIMIT + USER_LIMIT + SCRIPT_LIMIT + URI_LIMIT + 8  # with what stands between them

SLOT_SIZE = 2048
IDLE = 1
BUSY = 2

# Native and aligned: then each number is written by one store.
_SEQUENCE = struct.Struct("@I")
# sequence, pid, state, length of text, requests, since, request's start, its processor time, its content length
_HEAD = struct.Struct("@IiIIQdddq")
_TEXT_AT = _HEAD.size
# A write takes microseconds, so a slot that stays odd belongs to a worker that was killed in it.
_ATTEMPTS = 100


class Row(NamedTuple):
    """One slot as read. Times are `time.monotonic()` seconds; `started`, `cpu` and the rest are the last request's."""

    pid: int
    is_busy: bool
    requests: int
    since: float
    started: float
    cpu: float
    content_length: int
    method: str
    user: str
    script: str
    uri: str


def sealed_memory(name: str, size: int) -> int:
    """Return a descriptor of so many bytes of memory, all zero, whose size nobody can change; raise OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def pack_text(method: bytes, user: bytes, script: bytes, uri: bytes) -> bytes:
    """Return what is written of a request, in TEXT_LIMIT bytes at most."""
    return b"\0".join((method[:METHOD_LIMIT], user[:USER_LIMIT], script[:SCRIPT_LIMIT], uri[:URI_LIMIT]))


def unpack_text(text: bytes) -> list[str]:
    """Return method, user, script and URI."""
    values = [value.decode("utf-8", "backslashreplace") for value in text.split(b"\0", 3)]
    return values + [""] * (4 - len(values))


class Scoreboard:
    """The manager's side: `slots` workers at most."""

    def __init__(self, slots: int) -> None:
        size = max(1, slots) * SLOT_SIZE
        self._descriptor = sealed_memory("fcgi_pool scoreboard", size)
        try:
            self._memory = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._free = list(range(slots - 1, -1, -1))
        self._taken: set[int] = set()

    def fileno(self) -> int:
        """Return the descriptor a worker inherits."""
        return self._descriptor

    def reserve(self) -> int | None:
        """Return a slot for a worker that is about to be started; None if all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._taken.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Take back the slot of a worker that has ended."""
        if slot in self._taken:
            self._taken.remove(slot)
            self._memory[slot * SLOT_SIZE : (slot + 1) * SLOT_SIZE] = bytes(SLOT_SIZE)
            self._free.append(slot)

    def rows(self) -> dict[int, Row]:
        """Return what the workers wrote, by pid; without those that have not written yet or died while writing."""
        rows = {}
        for slot in self._taken:
            row = self.row(slot)
            if row is not None:
                rows[row.pid] = row
        return rows

    def row(self, slot: int) -> Row | None:
        """Return what the worker of a slot wrote, or None."""
        at = slot * SLOT_SIZE
        memory = self._memory
        for _ in range(_ATTEMPTS):
            sequence, pid, state, length, *numbers = _HEAD.unpack_from(memory, at)
            if not sequence & 1:
                text = memory[at + _TEXT_AT : at + min(_TEXT_AT + length, SLOT_SIZE)]
                if _SEQUENCE.unpack_from(memory, at)[0] == sequence:
                    return _row(pid, state, numbers, text) if state else None
        return None

    def close(self) -> None:
        """Give the memory and the descriptor back."""
        self._memory.close()
        os.close(self._descriptor)


def _row(pid: int, state: int, numbers: Sequence[Any], text: bytes) -> Row:
    requests, since, started, cpu, content_length = numbers
    return Row(pid, state == BUSY, requests, since, started, cpu, content_length, *unpack_text(text))


class Slot:
    """The worker's side: where one worker writes what it does. Made in the process that serves: its pid is noted.

    `descriptor`, `slot`: as its manager gave them; the descriptor may be closed afterwards. Raises OSError or
    ValueError if that is no scoreboard.
    """

    def __init__(self, descriptor: int, slot: int) -> None:
        # Mapping starts at a page; two slots share one.
        page = slot * SLOT_SIZE // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._at = slot * SLOT_SIZE - page
        if slot < 0 or os.fstat(descriptor).st_size < (slot + 1) * SLOT_SIZE:
            raise ValueError("no slot of that number in the scoreboard")
        self._memory = mmap.mmap(descriptor, self._at + SLOT_SIZE, offset=page)
        (sequence,) = _SEQUENCE.unpack_from(self._memory, self._at)
        self._sequence = sequence + (sequence & 1) & 0xFFFFFFFE
        self._pid = os.getpid()
        self._requests = 0
        self._started = 0.0
        self._cpu = 0.0
        self._content_length = 0
        self._length = 0
        self._write(IDLE, time.monotonic(), 0.0)

    @classmethod
    def from_environment(cls, value: str) -> Slot:
        """Return the slot that FCGI_POOL_SCOREBOARD names, ``DESCRIPTOR:SLOT``; raise ValueError or OSError."""
        descriptor, slot = value.split(":")
        return cls(int(descriptor), int(slot))

    def begin(self, method: bytes, uri: bytes, content_length: int = 0, user: bytes = b"", script: bytes = b"") -> None:
        """Note that a request begins. `uri`: REQUEST_URI. `content_length`: bytes of its body, 0 for none."""
        text = pack_text(method, user, script, uri)
        self._requests += 1
        self._content_length = content_length
        self._length = len(text)
        self._started = now = time.monotonic()
        self._cpu = time.process_time()
        self._write(BUSY, now, 0.0, text)

    def end(self) -> None:
        """Note that the request has been answered."""
        self._write(IDLE, time.monotonic(), time.process_time() - self._cpu)

    def close(self) -> None:
        """Give the memory back. What was written stays until the manager has seen the worker's end."""
        self._memory.close()

    def _write(self, state: int, since: float, cpu: float, text: bytes = b"") -> None:
        memory = self._memory
        at = self._at
        self._sequence = even = self._sequence + 2 & 0xFFFFFFFF
        _SEQUENCE.pack_into(memory, at, even - 1 & 0xFFFFFFFF)
        if text:
            memory[at + _TEXT_AT : at + _TEXT_AT + len(text)] = text
        _HEAD.pack_into(
            memory,
            at,
            even - 1 & 0xFFFFFFFF,
            self._pid,
            state,
            self._length,
            self._requests,
            since,
            self._started,
            cpu,
            self._content_length,
        )
        _SEQUENCE.pack_into(memory, at, even)
