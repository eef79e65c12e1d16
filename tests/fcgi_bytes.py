"""FastCGI records made without the codec, strategies for Hypothesis, and readers read to their end."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from fcgi_pool.protocol import (
    ApplicationSide,
    ResponseReader,
    Role,
)
from fcgi_pool.protocol.application import DataStream, Stdin
from fcgi_pool.protocol.web_server import Stderr, Stdout

Pairs = list[tuple[bytes, bytes]]
LENGTHS = (0, 1, 127, 128, 255, 65_535, 65_536)

short = st.binary(max_size=300)
pairs_of_bytes = st.lists(st.tuples(short, short), max_size=12)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def record(kind: int, request_id: int, content: bytes = b"", padding: int = 0, version: int = 1) -> bytes:
    """Return one record, built without the codec."""
    return struct.pack(">BBHHBB", version, kind, request_id, len(content), padding, 0) + content + bytes(padding)


def in_pieces(data: bytes, sizes: Sequence[int]) -> Iterable[bytes]:
    """Cut bytes by sizes that come round again."""
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        yield data[at : at + size]
        at += size
        turn += 1


def read_all(reader: Any, pieces: Iterable[bytes]) -> list[Any]:
    """Return all events; neighbouring parts of one stream are joined."""
    found: list[Any] = []
    for piece in pieces:
        reader.receive(piece)
        while (event := reader.next_event()) is not None:
            last = found[-1] if found else None
            if isinstance(event, Stdout | Stderr | Stdin | DataStream) and type(event) is type(last):
                last.data += event.data
            else:
                found.append(event)
    return found


def responses(data: bytes) -> list[Any]:
    """Return what the web server's side reads."""
    return read_all(ResponseReader(), [data])


def requests(data: bytes, roles: Iterable[Role] = Role) -> list[Any]:
    """Return what the application's side reads."""
    return read_all(ApplicationSide(roles=roles), [data])


def begin(role: int = 1, flags: int = 0, request_id: int = 1) -> bytes:
    """Return BEGIN_REQUEST."""
    return record(1, request_id, struct.pack(">HB5x", role, flags))


def end(app_status: int = 0, protocol_status: int = 0, padding: int = 0) -> bytes:
    """Return END_REQUEST."""
    return record(3, 1, struct.pack(">IB3x", app_status, protocol_status), padding)
