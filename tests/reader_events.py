"""What a reader makes of bytes that arrive in pieces, in a form that can be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from gateway.http.limits import Limits
from gateway.http.message import END, NEED_DATA, Data, Refused, Request
from gateway.http.reader import make_reader

READERS = ("h11", "httptools")

Pieces = Iterable[bytes]
Cut = Callable[[bytes], Pieces]


def whole(raw: bytes) -> Pieces:
    return [raw]


def in_pieces(size: int) -> Cut:
    def cut(raw: bytes) -> Iterator[bytes]:
        for start in range(0, len(raw), size):
            yield raw[start : start + size]

    return cut


def after_line_ends(raw: bytes) -> Pieces:
    return re.findall(rb".*?\r\n|.+\Z", raw, re.DOTALL)


def within_line_ends(raw: bytes) -> Pieces:
    return re.findall(rb".*?\r(?=\n)|.+\Z", raw, re.DOTALL)


def finely(raw: bytes, longest: int) -> Cut:
    """Byte by byte where it is short, else in pieces of a prime number of bytes."""
    if len(raw) <= longest:
        return in_pieces(1)
    return in_pieces(97 if len(raw) <= 128 * 1024 else 8191)


def verdict(kind: str, pieces: Pieces, limits: Limits) -> list[object]:
    """The events that `pieces` give, pieces of one body joined; up to where a server would stop reading."""
    reader = make_reader(kind, limits)
    events: list[object] = []
    for piece in pieces:
        reader.receive(piece)
        while (event := reader.next_event()) is not NEED_DATA:
            if isinstance(event, Data):
                assert event.data
                if isinstance(events[-1], bytes):
                    event = Data(events.pop() + event.data)  # type: ignore[operator]
                events.append(event.data)
            else:
                events.append(_comparable(event))
            if isinstance(event, Refused):
                assert reader.next_event() == event
                assert reader.buffered == 0
                return events
            if not isinstance(event, Data) and _closes(events):
                return events
    return events


def requests_ended(events: list[object]) -> int:
    """How many requests are there with their bodies."""
    return sum(event is END or (isinstance(event, Request) and not event.body_follows) for event in events)


def _comparable(event: object) -> object:
    # h11 gives names of codings in lower case; they are case-insensitive, and no program sees them.
    if not isinstance(event, Request):
        return event
    fields = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in event.fields]
    return replace(event, fields=fields)


def _closes(events: list[object]) -> bool:
    """Whether a request has just ended after which the connection ends."""
    request = next((event for event in reversed(events) if isinstance(event, Request)), None)
    ended = events[-1] is END or (events[-1] is request and request is not None and not request.body_follows)
    return request is not None and ended and not request.keep_alive
