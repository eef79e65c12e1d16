"""FastCGI pairs and records: any length, any cut, any padding."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_pool.protocol import (
    END_OF_STDIN,
    MAX_CONTENT,
    ParamsReader,
    ProtocolError,
    RecordReader,
    decode_params,
    encode_pair,
    encode_params,
    encode_record,
    encode_request,
    params_records,
    stdin_records,
)
from fcgi_pool.protocol.application import Params, Stdin, StdinEnd
from fcgi_pool.protocol.params import PAIRS_LIMIT, PARAMS_LIMIT, decode_environment
from tests.fcgi_bytes import LENGTHS, Pairs, cuts, in_pieces, pairs_of_bytes, record, requests, short

# Pairs (section 3.4)


@pytest.mark.parametrize("name_length", LENGTHS)
@pytest.mark.parametrize("value_length", LENGTHS)
def test_lengths_of_pairs(name_length: int, value_length: int) -> None:
    """One byte up to 127, else four; both sides agree."""
    pair = (b"n" * name_length, b"v" * value_length)
    encoded = encode_params([pair, (b"A", b"B")])
    sizes = sum(1 if length < 128 else 4 for length in (name_length, value_length))
    assert len(encoded) == sizes + name_length + value_length + 4
    assert encoded == encode_pair(*pair) + b"\x01\x01AB"
    assert decode_params(encoded) == [pair, (b"A", b"B")]


@given(pairs_of_bytes)
def test_short_lengths_may_take_four_bytes(pairs: Pairs) -> None:
    """A length below 128 in its long form is legal."""
    data = b"".join(struct.pack(">II", len(n) | 1 << 31, len(v) | 1 << 31) + n + v for n, v in pairs)
    assert decode_params(data) == pairs


@given(pairs_of_bytes, cuts)
def test_pairs_cut_anywhere(pairs: Pairs, sizes: list[int]) -> None:
    """A pair may straddle records, and so may its lengths."""
    reader = ParamsReader()
    for piece in in_pieces(encode_params(pairs), sizes):
        reader.feed(piece)
    assert reader.finish() == pairs
    assert reader.finish() == []


@given(pairs_of_bytes, st.data())
def test_pairs_that_end_too_early(pairs: Pairs, data: st.DataObject) -> None:
    """A cut end is an error, or a cut between pairs."""
    encoded = encode_params(pairs)
    kept = data.draw(st.integers(0, len(encoded)))
    try:
        found = decode_params(encoded[:kept])
    except ProtocolError:
        return
    assert found == pairs[: len(found)]
    assert len(encode_params(found)) == kept


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff\x01",
        b"\x01\xff\xff\xff\xffA",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\0\0",
        b"\x05",
        b"\x01\x01A",
    ],
)
def test_a_length_is_checked_before_memory_is_taken(data: bytes) -> None:
    """A length beyond what is left costs nothing, on 32 bits either (CVE-2025-23016)."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode_params(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_limits_of_pairs() -> None:
    """Neither bytes nor pairs without end."""
    reader = ParamsReader()
    for _ in range(PARAMS_LIMIT // 65_536):
        reader.feed(bytes(65_536))
    with pytest.raises(ProtocolError, match="bytes of name"):
        reader.feed(b"\0")
    assert len(decode_params(bytes(2 * PAIRS_LIMIT))) == PAIRS_LIMIT
    with pytest.raises(ProtocolError, match="more than 16384 name"):
        decode_params(bytes(2 * PAIRS_LIMIT + 2))
    with pytest.raises(ProtocolError, match="more than 16384 name"):
        decode_environment(bytes(2 * PAIRS_LIMIT + 2))


def test_a_name_of_two_gigabytes() -> None:
    """Which no length can tell."""

    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 31

    with pytest.raises(ValueError, match="2 GiB"):
        encode_pair(Huge(), b"")


@given(st.lists(st.integers(0, 30_000), max_size=12))
def test_no_pair_is_split(lengths: list[int]) -> None:
    """Peers exist that lose a pair which straddles two records."""
    pairs = [(b"N%d" % index, b"v" * length) for index, length in enumerate(lengths)]
    reader = RecordReader()
    reader.receive(params_records(encode_params(pairs), 7))
    found: Pairs = []
    while item := reader.next_record():
        kind, request_id, content = item
        assert (kind, request_id) == (4, 7)
        assert 0 < len(content) <= MAX_CONTENT
        found += decode_params(content)
    assert found == pairs


@pytest.mark.parametrize("value", [MAX_CONTENT - 8, MAX_CONTENT - 6, 65_535, 65_536, 200_000])
def test_a_pair_larger_than_a_record(value: int) -> None:
    """Begins a record of its own and is split."""
    pairs = [(b"A", b"1"), (b"HUGE", b"v" * value), (b"B", b"2")]
    request = encode_request(encode_params(pairs), keep=True, ends=True)
    assert len(request) % 8 == 0
    assert Params(1, pairs) in requests(request)


def test_malformed_pairs_are_not_sent() -> None:
    """What cannot be cut between pairs is refused."""
    with pytest.raises(ProtocolError):
        params_records(b"\xff" * (MAX_CONTENT + 1))
    with pytest.raises(ProtocolError):
        params_records(b"\x01\x01AB" * 20_000 + b"\x09")


# Records (section 3.3)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 65_535), short, st.integers(0, 255))), cuts)
def test_records_of_any_padding_cut_anywhere(items: list[tuple[int, int, bytes, int]], sizes: list[int]) -> None:
    """Whole ones come out as they went in."""
    reader = RecordReader()
    found = []
    for piece in in_pieces(b"".join(record(*item) for item in items), sizes):
        reader.receive(piece)
        while item := reader.next_record():
            found.append(item)
    assert found == [(kind, request_id, content) for kind, request_id, content, _ in items]
    assert reader.is_empty


@pytest.mark.parametrize("length", [0, 1, 7, 8, 127, 128, MAX_CONTENT, 65_535])
def test_what_is_sent_is_aligned(length: int) -> None:
    """Each record is a multiple of eight bytes."""
    encoded = encode_record(5, 1, bytes(length))
    assert encoded == record(5, 1, bytes(length), -length % 8)
    assert len(encoded) % 8 == 0


def test_a_record_holds_no_more() -> None:
    """Two bytes of length."""
    with pytest.raises(ValueError, match="65536 bytes"):
        encode_record(5, 1, bytes(65_536))


def test_a_record_byte_by_byte() -> None:
    """Costs as much as it has bytes, not their square."""
    whole = record(5, 1, bytes(65_535), 255)
    reader = RecordReader()
    for index in range(len(whole) - 1):
        reader.receive(whole[index : index + 1])
        assert reader.next_record() is None
    assert not reader.is_empty
    reader.receive(whole[-1:])
    assert reader.next_record() == (5, 1, bytes(65_535))


@pytest.mark.parametrize("length", [0, 1, 8, MAX_CONTENT, MAX_CONTENT + 1, 65_535, 65_536, 200_000])
def test_the_body_is_not_copied(length: int) -> None:
    """Pieces of the body stand between headers and padding."""
    data = bytes(range(256)) * (length // 256) + bytes(length % 256)
    pieces = stdin_records(memoryview(data))
    assert all(piece.obj is data for piece in pieces if isinstance(piece, memoryview))
    encoded = b"".join(pieces)
    assert len(encoded) % 8 == 0
    found = requests(encode_request(b"", keep=False, ends=False) + encoded + END_OF_STDIN)
    assert b"".join(event.data for event in found if isinstance(event, Stdin)) == data
    assert found[-1] == StdinEnd(1)
