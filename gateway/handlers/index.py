"""Answers ``GET /`` where nothing is mounted there: a page that lists what is; and where a route has no answer."""

from __future__ import annotations

import os

from gateway import pages
from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.settings import CgiMount, Mount

# Names listed of one directory.
_NAMES = 200


class Index:
    """The page of mounts. It is made anew when a directory has changed."""

    def __init__(self, mounts: tuple[Mount, ...]) -> None:
        self._mounts = [mount for mount in mounts if isinstance(mount, CgiMount)]
        self._applications = [mount.prefix for mount in mounts if not isinstance(mount, CgiMount)]
        self._changed: list[int] | None = None
        self._page = b""

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Send the page, if it is what the path leads to."""
        if segments:
            exchange.fail(Fault(404, "nothing is mounted there"))
            return
        if exchange.request.method not in (b"GET", b"HEAD"):
            exchange.fail(Fault(405, "the index can only be read", allow="GET, HEAD"))
            return
        changed = [_changed(mount.directory) for mount in self._mounts]
        if changed != self._changed:
            self._changed = changed
            programs = [(mount.prefix, _programs(mount.directory)) for mount in self._mounts]
            self._page = pages.index_page(programs, self._applications)
        exchange.respond(200, [(b"Content-Type", b"text/html; charset=utf-8")], self._page)


class Nothing:
    """The handler of a route that has none: what it redirects never gets here."""

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Say so."""
        exchange.fail(Fault(404, "the route leads nowhere"))


def _changed(directory: str) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


def _programs(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_file() and entry.stat().st_mode & 0o111]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))[:_NAMES]
