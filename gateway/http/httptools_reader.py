"""The fast reader: fields by httptools, which is Node's llhttp. The only file that imports it."""

from __future__ import annotations

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.http.base_reader import Reader
from gateway.http.message import Fields

# llhttp knows a closed list of methods and versions. The request line was read by the grammar, so an unusual one
# is replaced by a plain one.
_PLAIN_LINE = b"GET / HTTP/1.1\r\n"
_KNOWN_METHODS = (b"GET /", b"HEAD /", b"POST /", b"PUT /", b"DELETE /", b"OPTIONS /")

_TRAILING_SPACE = re.compile(rb"[ \t]+\r\n")
_NONE: Fields = []


class HttptoolsReader(Reader):
    """Reads fields with httptools."""

    __slots__ = ("_fields",)

    _fields: Fields

    def _parse_fields(self, head: bytes, line_end: int) -> Fields | None:
        if not head.startswith(_KNOWN_METHODS) or not head.endswith((b"1.1\r\n", b"1.0\r\n"), 0, line_end):
            head = _PLAIN_LINE + head[line_end:]
        if b"\t" in head:
            # llhttp takes a tab after a coding's name for a part of it.
            head = _TRAILING_SPACE.sub(b"\r\n", head)
        fields = self._fields = []
        try:
            HttpRequestParser(self).feed_data(head)
        except HttpParserUpgrade:
            pass  # An offer to change protocols is not taken up: the request is answered as it is.
        except HttpParserError:
            return None
        finally:
            self._fields = _NONE  # an idle connection keeps nothing of its last request
        return fields

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field; httptools calls it."""
        self._fields.append((name.lower(), value.strip(b" \t")))
