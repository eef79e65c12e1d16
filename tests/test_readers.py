"""Both request readers on requests that nobody wrote: same verdict, whatever the cut; never an exception."""

from __future__ import annotations

import itertools
import string
import time
from collections.abc import Iterator
from dataclasses import dataclass

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.http.limits import Limits
from gateway.http.message import END, NEED_DATA, Refused, Request
from gateway.http.reader import make_reader
from tests.corpus_format import read_corpus
from tests.reader_events import READERS, Pieces, in_pieces, requests_ended, verdict, whole

# Time limits belong to a quiet machine.
some = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
many = settings(some, max_examples=500)

SHORT_CASES = [case.raw for case in read_corpus() if len(case.raw) < 1000]
LIMITS = Limits(body=1024**2)

TOKEN = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
TARGET = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "#")


@dataclass
class Made:
    """A request and what it must be read as."""

    raw: bytes
    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes | None


def ascii_text(alphabet: str, smallest: int, largest: int) -> st.SearchStrategy[bytes]:
    return st.text(alphabet, min_size=smallest, max_size=largest).map(str.encode)


# Names that decide about the connection are given where their values are known.
names = ascii_text(TOKEN, 1, 20).filter(
    lambda name: (
        name.lower() not in (b"content-length", b"transfer-encoding", b"host", b"connection", b"expect", b"upgrade")
    )
)
values = st.binary(max_size=30).map(
    lambda raw: bytes(byte for byte in raw if byte == 9 or 32 <= byte != 127).strip(b" \t")
)
blanks = st.sampled_from([b"", b" ", b"\t", b" \t "])
extensions = st.sampled_from([b"", b";a", b";a=b", b';a="b; c\\"d"', b"; a=b;\tc"])
trailers = st.lists(st.tuples(names, values), max_size=3)


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """`body` in the chunked coding, cut anywhere."""
    parts = []
    position = 0
    while position < len(body):
        size = draw(st.integers(1, len(body) - position))
        digits = draw(st.sampled_from([b"%x", b"%X", b"%04x"])) % size
        parts += [digits, draw(extensions), b"\r\n", body[position : position + size], b"\r\n"]
        position += size
    parts += [b"0", draw(extensions), b"\r\n"]
    parts += [b"%s: %s\r\n" % field for field in draw(trailers)]
    return b"".join([*parts, b"\r\n"])


@st.composite
def requests(draw: st.DrawFn) -> Made:
    method = draw(st.one_of(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"REPORT"]), ascii_text(TOKEN, 1, 12)))
    if method == b"CONNECT":
        method = b"GET"
    target = b"/" + draw(ascii_text(TARGET, 0, 30))
    fields = [(name, value) for name, value in draw(st.lists(st.tuples(names, values), max_size=6))]
    body = draw(st.none() | st.binary(max_size=200))
    fields.insert(draw(st.integers(0, len(fields))), (b"Host", b"a.example"))
    coded = b""
    if body is not None and draw(st.booleans()):
        coded = draw(chunked(body))
        fields.insert(draw(st.integers(0, len(fields))), (b"Transfer-Encoding", b"chunked"))
    elif body is not None:
        coded = body
        fields.insert(draw(st.integers(0, len(fields))), (b"Content-Length", b"%d" % len(body)))
    head = b"%s %s HTTP/1.1\r\n" % (method, target)
    for name, value in fields:
        head += name + b":" + draw(blanks) + value + draw(blanks) + b"\r\n"
    return Made(head + b"\r\n" + coded, method, target, [(name.lower(), value) for name, value in fields], body)


@st.composite
def cuts(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    """`raw` in pieces, many or few."""
    if draw(st.booleans()):
        return list(in_pieces(draw(st.integers(1, 7)))(raw))
    points = sorted(draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=8)))
    return [raw[start:end] for start, end in itertools.pairwise([0, *points, len(raw)]) if start < end]


Read = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]


def read_requests(kind: str, pieces: Pieces) -> list[Read]:
    """Method, target, fields and body of each request, all of which must be whole."""
    events = verdict(kind, pieces, LIMITS)
    found: list[Read] = []
    for event in events:
        if isinstance(event, Request):
            found.append((event.method, event.target, event.fields, b""))
        elif isinstance(event, bytes):
            found[-1] = (*found[-1][:3], event)
        else:
            assert event is END
    assert requests_ended(events) == len(found)
    return found


@given(st.data())
@some
def test_valid_requests(data: st.DataObject) -> None:
    made = data.draw(st.lists(requests(), min_size=1, max_size=3))
    raw = b"".join(one.raw for one in made)
    expected = [(one.method, one.target, one.fields, one.body or b"") for one in made]
    pieces = data.draw(cuts(raw))
    for kind in READERS:
        assert read_requests(kind, whole(raw)) == expected
        assert read_requests(kind, pieces) == expected


@given(requests())
@some
def test_h11_alone_agrees(made: Made) -> None:
    """h11 as a server of its own, without our grammar, as a witness."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1024**2)
    connection.receive_data(made.raw)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    expected = [(request.method, request.target, list(request.headers), body)]
    for kind in READERS:
        assert read_requests(kind, whole(made.raw)) == expected


# What attackers and broken clients change.
TROUBLE = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"\x0b", b"\x7f", b"\x80",
    b"\xff", b"+", b"-", b"_", b'"', b"\\", b"#", b"%", b"*", b"/", b"HTTP/1.1", b"HTTP/2.0", b"0\r\n\r\n", b"chunked",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n", b"Connection: close\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n", b"X: y\r\n z\r\n", b"5;a=b\r\nhello\r\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One or two requests, changed here and there."""
    sources = st.one_of(st.sampled_from(SHORT_CASES), requests().map(lambda made: made.raw))
    raw = draw(sources)
    if draw(st.booleans()):
        other = draw(sources)
        raw = raw[: draw(st.integers(0, len(raw)))] + other[draw(st.integers(0, len(other))) :]
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        change = draw(st.sampled_from(["insert", "trouble", "delete", "replace", "repeat", "case"]))
        if change == "insert":
            raw = raw[:at] + draw(st.binary(min_size=1, max_size=3)) + raw[at:]
        elif change == "trouble":
            raw = raw[:at] + draw(st.sampled_from(TROUBLE)) + raw[at:]
        elif change == "delete":
            raw = raw[:at] + raw[at + draw(st.integers(1, 8)) :]
        elif change == "replace":
            raw = raw[:at] + draw(st.binary(min_size=1, max_size=1)) + raw[at + 1 :]
        elif change == "repeat":
            end = draw(st.integers(at, min(len(raw), at + 40)))
            raw = raw[:at] + raw[at:end] * draw(st.integers(2, 5)) + raw[end:]
        else:
            raw = raw[:at] + raw[at : at + 1].swapcase() + raw[at + 1 :]
    return raw


def agree(raw: bytes, pieces: list[bytes], limits: Limits) -> None:
    expected = verdict("h11", whole(raw), limits)
    for kind in READERS:
        assert verdict(kind, whole(raw), limits) == expected, kind
        assert verdict(kind, pieces, limits) == expected, kind
        assert verdict(kind, in_pieces(1)(raw), limits) == expected, kind


@given(st.data())
@many
def test_mutated_requests(data: st.DataObject) -> None:
    raw = data.draw(mutated())
    agree(raw, data.draw(cuts(raw)), LIMITS)


small_limits = st.builds(
    Limits,
    request_line=st.integers(8, 60),
    head=st.integers(8, 120),
    fields=st.integers(1, 4),
    chunk_line=st.integers(3, 12),
    body=st.integers(0, 20),
)


@given(st.data(), small_limits)
@many
def test_mutated_requests_at_small_limits(data: st.DataObject, limits: Limits) -> None:
    raw = data.draw(mutated())
    agree(raw, data.draw(cuts(raw)), limits)


@given(st.binary(max_size=300), st.data())
@some
@example(b"", None)
def test_garbage(raw: bytes, data: st.DataObject | None) -> None:
    agree(raw, data.draw(cuts(raw)) if data else [raw], LIMITS)


@given(st.binary(max_size=2000), st.data())
@some
def test_chunked_bodies(body: bytes, data: st.DataObject) -> None:
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data.draw(chunked(body))
    pieces = data.draw(cuts(raw))
    for kind in READERS:
        assert [read[3] for read in read_requests(kind, pieces)] == [body]


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "empty lines": (b"", b"\r\n", None),
    "method": (b"", b"A", 414),
    "target": (b"GET /", b"a", 414),
    "fields": (HEAD, b"A: b\r\n", 431),
    "long fields": (HEAD, b"A: " + b"b" * 700 + b"\r\n", 431),
    "field name": (HEAD, b"a", 431),
    "field value": (HEAD + b"X: ", b"a b", 431),
    "requests": (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "body": (HEAD + b"Content-Length: 9999999\r\n\r\n", b"body", None),
    "chunk size": (CHUNKED, b"0", 400),
    "chunk extension": (CHUNKED + b"5;", b"a", 400),
    "chunk extensions": (CHUNKED + b"5", b";a=b", 400),
    "chunks": (CHUNKED, b"1;a\r\nx\r\n", 413),
    "trailers": (CHUNKED + b"0\r\n", b"A: b\r\n", 431),
    "trailer value": (CHUNKED + b"0\r\nX: ", b"a", 431),
}


def endless(start: bytes, more: bytes, size: int) -> Iterator[bytes]:
    yield start
    block = more * (size // len(more) + 2)
    offset = 0
    while True:
        yield block[offset : offset + size]
        offset = (offset + size) % len(more)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("size", [1, 97, 65536])
@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_bounded(kind: str, size: int, name: str) -> None:
    """What is held never exceeds the limits and one read, and what has a limit is refused there."""
    start, more, status = ENDLESS[name]
    limits = Limits(request_line=2000, head=8000, fields=50, chunk_line=500, body=10**7)
    bound = limits.head + size
    reader = make_reader(kind, limits)
    for piece in itertools.islice(endless(start, more, size), 3 + 40_000 // size):
        reader.receive(piece)
        while (event := reader.next_event()) is not NEED_DATA:
            if isinstance(event, Refused):
                assert event.status == status
                assert reader.buffered == 0
                return
        assert reader.buffered <= bound
    # Chunks are bounded by what they hold, which has not come yet.
    assert status is None or name == "chunks"


def seconds_to_read(kind: str, start: bytes, more: bytes, size: int) -> float:
    """The processor time that one read of `size` bytes takes, at its best of three."""
    times = []
    for _ in range(3):
        reader = make_reader(kind, Limits(body=2**40))
        reader.receive(start)
        while reader.next_event() is not NEED_DATA:
            pass
        begun = time.process_time()
        reader.receive(more * (size // len(more)))
        while reader.next_event() is not NEED_DATA:
            pass
        times.append(time.process_time() - begun)
    return min(times)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", [name for name, (_, _, status) in ENDLESS.items() if status in (None, 413)])
def test_a_large_read_costs_no_more_than_its_size(kind: str, name: str) -> None:
    """Small things in one large read: 16 times as many take about 16 times as long, not 256 times.

    The time is a processor's and the bound is wide, so that a busy machine does not matter.
    """
    start, more, _ = ENDLESS[name]
    small, large = (seconds_to_read(kind, start, more, size) for size in (32 * 1024, 512 * 1024))
    assert large < 48 * small + 0.01


@pytest.mark.parametrize("kind", READERS)
def test_a_refusal_is_final(kind: str) -> None:
    reader = make_reader(kind, LIMITS)
    reader.receive(b"GET / HTTP/1.1\r\n\r\n")
    refused = reader.next_event()
    assert isinstance(refused, Refused)
    reader.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert reader.next_event() == refused
