"""Media types by the ends of names: one table, the same on every machine, whatever its /etc/mime.types says."""

from __future__ import annotations

import mimetypes
import os
from functools import lru_cache

# What the standard library does not know in all releases, or knows under an older name.
_OURS = {
    ".avif": "image/avif",
    ".flac": "audio/flac",
    ".heic": "image/heic",
    ".ico": "image/vnd.microsoft.icon",
    ".jxl": "image/jxl",
    ".js": "text/javascript",  # RFC 9239
    ".m4a": "audio/mp4",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mkv": "video/matroska",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".otf": "font/otf",
    ".rss": "application/rss+xml",
    ".atom": "application/atom+xml",
    ".rst": "text/x-rst",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".weba": "audio/webm",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".7z": "application/x-7z-compressed",
    ".log": "text/plain",
    ".conf": "text/plain",
}
# Made of the library's own table: an instance does not read the system's files.
_table = mimetypes.MimeTypes()
for _end, _kind in _OURS.items():
    _table.add_type(_kind, _end)


@lru_cache(maxsize=512)
def media_type(name: bytes) -> bytes:
    """Return the Content-Type of a file called `name`. Text is UTF-8, which is what nearly all of it is."""
    # Not `guess_type`, for which a name with a colon is a URL.
    stem, end = os.path.splitext(os.fsdecode(name).lower())
    if not stem:
        return b"application/octet-stream"
    if end in _table.encodings_map or end == ".zst":
        # The file as it is: that it can be unpacked is not said, for then clients would.
        return b"application/gzip" if end == ".gz" else b"application/octet-stream"
    if end == ".tgz":
        return b"application/gzip"
    kind = _table.types_map[1].get(end) or _table.types_map[0].get(end)
    if kind is None:
        return b"application/octet-stream"
    return kind.encode() + (b"; charset=utf-8" if kind.startswith("text/") else b"")
