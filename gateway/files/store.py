"""Files as they are found, and what is kept of them so that the next request for a hot one touches no disk.

What is known of a file is believed for a second; then one `stat` says whether it holds still. Small files are kept with
their content, which is read from the same descriptor as the tag that goes with it, so a client never gets the content
of one state under the tag of another. Of large ones no descriptor is kept while nobody is sent one; all who are sent
the same one share it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate

from gateway.fault import Fault
from gateway.files.types import media_type
from gateway.http.conditions import Validators
from gateway.http.message import Fields
from gateway.http.response import Start, encode_start

# What is known is asked for anew after so many seconds. nginx open_file_cache_valid: 60.
_FRESH = 1.0
# Content up to here is kept in memory: above it sendfile(2) costs less than the copy.
SMALL = 64 * 1024
# Kept by one worker, at most: files, and bytes of their content. nginx's open_file_cache has no default; its manual
# shows max=1000.
_FILES = 1000
_BYTES = 16 * 1024 * 1024
# A change that follows another within so many seconds may leave the same time behind, where the kernel's clock for
# files ticks a hundred times a second.
_TICK = 0.2
# Neighbours that hold the same in another coding, the smaller first: name's end, and the coding's name (RFC 8878,
# RFC 7932, RFC 9110 section 8.4.1.3).
_NEIGHBOURS = ((b".zst", b"zstd"), (b".br", b"br"), (b".gz", b"gzip"))

_SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_OPENING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_Identity = tuple[int, int, int, int, int]


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class StoredFile:
    """One state of a regular file: its content where it is small, else its descriptor while somebody holds it."""

    __slots__ = ("_users", "content", "descriptor", "identity", "path", "size")

    def __init__(self, path: bytes, identity: _Identity, content: bytes | None) -> None:
        self.path = path
        self.identity = identity
        self.size = identity[2]
        self.content = content
        self.descriptor = -1
        self._users = 0

    def hold(self) -> bool:
        """Open the file, unless it is open; False where what is there now is another state of it. Raise OSError."""
        if self.descriptor < 0:
            descriptor = os.open(self.path, _OPENING)
            if _identity(os.fstat(descriptor)) != self.identity:
                os.close(descriptor)
                return False
            self.descriptor = descriptor
        self._users += 1
        return True

    def release(self) -> None:
        """Close the file if nobody else holds it."""
        self._users -= 1
        if not self._users:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(slots=True)
class Representation:
    """One file and what is said of it: the head of a whole answer, encoded once, and that of *not modified*."""

    file: StoredFile
    media_type: bytes
    validators: Validators
    fields: Fields
    start: Start
    unchanged: Start


@dataclass(slots=True)
class Resource:
    """What a path leads to: a file as it is, and its codings, the one we like best first."""

    plain: Representation
    coded: dict[bytes, Representation]
    codings: tuple[bytes, ...]
    # The states of the neighbours that were looked at.
    seen: tuple[_Identity | None, ...]
    # What the kernel must call the file, see `FileStore.find`.
    real: bytes
    is_settled: bool
    fresh_until: float
    bytes: int


class FileStore:
    """The files of one worker.

    Nothing below `closed`, real paths of directories, is given out, nor what ends in one of `extensions`, in any case:
    these are programs, whose source is nobody's business, whatever link leads to them.
    """

    def __init__(
        self, closed: Sequence[bytes], extensions: Sequence[bytes], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._closed = tuple(directory.rstrip(b"/") + b"/" for directory in closed)
        self._extensions = tuple(extension.lower() for extension in extensions)
        self._now = now
        self._kept: dict[bytes, Resource] = {}
        self._bytes = 0

    def find(self, path: bytes, real: bytes = b"") -> Resource | Fault | None:
        """Return what is at `path`, or why there is nothing; None for a directory.

        With `real`, it must be what the kernel calls the file, so that no symbolic link led there.
        """
        resource = self._kept.get(path)
        if resource and resource.real != real:
            resource = None  # found by somebody who follows links
        now = self._now()
        if resource and now < resource.fresh_until:
            return resource
        try:
            found = os.stat(path)
        except OSError as error:
            self.forget(path)
            return fault_of(path, error)
        if not stat.S_ISREG(found.st_mode):
            self.forget(path)
            return None if stat.S_ISDIR(found.st_mode) else Fault(404, f"{os.fsdecode(path)} is not a regular file")
        if resource and self._is_unchanged(resource, path, found):
            resource.fresh_until = now + _FRESH
            self._kept[path] = self._kept.pop(path)  # the last one to be dropped
            return resource
        self.forget(path)
        try:
            opened = self._open(path, real, now)
        except OSError as error:
            return fault_of(path, error)
        if isinstance(opened, Resource):
            self._keep(path, opened)
        return opened

    def is_closed(self, real: bytes) -> bool:
        """Whether the file that the kernel calls `real` is never given out."""
        return real.startswith(self._closed) or real.lower().endswith(self._extensions)

    def forget(self, path: bytes) -> None:
        """Keep nothing of the file."""
        resource = self._kept.pop(path, None)
        if resource:
            self._bytes -= resource.bytes

    def _keep(self, path: bytes, resource: Resource) -> None:
        self._kept[path] = resource
        self._bytes += resource.bytes
        while len(self._kept) > _FILES or self._bytes > _BYTES:
            self.forget(next(iter(self._kept)))

    def _is_unchanged(self, resource: Resource, path: bytes, found: os.stat_result) -> bool:
        is_same = resource.is_settled and resource.plain.file.identity == _identity(found)
        return is_same and resource.seen == self._see(path, found)

    def _see(self, path: bytes, found: os.stat_result) -> tuple[_Identity | None, ...]:
        """Return the states of the neighbours; None for one that is not there, or is older than the file itself."""
        seen: list[_Identity | None] = []
        for end, _ in _NEIGHBOURS:
            try:
                other = os.stat(path + end)
            except OSError:
                seen.append(None)
                continue
            is_good = stat.S_ISREG(other.st_mode) and int(other.st_mtime) >= int(found.st_mtime)
            seen.append(_identity(other) if is_good else None)
        return tuple(seen)

    def _open(self, path: bytes, real: bytes, now: float) -> Resource | Fault:
        opened = self._read(path, real)
        if isinstance(opened, Fault):
            return opened
        plain, found, is_settled = opened
        seen = self._see(path, found)
        others: list[tuple[bytes, StoredFile, os.stat_result]] = []
        for (end, coding), identity in zip(_NEIGHBOURS, seen, strict=True):
            if identity:
                try:
                    neighbour = self._read(path + end, real and real + end)
                except OSError:
                    continue
                if not isinstance(neighbour, Fault) and neighbour[0].identity == identity:
                    others.append((coding, neighbour[0], neighbour[1]))
                    is_settled = is_settled and neighbour[2]
        varies = bool(others)
        kind = media_type(os.path.basename(path))
        coded = {coding: _represent(file, state, kind, coding, varies) for coding, file, state in others}
        return Resource(
            _represent(plain, found, kind, b"", varies),
            coded,
            tuple(coded),
            seen,
            real,
            is_settled,
            now + _FRESH,
            sum(len(file.content or b"") for file in (plain, *(file for _, file, _ in others))),
        )

    def _read(self, path: bytes, real: bytes) -> tuple[StoredFile, os.stat_result, bool] | Fault:
        """Return the file with its content, if that is small, and whether a change would be seen; raise OSError."""
        descriptor = os.open(path, _OPENING)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                return Fault(404, f"{os.fsdecode(path)} is not a regular file")
            if real or self._closed or self._extensions:
                name = os.fsencode(os.readlink(f"/proc/self/fd/{descriptor}")).removesuffix(b" (deleted)")
                if real and name != real:
                    return Fault(404, f"{os.fsdecode(path)}: a symbolic link leads there, and they are not followed")
                if self.is_closed(name):
                    return Fault(404, f"{os.fsdecode(path)} is a program, whose source is not shown")
            content = _content(descriptor, found) if found.st_size <= SMALL else None
        finally:
            os.close(descriptor)
        age = time.time() - max(found.st_mtime, found.st_ctime)
        return StoredFile(path, _identity(found), content), found, age > _TICK and _is_past(found)


def _content(descriptor: int, found: os.stat_result) -> bytes | None:
    """Return the content in the state `found`; None where it changes at this moment or a disk would be waited for."""
    buffer = bytearray(found.st_size + 1)
    try:
        size = os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return None  # sent as large ones are, by a thread that waits for the disk; the next one finds it in memory
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        size = os.preadv(descriptor, [buffer], 0)  # a file system without that flag, such as one in memory
    if size != found.st_size or _identity(os.fstat(descriptor)) != _identity(found):
        return None
    return bytes(memoryview(buffer)[:size])


def _is_past(found: os.stat_result) -> bool:
    """Whether the last change is a second ago: only then its date, in seconds, is a strong validator."""
    return time.time() - found.st_mtime >= 1


def _represent(file: StoredFile, found: os.stat_result, kind: bytes, coding: bytes, varies: bool) -> Representation:
    tag = b'"%x-%x-%x"' % (found.st_mtime_ns, found.st_size, found.st_ino)
    # A date in the future would be a lie (RFC 9110 section 8.8.2.1).
    modified = min(int(found.st_mtime), int(time.time()))
    told: Fields = [(b"Last-Modified", formatdate(modified, usegmt=True).encode()), (b"ETag", tag)]
    if varies:
        told.append((b"Vary", b"Accept-Encoding"))
    fields: Fields = [(b"Content-Type", kind), *told, (b"Accept-Ranges", b"bytes")]
    if coding:
        fields.append((b"Content-Encoding", coding))
    validators = Validators(tag, modified, _is_past(found))
    # RFC 9110 section 15.4.5: of those that a 200 has, those that a cache needs.
    return Representation(file, kind, validators, fields, encode_start(200, b"", fields), encode_start(304, b"", told))


def fault_of(path: bytes, error: OSError) -> Fault:
    """Return whose fault it is that the file at `path` cannot be read."""
    words = f"{os.fsdecode(path)}: {error.strerror}"
    if error.errno in _SCARCE:
        return Fault(503, words, retry_after=1)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Fault(403, f"{os.fsdecode(path)} cannot be read by the server's user: chmod +r")
    return Fault(500, words) if error.errno == errno.EIO else Fault(404, words)
