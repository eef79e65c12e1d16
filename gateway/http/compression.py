"""Content codings of what programs write (RFC 9110 section 8.4): which responses, with which fields. No I/O.

gzip is the standard library's; br and zstd are to be had where ``brotli`` and ``zstandard`` are installed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from gateway.http.codings import preferred
from gateway.http.conditions import read_asked
from gateway.http.message import Fields, Request
from gateway.http.response import Start, encode_start

# Below this the coding's own bytes and the time cost more than is saved: a packet holds it in any case.
LEAST = 1024
# Of each coding, one that keeps up with a program: half a megabyte or more in ten milliseconds.
_GZIP_LEVEL, _BROTLI_QUALITY, _ZSTD_LEVEL = 5, 4, 3

_TYPES = frozenset(
    (b"application/json", b"application/javascript", b"application/xml", b"application/wasm", b"application/yaml",
     b"application/manifest+json", b"image/svg+xml", b"image/bmp", b"image/vnd.microsoft.icon", b"font/ttf",
     b"font/otf", b"application/x-javascript")
)  # fmt: skip
# A response that has one of these is what it is: coded already, a part, or with a digest of its bytes.
_FIXED = frozenset((b"content-encoding", b"content-range", b"content-md5", b"content-digest", b"digest"))
_WITHOUT = frozenset((204, 205, 206, 304))


def _gzip() -> tuple[Callable[[bytes], bytes], Callable[[], bytes], Callable[[], bytes]]:
    coder = zlib.compressobj(_GZIP_LEVEL, wbits=31)
    return coder.compress, lambda: coder.flush(zlib.Z_SYNC_FLUSH), coder.flush


def _br() -> tuple[Callable[[bytes], bytes], Callable[[], bytes], Callable[[], bytes]]:
    coder: Any = import_module("brotli").Compressor(quality=_BROTLI_QUALITY)
    return coder.process, coder.flush, coder.finish


def _zstd() -> tuple[Callable[[bytes], bytes], Callable[[], bytes], Callable[[], bytes]]:
    library: Any = import_module("zstandard")
    coder = library.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
    return coder.compress, lambda: coder.flush(library.COMPRESSOBJ_FLUSH_BLOCK), coder.flush


_MAKERS = {b"zstd": _zstd, b"br": _br, b"gzip": _gzip}
_NEEDS = {b"zstd": "zstandard", b"br": "brotli", b"gzip": "zlib"}
# Those to be had, the ones that cost least for what they save first.
CODINGS = tuple(coding for coding in _MAKERS if find_spec(_NEEDS[coding]))


class Encoder:
    """Codes one body, piece by piece."""

    __slots__ = ("_compress", "_finish", "_flush")

    def __init__(self, coding: bytes) -> None:
        self._compress, self._flush, self._finish = _MAKERS[coding]()

    def encode(self, data: bytes, is_last: bool) -> bytes:
        """Return the piece coded, with nothing held back: a client can read all that the program has written."""
        return self._compress(data) + (self._finish() if is_last else self._flush())


@dataclass(frozen=True, slots=True)
class Coding:
    """What a response may be sent in: b"" for as it is; the heads of both, which say that it depends."""

    name: bytes
    plain: Start
    coded: Start


def coding_for(request: Request, status: int, reason: bytes, fields: Fields, length: int | None) -> Coding | None:
    """Return the coding of a response to `request` whose body has `length` bytes, None for unknown.

    None is a response that is sent as it is, to whomever.
    """
    if not is_compressible(status, fields) or (length is not None and length < LEAST):
        return None
    varied = _varied(fields)
    accepted = read_asked(request).accept_encoding
    name = preferred(accepted, CODINGS) if accepted is not None else b""
    plain = encode_start(status, reason, varied)
    return Coding(name, plain, encode_start(status, reason, _coded(varied, name)) if name else plain)


def is_compressible(status: int, fields: Fields) -> bool:
    """Whether a coding may change the response, and is likely to make it smaller."""
    if status in _WITHOUT:
        return False
    kind = b""
    for name, value in fields:
        lower = name.lower()
        if lower in _FIXED or (lower == b"cache-control" and b"no-transform" in value.lower()):
            return False
        if lower == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
    return kind.startswith(b"text/") or kind in _TYPES or kind.endswith((b"+json", b"+xml"))


def _varied(fields: Fields) -> Fields:
    """Return the fields with Vary: Accept-Encoding (section 12.5.5)."""
    for name, value in fields:
        if name.lower() == b"vary" and (b"*" in value or b"accept-encoding" in value.lower()):
            return fields
    return [*fields, (b"Vary", b"Accept-Encoding")]


def _coded(fields: Fields, coding: bytes) -> Fields:
    """Return the fields of the coded response: its tag is weak, since its bytes are others (section 8.8.1)."""
    coded = []
    for name, value in fields:
        lower = name.lower()
        if lower == b"accept-ranges":
            continue
        coded.append((name, b"W/" + value if lower == b"etag" and value[:1] == b'"' else value))
    return [*coded, (b"Content-Encoding", coding)]
