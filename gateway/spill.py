"""Output that a slow client has not taken yet, kept so that its program can end: in memory, then in a nameless file."""

from __future__ import annotations

import os
import tempfile
from collections import deque

# What is held in memory for one slow client.
MEMORY = 256 * 1024
# What is held in a file; past it the program is not read from. nginx fastcgi_max_temp_file_size 1 GiB.
FILE = 64 * 1024 * 1024
# Read back at once.
PIECE = 64 * 1024
# The file is a ring of this size, so that a client who never catches up does not make it grow: what is held, and the
# one piece that came before the program was no longer read from.
_RING = FILE + 2 * 1024 * 1024


class Spill:
    """A bounded queue of bytes. Its file is written in pieces the page cache takes at once, and has no name."""

    __slots__ = ("_directory", "_file", "_first", "_held", "_read_at", "_write_at")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._first: deque[bytes] = deque()
        self._held = 0
        self._file = -1
        self._read_at = self._write_at = 0

    def __bool__(self) -> bool:
        return bool(self._first) or self._read_at < self._write_at

    @property
    def is_full(self) -> bool:
        """Whether no more should be read for it."""
        return self._write_at - self._read_at >= FILE or (self._file < 0 and self._held >= 2 * MEMORY)

    def append(self, data: bytes) -> None:
        """Keep `data`."""
        if self._read_at == self._write_at and (self._held < MEMORY or not self._make_room()):
            self._first.append(data)
            self._held += len(data)
            return
        view = memoryview(data)
        try:
            while view:
                at = self._write_at % _RING
                written = os.pwrite(self._file, view[: _RING - at], at)
                self._write_at += written
                view = view[written:]
        except OSError:
            # No space: the rest of this piece waits in memory, behind what the file holds.
            self._drain_file_into_memory()
            self._first.append(bytes(view))
            self._held += len(view)

    def take(self) -> bytes:
        """Return the next piece."""
        if self._first:
            piece = self._first.popleft()
            self._held -= len(piece)
            return piece
        piece = self._read_piece()
        if self._read_at >= self._write_at:
            self._read_at = self._write_at = 0
            os.ftruncate(self._file, 0)
        return piece

    def close(self) -> None:
        """Give up what is held."""
        self._first.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._read_at = self._write_at = 0

    def _read_piece(self) -> bytes:
        at = self._read_at % _RING
        piece = os.pread(self._file, min(PIECE, self._write_at - self._read_at, _RING - at), at)
        self._read_at += len(piece)
        return piece

    def _make_room(self) -> bool:
        """Make the file unless there is one; return whether there is."""
        if self._file < 0:
            try:
                with tempfile.TemporaryFile(dir=self._directory or None, buffering=0) as made:
                    self._file = os.dup(made.fileno())
            except OSError:
                return False
        return True

    def _drain_file_into_memory(self) -> None:
        while self._read_at < self._write_at:
            piece = self._read_piece()
            self._first.append(piece)
            self._held += len(piece)
        os.close(self._file)
        self._file = -1
        self._read_at = self._write_at = 0
