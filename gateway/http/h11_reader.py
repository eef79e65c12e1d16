"""The pure-Python reader: fields by h11. The only file that imports it."""

from __future__ import annotations

import h11

from gateway.http.base_reader import Reader
from gateway.http.message import Fields

# The request line was read by the grammar; with a plain one in its place h11 judges the fields alone, and its own
# ideas of methods and versions do not matter.
_PLAIN_LINE = b"GET / HTTP/1.0\r\n"


class H11Reader(Reader):
    """Reads fields with h11."""

    __slots__ = ()

    def _parse_fields(self, head: bytes, line_end: int) -> Fields | None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + len(_PLAIN_LINE))
        connection.receive_data(_PLAIN_LINE + head[line_end:])
        try:
            request = connection.next_event()
        except h11.RemoteProtocolError:
            return None
        return list(request.headers) if isinstance(request, h11.Request) else None
