"""Records, the unit of FastCGI 1.0 (sections 3.3 and 8): a header of eight bytes, content, padding."""

from __future__ import annotations

import struct
from enum import IntEnum

VERSION = 1
# version, type, request id, length of content, length of padding, one byte reserved (section 3.3).
HEADER = struct.Struct(">BBHHBx")
HEADER_LENGTH = 8
# The largest content that is a multiple of eight, so that it needs no padding (section 3.3 advises alignment).
MAX_CONTENT = 65_528
# The largest content that the two bytes of its length can tell.
CONTENT_LIMIT = 65_535

PADDING = tuple(bytes(length) for length in range(8))


class RecordType(IntEnum):
    """Types of records (section 8)."""

    BEGIN_REQUEST = 1
    ABORT_REQUEST = 2
    END_REQUEST = 3
    PARAMS = 4
    STDIN = 5
    STDOUT = 6
    STDERR = 7
    DATA = 8
    GET_VALUES = 9
    GET_VALUES_RESULT = 10
    UNKNOWN_TYPE = 11


class Role(IntEnum):
    """What the web server wants of the application (section 6)."""

    RESPONDER = 1
    AUTHORIZER = 2
    FILTER = 3


class ProtocolStatus(IntEnum):
    """How a request ended as far as the protocol is concerned (section 5.5)."""

    REQUEST_COMPLETE = 0
    CANT_MPX_CONN = 1
    OVERLOADED = 2
    UNKNOWN_ROLE = 3


# The flag of BEGIN_REQUEST that leaves closing the connection to the web server (section 5.1).
KEEP_CONN = 1

# What a management record may ask for (section 4.1).
MAX_CONNS = b"FCGI_MAX_CONNS"
MAX_REQS = b"FCGI_MAX_REQS"
MPXS_CONNS = b"FCGI_MPXS_CONNS"


class ProtocolError(ValueError):
    """The peer does not speak FastCGI 1.0 as it must; the text says what is wrong. The connection is of no more use."""


def type_name(kind: int) -> str:
    """Return the name of a type of record, or its number in words."""
    try:
        return RecordType(kind).name
    except ValueError:
        return f"a record of the unknown type {kind}"


def encode_record(kind: int, request_id: int, content: bytes | memoryview = b"") -> bytes:
    """Return one record, padded to a multiple of eight bytes; raise ValueError for content over 65,535 bytes."""
    length = len(content)
    if length > CONTENT_LIMIT:
        raise ValueError(f"{length} bytes are more than a record holds ({CONTENT_LIMIT})")
    padding = -length & 7
    return b"".join((HEADER.pack(VERSION, kind, request_id, length, padding), content, PADDING[padding]))


def stream_records(kind: int, request_id: int, data: bytes | memoryview) -> list[bytes | memoryview]:
    """Return `data` as records of a stream, in pieces to be written one after the other; nothing for no data.

    The content is not copied where it is long. The empty record that ends the stream is not among them.
    """
    length = len(data)
    if length <= MAX_CONTENT:
        if not length:
            return []
        padding = -length & 7
        header = HEADER.pack(VERSION, kind, request_id, length, padding)
        return [header, data, PADDING[padding]] if padding else [header, data]
    pieces: list[bytes | memoryview] = []
    view = memoryview(data)
    for start in range(0, length, MAX_CONTENT):
        content = view[start : start + MAX_CONTENT]
        padding = -len(content) & 7
        pieces += (HEADER.pack(VERSION, kind, request_id, len(content), padding), content)
        if padding:
            pieces.append(PADDING[padding])
    return pieces


class RecordReader:
    """Cuts what a peer sends into whole records. Holds at most one record beyond what it was given last."""

    __slots__ = ("_at", "_data", "_length", "_need", "_pieces")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        # What came after the record that is not complete began: joined once, when all of it is there.
        self._pieces: list[bytes] = []
        self._length = 0
        self._need = 0

    def receive(self, data: bytes) -> None:
        """Take what the peer has sent."""
        if self._pieces:
            self._pieces.append(data)
            self._length += len(data)
        elif self._at == len(self._data):
            self._data = data
            self._at = 0
        else:
            self._pieces = [self._data[self._at :], data]
            self._length = len(self._data) - self._at + len(data)
            self._data = b""
            self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held: the peer's last byte ended a record."""
        return not self._pieces and self._at == len(self._data)

    def next_record(self) -> tuple[int, int, bytes] | None:
        """Return type, request id and content of the next record, None until it is complete.

        Raises ProtocolError if the version is not 1.
        """
        if self._pieces:
            if self._length < self._need:
                return None
            self._data = b"".join(self._pieces)
            self._pieces = []
        data, at = self._data, self._at
        held = len(data) - at
        if held < HEADER_LENGTH:
            self._need = HEADER_LENGTH
            return None
        version, kind, request_id, length, padding = HEADER.unpack_from(data, at)
        if version != VERSION:
            raise ProtocolError(f"version {version} instead of {VERSION}: this is not FastCGI 1.0")
        size = HEADER_LENGTH + length + padding
        if held < size:
            self._need = size
            return None
        self._at = at + size
        return kind, request_id, data[at + HEADER_LENGTH : at + HEADER_LENGTH + length]
