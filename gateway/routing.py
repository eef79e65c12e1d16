"""From a request's path to what serves it. Pure: no file is touched.

The order is what keeps a path from meaning two things: escapes are decoded exactly once, then ``.``, ``..`` and ``//``
collapse, then routes match whole segments. A ``%2f`` is data within its segment, never a separator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

Target = TypeVar("Target")


class BadPath(ValueError):
    """A path that stands for nothing: 400."""


@dataclass(frozen=True, slots=True)
class Path:
    """A decoded, collapsed path: its segments, and whether a slash ends it (the root has no segment and ends so)."""

    segments: tuple[bytes, ...]
    is_directory: bool

    @property
    def decoded(self) -> bytes:
        """The path as one piece, for rules that look at it as a whole. A slash within a segment looks like others."""
        path = b"/" + b"/".join(self.segments)
        return path + b"/" if self.is_directory and self.segments else path


def normalise(raw: bytes) -> Path:
    """Return the path that the percent-encoded `raw` means; raise BadPath where it leaves the root or is malformed."""
    if raw[:1] != b"/":
        raise BadPath("the path does not begin with a slash")
    if b"\0" in raw:
        raise BadPath("the path holds a NUL byte")
    segments: list[bytes] = []
    pieces = raw.split(b"/")
    for piece in pieces[1:]:
        segment = _decode(piece) if b"%" in piece else piece
        if segment == b"..":
            if not segments:
                raise BadPath("the path leaves the root by '..'")
            segments.pop()
        elif segment not in (b"", b"."):
            segments.append(segment)
    last = pieces[-1] if b"%" not in pieces[-1] else _decode(pieces[-1])
    return Path(tuple(segments), last in (b"", b".", b"..") or not segments)


def _decode(piece: bytes) -> bytes:
    for position in range(len(piece)):
        if piece[position] == 0x25 and not _is_hexadecimal(piece[position + 1 : position + 3]):
            raise BadPath("a percent sign without two hexadecimal digits after it")
    decoded = unquote_to_bytes(piece)
    if b"\0" in decoded:
        raise BadPath("the path holds a NUL byte")
    if b"/" in decoded and b".." in decoded.split(b"/"):
        # It would climb in the program that reads it, or in PATH_TRANSLATED.
        raise BadPath("the path hides '..' behind an encoded slash")
    return decoded


def _is_hexadecimal(digits: bytes) -> bool:
    return len(digits) == 2 and all(digit in b"0123456789abcdefABCDEF" for digit in digits)


@dataclass(frozen=True, slots=True)
class Match(Generic[Target]):
    """A route's target and the segments of the path below the route's prefix."""

    target: Target
    rest: tuple[bytes, ...]
    is_directory: bool
    path: Path


class Router(Generic[Target]):
    """Prefixes and their targets; the longest prefix that matches whole segments wins."""

    def __init__(self, routes: Iterable[tuple[str, Target]]) -> None:
        self._routes = sorted(
            ((normalise(prefix.encode()).segments, target) for prefix, target in routes),
            key=lambda route: -len(route[0]),
        )
        # A path's meaning is constant. Few paths are asked often; the bound keeps odd ones from filling memory.
        self.match = lru_cache(maxsize=256)(self._match)

    def _match(self, raw: bytes) -> Match[Target] | None:
        """Return what serves the percent-encoded path `raw`, or None; raise BadPath."""
        path = normalise(raw)
        for prefix, target in self._routes:
            if path.segments[: len(prefix)] == prefix:
                return Match(target, path.segments[len(prefix) :], path.is_directory, path)
        return None
