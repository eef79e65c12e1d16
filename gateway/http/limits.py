"""How much of a request is read before it is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request, all in bytes except `fields`.

    Precedents for the head: nginx 8 KiB a line and 32 KiB in all, Apache 8 KiB a line and 100 fields, Node 16 KiB
    in all, Tomcat 8 KiB in all. Ours are wider, since single sign-on cookies and WebDAV grow long, and a CGI
    program takes what fits into an environment (128 KiB a variable on Linux).
    """

    request_line: int = 16 * 1024
    head: int = 64 * 1024
    fields: int = 128
    # A line with a chunk's size is a few digits; what makes it long is an extension, which nobody uses.
    chunk_line: int = 4 * 1024
    body: int = 2 * 1024**3
