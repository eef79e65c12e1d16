"""The sending of a large file: by the kernel, past all copies, where it can; never faster than its client takes it."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.files.store import StoredFile

if TYPE_CHECKING:
    import asyncio

    from gateway.worker import Worker

# Sent in one turn of the loop, so that a fast client does not keep it. nginx sendfile_max_chunk: 2 MiB.
_TURN = 2 * 1024 * 1024
# Read and written at once, where the kernel cannot send by itself.
_PIECE = 256 * 1024
# Threads that wait for a disk, of one worker: a disk serves few readers at once better than many.
_THREADS = 4

_NOT_TOLD = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
_NOT_SENT = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))

_disk_threads = ThreadPoolExecutor(_THREADS, "files")

Piece = bytes | tuple[int, int]


class Transfer:
    """Sends `pieces`, bytes of ours or the bounds of parts of `file`, as the response's body.

    `file` is held by the caller's word, and released here.
    """

    __slots__ = ("_copies", "_exchange", "_fetched", "_file", "_pieces", "_probes", "_waits", "_worker")

    def __init__(self, worker: Worker, exchange: Exchange, file: StoredFile, pieces: Iterable[Piece]) -> None:
        self._worker = worker
        self._exchange = exchange
        self._file: StoredFile | None = file
        self._pieces = deque(pieces)
        self._waits = False  # for a disk, or its next turn
        self._fetched = (0, 0)  # what a thread has brought into memory last
        self._probes = True
        self._copies = not exchange.can_send_files

    def begin(self) -> None:
        """Send what can be sent at once."""
        if self._exchange.is_ended:
            self._release()
            return
        self._exchange.responder = self
        self.client_ready()

    def client_ready(self) -> None:
        """Send on."""
        exchange = self._exchange
        left = _TURN
        while self._file and not self._waits and not exchange.is_congested:
            piece = self._pieces[0] if self._pieces else None
            if piece is None:
                self._release()
                exchange.end()
            elif isinstance(piece, bytes):
                self._pieces.popleft()
                exchange.write(piece)
            else:
                begin, end = piece
                count = min(end - begin, _PIECE if self._copies else _TURN)
                if not self._is_in_memory(self._file.descriptor, begin, count):
                    self._fetch(self._file, begin, count)
                    return
                try:
                    sent = self._send(self._file.descriptor, begin, count, end)
                except OSError as error:
                    self._cut(f"{os.fsdecode(self._file.path)} could not be read to its end: {error.strerror}")
                    return
                if sent is None:
                    return
                if not sent:
                    self._cut(f"{os.fsdecode(self._file.path)} became shorter while it was sent")
                    return
                self._advance(begin + sent, end)
                left -= sent
            if left <= 0 and self._file and not exchange.is_congested:
                self._waits = True
                self._worker.loop.call_soon(self._go_on)

    def client_gone(self) -> None:
        """The client left."""
        self._release()

    def _send(self, descriptor: int, begin: int, count: int, end: int) -> int | None:
        """Send up to `count` bytes; return how many, 0 at the file's end, None where the client is waited for."""
        if not self._copies:
            try:
                return self._exchange.send_file(descriptor, begin, count, end - begin)
            except OSError as error:
                if error.errno not in _NOT_SENT:
                    raise
                self._copies = True  # a file system that the kernel cannot send from
        data = os.pread(descriptor, min(count, _PIECE), begin)
        self._exchange.write(data)
        return len(data)

    def _advance(self, begin: int, end: int) -> None:
        if begin < end:
            self._pieces[0] = (begin, end)
        else:
            self._pieces.popleft()

    def _is_in_memory(self, descriptor: int, begin: int, count: int) -> bool:
        """Whether the next bytes can be had without waiting for a disk: asked for their first and their last."""
        if not self._probes or self._fetched[0] <= begin < self._fetched[1]:
            return True
        one = bytearray(1)
        try:
            os.preadv(descriptor, [one], begin, os.RWF_NOWAIT)
            os.preadv(descriptor, [one], begin + count - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NOT_TOLD:
                return True  # the read itself will say it
            self._probes = False
        return True

    def _fetch(self, file: StoredFile, begin: int, count: int) -> None:
        """Have a thread wait for the disk."""
        self._fetched = begin, begin + count
        try:
            future = self._worker.loop.run_in_executor(_disk_threads, _read_through, file.descriptor, begin, count)
        except RuntimeError:
            # No thread is to be had: the loop waits itself.
            self._worker.loop.call_soon(self.client_ready)
            return
        # The thread has the descriptor; it stays that file's, whoever leaves meanwhile.
        file.hold()
        self._waits = True
        future.add_done_callback(lambda done: self._fetched_all(file, done))

    def _fetched_all(self, file: StoredFile, done: asyncio.Future[None]) -> None:
        done.exception()  # the read that follows says it again, where it matters
        file.release()
        self._go_on()

    def _go_on(self) -> None:
        self._waits = False
        if self._file:
            self.client_ready()

    def _cut(self, words: str) -> None:
        """The response cannot be what its head says: let the client see that."""
        self._release()
        self._exchange.fail(Fault(500, words))

    def _release(self) -> None:
        file, self._file = self._file, None
        if file:
            file.release()


def _read_through(descriptor: int, begin: int, count: int) -> None:
    """Read a part of a file and forget it, so that it is in memory."""
    os.posix_fadvise(descriptor, begin, count, os.POSIX_FADV_WILLNEED)
    buffer = bytearray(min(count, _PIECE))
    end = begin + count
    while begin < end and (size := os.preadv(descriptor, [buffer], begin)):
        begin += size
