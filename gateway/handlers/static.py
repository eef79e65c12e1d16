"""Answers by the files of a tree, as they are; a directory by its index, or by the names of what is in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from gateway import pages
from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.files.store import FileStore, Resource
from gateway.handlers.files import add_slash, fail, is_private, refuse_method, send_resource
from gateway.settings import CgiMount, Mount, SiteMount, StaticMount

if TYPE_CHECKING:
    from gateway.worker import Worker

# Names that are looked at for one listing: each costs a `stat`, for which the loop waits.
_LISTED = 2000


def file_store(mounts: Iterable[Mount]) -> FileStore:
    """Return a store that gives out no source of a program that one of `mounts` runs."""
    mounts = tuple(mounts)
    closed = [os.fsencode(os.path.realpath(mount.directory)) for mount in mounts if isinstance(mount, CgiMount)]
    extensions = [end.encode() for mount in mounts if isinstance(mount, SiteMount) for end in mount.extensions]
    return FileStore(closed, extensions)


class StaticTree:
    """A mounted tree of files."""

    def __init__(self, worker: Worker, mount: StaticMount) -> None:
        self._worker = worker
        self._mount = mount
        self._prefix = mount.prefix.encode()
        self._directory = os.fsencode(os.path.abspath(mount.directory)).rstrip(b"/")
        self._real = os.path.realpath(self._directory).rstrip(b"/")
        self._index = tuple(b"/" + name.encode() for name in mount.index)
        # What a path means is constant; whether a file is there is asked each time.
        self._below = lru_cache(maxsize=1024)(_below)

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Send the file, or the directory's index, that `segments` lead to below the root."""
        if exchange.request.method not in (b"GET", b"HEAD"):
            refuse_method(exchange)
            return
        below = self._below(segments)
        if below is None:
            exchange.fail(Fault(404, "names with a dot at their begin, or a slash in them, are not looked for"))
        elif is_directory:
            self._answer_directory(exchange, below)
        else:
            found = self._find(below)
            if isinstance(found, Resource):
                send_resource(self._worker, exchange, found)
            elif found:
                fail(self._worker, exchange, found)
            elif self._is_shown(below):
                add_slash(exchange, self._prefix, segments)
            else:
                exchange.fail(self._none(below))

    def _find(self, below: bytes) -> Resource | Fault | None:
        return self._worker.files.find(self._directory + below, b"" if self._mount.follow_links else self._real + below)

    def _answer_directory(self, exchange: Exchange, below: bytes) -> None:
        for name in self._index:
            found = self._find(below + name)
            if isinstance(found, Resource):
                send_resource(self._worker, exchange, found)
                return
            if found and found.status != 404:
                fail(self._worker, exchange, found)
                return
        if self._mount.listing and self._is_shown(below):
            self._list(exchange, below)
        else:
            exchange.fail(self._none(below))

    def _is_shown(self, below: bytes) -> bool:
        """Whether there is a directory, which holds no programs, and no symbolic link on the way if that matters."""
        real = os.path.realpath(self._directory + below)
        is_direct = self._mount.follow_links or real == self._real + below
        return is_direct and os.path.isdir(real) and not self._worker.files.is_closed(real + b"/")

    def _none(self, below: bytes) -> Fault:
        path = os.fsdecode(self._directory + below)
        return Fault(404, f"{path}: no directory, or none of {', '.join(self._mount.index)} is in it")

    def _list(self, exchange: Exchange, below: bytes) -> None:
        directory = self._directory + below
        try:
            with os.scandir(directory) as entries:
                looked_at = list(islice(entries, _LISTED + 1))
        except OSError as error:
            exchange.fail(Fault(403, f"{os.fsdecode(directory)} cannot be listed: {error.strerror}"))
            return
        names = [shown for entry in looked_at[:_LISTED] if (shown := self._shown(entry))]
        names.sort(key=lambda shown: (shown[0][-1] != "/", shown))
        path = os.fsdecode(self._prefix + below[1:] + (b"/" if below else b""))
        page = pages.listing_page(path, names, len(looked_at) > _LISTED)
        exchange.respond(200, [(b"Content-Type", b"text/html; charset=utf-8")], page)

    def _shown(self, entry: os.DirEntry[bytes]) -> tuple[str, str] | None:
        """Return a name and its size in words; None for what would not be served."""
        if is_private(entry.name) or (entry.is_symlink() and not self._mount.follow_links):
            return None
        try:
            found = entry.stat()
        except OSError:
            return None
        if stat.S_ISDIR(found.st_mode):
            closed = self._worker.files.is_closed(os.path.realpath(entry.path) + b"/")
            return None if closed else (os.fsdecode(entry.name) + "/", "")
        if not stat.S_ISREG(found.st_mode) or self._worker.files.is_closed(os.path.realpath(entry.path)):
            return None
        return os.fsdecode(entry.name), _size(found.st_size)


def _below(segments: tuple[bytes, ...]) -> bytes | None:
    """Return the path below the root, None for one that is never looked for."""
    if any(is_private(segment) for segment in segments):
        return None
    return b"".join(b"/" + segment for segment in segments)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
