"""Name–value pairs (section 3.4) and the stream of them that begins a request (section 5.2).

The stream may be cut into records anywhere, and a reader must put it together again. But peers exist that lose or
refuse a pair that straddles two records, so a writer cuts between pairs as long as a pair fits into one record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcgi_pool.protocol.records import HEADER, MAX_CONTENT, PADDING, VERSION, ProtocolError, RecordType, encode_record

if TYPE_CHECKING:
    from collections.abc import Iterable

# Bytes of all pairs of a request. Linux gives a CGI program 128 KiB for one variable and 2 MiB in all; php-fpm takes
# 64 KiB, Apache's mod_proxy_fcgi sends no more than 64 KiB in one record.
PARAMS_LIMIT = 1024 * 1024
# Pairs of a request: a pair can be two bytes on the wire and a hundred in memory.
PAIRS_LIMIT = 16 * 1024

_PARAMS = int(RecordType.PARAMS)
_ONE = tuple(bytes((length,)) for length in range(128))
# Both lengths of a pair of short strings in one piece.
_BOTH = tuple(tuple(bytes((name, value)) for value in range(128)) for name in range(128))


def encode_length(length: int) -> bytes:
    """Return a length as one byte up to 127, else as four (section 3.4); raise ValueError from 2**31."""
    if length < 128:
        return _ONE[length]
    if length >= 1 << 31:
        raise ValueError("a name or value of 2 GiB cannot be encoded")
    return (length | 1 << 31).to_bytes(4, "big")


def encode_pair(name: bytes, value: bytes) -> bytes:
    """Return one pair."""
    return b"".join((encode_length(len(name)), encode_length(len(value)), name, value))


def encode_params(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the pairs as one string of bytes; such strings may be joined."""
    pieces: list[bytes] = []
    for name, value in pairs:
        try:
            pieces += (_BOTH[len(name)][len(value)], name, value)
        except IndexError:
            pieces += (encode_length(len(name)), encode_length(len(value)), name, value)
    return b"".join(pieces)


def params_records(params: bytes, request_id: int = 1) -> bytes:
    """Return encoded pairs as PARAMS records, without the empty one that ends the stream.

    No pair is split over two records, unless it alone is larger than one. Raises ProtocolError if `params` is not
    what encode_params returns.
    """
    length = len(params)
    if length <= MAX_CONTENT:
        if not length:
            return b""
        padding = -length & 7
        return b"".join((HEADER.pack(VERSION, _PARAMS, request_id, length, padding), params, PADDING[padding]))
    pieces = []
    begin = end = 0
    while end < length:
        next_end = _end_of_pair(params, end)
        if next_end - begin > MAX_CONTENT and end > begin:
            pieces.append(encode_record(_PARAMS, request_id, params[begin:end]))
            begin = end
        while next_end - begin > MAX_CONTENT:
            pieces.append(encode_record(_PARAMS, request_id, params[begin : begin + MAX_CONTENT]))
            begin += MAX_CONTENT
        end = next_end
    pieces.append(encode_record(_PARAMS, request_id, params[begin:]))
    return b"".join(pieces)


def decode_params(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the pairs of a complete stream; raise ProtocolError."""
    _check_count(data)
    pairs: list[tuple[bytes, bytes]] = []
    at, end = 0, len(data)
    while at < end:
        begin, name_length, value_length = _decode_lengths(data, at)
        middle = begin + name_length
        at = middle + value_length
        if at > end:
            raise ProtocolError(_beyond_end(name_length, value_length, end - begin))
        pairs.append((data[begin:middle], data[middle:at]))
    return pairs


def decode_environment(data: bytes) -> dict[str, str]:
    """Return the pairs of a complete stream as text, each byte a character (Latin-1), as WSGI wants them.

    Of pairs with the same name the last counts. Raises ProtocolError.
    """
    _check_count(data)
    text = data.decode("latin-1")
    found: dict[str, str] = {}
    at, end = 0, len(data)
    begin = name_length = value_length = 0
    try:
        while at < end:
            # As _decode_lengths, for pairs that are short, as nearly all are: a worker does this for every request.
            name_length = data[at]
            value_length = data[at + 1]
            if name_length | value_length < 128:
                begin = at + 2
            else:
                begin, name_length, value_length = _decode_lengths(data, at)
            middle = begin + name_length
            at = middle + value_length
            # Beyond the end there is nothing to take: a length that lies costs no memory.
            found[text[begin:middle]] = text[middle:at]
    except IndexError:
        raise ProtocolError(_WITHIN_LENGTH) from None
    if at > end:
        raise ProtocolError(_beyond_end(name_length, value_length, end - begin))
    return found


class ParamsReader:
    """Puts the stream of pairs together again, however it was cut into records."""

    __slots__ = ("_length", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> None:
        """Take the content of a PARAMS record; raise ProtocolError past the limit of all together."""
        self._length += len(data)
        if self._length > PARAMS_LIMIT:
            raise ProtocolError(f"more than {PARAMS_LIMIT} bytes of name–value pairs")
        self._pieces.append(data)

    def finish(self) -> list[tuple[bytes, bytes]]:
        """Return the pairs, the stream having ended, and be ready for another; raise ProtocolError."""
        return decode_params(self.take())

    def take(self) -> bytes:
        """Return the stream as it is, and be ready for another."""
        pieces = self._pieces
        self._pieces = []
        self._length = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_WITHIN_LENGTH = "the name–value pairs end within a length"


def _check_count(data: bytes) -> None:
    """Raise ProtocolError for too many pairs; no pair is shorter than two bytes."""
    if len(data) <= 2 * PAIRS_LIMIT:
        return
    at, count = 0, 0
    while at < len(data):
        begin, name_length, value_length = _decode_lengths(data, at)
        at = begin + name_length + value_length
        count += 1
        if count > PAIRS_LIMIT:
            raise ProtocolError(f"more than {PAIRS_LIMIT} name–value pairs")


def _beyond_end(name_length: int, value_length: int, left: int) -> str:
    return f"a name of {name_length} and a value of {value_length} bytes, but only {left} bytes are left"


def _decode_lengths(data: bytes, at: int) -> tuple[int, int, int]:
    """Return where the name begins, its length and the value's; raise ProtocolError."""
    name_length, at = _decode_length(data, at)
    value_length, at = _decode_length(data, at)
    return at, name_length, value_length


def _decode_length(data: bytes, at: int) -> tuple[int, int]:
    """Return the length that stands at `at`, and where it ends."""
    if at < len(data):
        if data[at] < 128:
            return data[at], at + 1
        if at + 4 <= len(data):
            return int.from_bytes(data[at : at + 4], "big") & 0x7FFFFFFF, at + 4
    raise ProtocolError(_WITHIN_LENGTH)


def _end_of_pair(data: bytes, at: int) -> int:
    begin, name_length, value_length = _decode_lengths(data, at)
    end = begin + name_length + value_length
    if end > len(data):
        raise ProtocolError("the name–value pairs end within a pair")
    return end
