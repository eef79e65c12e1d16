"""The FastCGI codec: any cut, any padding, each side against the other, and what no peer may do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_pool.protocol import (
    ABORT,
    END_OF_STDIN,
    ApplicationSide,
    ProtocolError,
    ProtocolStatus,
    RecordType,
    ResponseReader,
    Role,
    application,
    decode_params,
    encode_params,
    encode_request,
    get_values,
    records,
    stdin_records,
    web_server,
)
from fcgi_pool.protocol.application import BeginRequest, DataStream, DataStreamEnd, Environment, Params, Stdin, StdinEnd
from fcgi_pool.protocol.params import decode_environment
from fcgi_pool.protocol.web_server import End, Stderr, Stdout, StreamEnd, UnknownType, Values
from tests import fuzz_fcgi
from tests.fcgi_bytes import (
    Pairs,
    begin,
    cuts,
    end,
    in_pieces,
    pairs_of_bytes,
    read_all,
    record,
    requests,
    responses,
    short,
)

# The web server's side


@given(st.binary(max_size=2000), st.binary(max_size=100), cuts, st.integers(0, 255), st.booleans(), st.booleans())
def test_responses_cut_anywhere(
    body: bytes, words: bytes, sizes: list[int], padding: int, ends_stdout: bool, ends_stderr: bool
) -> None:
    """Streams come out as they went in; padding on any record; streams may end untold."""
    data = b"".join(record(6, 1, part, padding) for part in in_pieces(body, sizes))
    data += record(7, 1, words, padding) if words else b""
    data += record(6, 1, b"", padding) if ends_stdout else b""
    data += record(7, 1, b"", padding) if ends_stderr else b""
    data += end(3, 1, padding)
    reader = ResponseReader()
    for _ in range(2):
        found = read_all(reader, in_pieces(data, sizes))
        assert b"".join(event.data for event in found if isinstance(event, Stdout)) == body
        assert b"".join(event.data for event in found if isinstance(event, Stderr)) == words
        ends = [event.stream for event in found if isinstance(event, StreamEnd)]
        assert ends == [RecordType.STDOUT] * ends_stdout + [RecordType.STDERR] * ends_stderr
        assert found[-1] == End(3, 1)
        assert reader.is_idle
        reader.begin()


def test_a_long_record_does_not_wait_for_its_end() -> None:
    """Its content is passed on as it comes."""
    reader = ResponseReader()
    reader.receive(record(6, 1, b"a" * 65_535)[:100])
    assert reader.next_event() == Stdout(b"a" * 92)
    assert reader.next_event() is None
    reader.receive(b"bc")
    assert reader.next_event() == Stdout(b"bc")
    assert reader.next_event() is None
    assert not reader.is_idle


def test_the_next_request_may_begin_before_the_padding_has_come() -> None:
    """END_REQUEST is told without its padding, which is not mistaken for a record."""
    reader = ResponseReader()
    reader.receive(end(padding=255)[:-200])
    assert reader.next_event() == End(0, 0)
    assert reader.is_idle
    reader.begin()
    reader.receive(bytes(200) + record(6, 1, b"x"))
    assert reader.next_event() == Stdout(b"x")


def test_values_and_unknown_types() -> None:
    """Answers of management, whenever they come, in parts too."""
    data = record(10, 0, encode_params([(b"FCGI_MAX_CONNS", b"4")]), 3) + record(11, 0, b"\x4d" + bytes(7))
    expected = [Values({b"FCGI_MAX_CONNS": b"4"}), UnknownType(77)]
    assert responses(data) == expected
    assert read_all(ResponseReader(), in_pieces(data, [1])) == expected
    assert responses(record(6, 1, b"x") + data + end() + data) == [Stdout(b"x"), *expected, End(0, 0), *expected]


def test_ending_a_stream_again_is_no_event() -> None:
    """And no error."""
    assert responses(record(6, 1) * 3 + record(7, 1) * 2 + record(6, 1) + end()) == [
        StreamEnd(RecordType.STDOUT),
        StreamEnd(RecordType.STDERR),
        End(0, 0),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "version 72 instead of 1"),
        (record(6, 1, b"x", version=2), "version 2 instead of 1"),
        (record(6, 2, b"x"), "STDOUT for the request 2"),
        (record(6, 0, b"x"), r"STDOUT for no request \(id 0\)"),
        (record(3, 0, bytes(8)), "END_REQUEST for no request"),
        (record(5, 1, b"x"), "STDIN, which an application does not send"),
        (record(10, 1, b""), "GET_VALUES_RESULT, which"),
        (record(99, 1, b"x"), "unknown type 99, which"),
        (end() + record(6, 1, b"x"), "STDOUT after END_REQUEST"),
        (end() + end(), "END_REQUEST after END_REQUEST"),
        (record(6, 1) + record(6, 1, b"xy"), "2 bytes of STDOUT after the end"),
        (record(7, 1) + record(7, 1, b"xy"), "2 bytes of STDERR after the end"),
        (record(3, 1), "END_REQUEST without content"),
        (record(3, 1, bytes(7)), "END_REQUEST with 7 bytes"),
        (record(3, 1, bytes(16)), "END_REQUEST with 16 bytes"),
        (record(11, 0, b"x"), "UNKNOWN_TYPE with 1 bytes"),
        (record(10, 0, b"\xff\xff"), "end within a length"),
    ],
)
@pytest.mark.parametrize("sizes", [[10**6], [1], [9, 2]], ids=["whole", "bytes", "parts"])
def test_what_no_application_may_send(data: bytes, words: str, sizes: list[int]) -> None:
    """Each has its words, however it is cut."""
    with pytest.raises(ProtocolError, match=words):
        read_all(ResponseReader(), in_pieces(data, sizes))


def test_no_request_begins_before_the_last_has_ended() -> None:
    """A mistake of ours, told as one."""
    with pytest.raises(ProtocolError):
        ResponseReader().begin()


# The application's side


@given(pairs_of_bytes, st.binary(max_size=2000), cuts, st.integers(0, 255), st.booleans())
def test_requests_cut_anywhere(pairs: Pairs, body: bytes, sizes: list[int], padding: int, keep: bool) -> None:
    """Streams may be cut anywhere, records padded, bytes come one by one."""
    data = begin(flags=keep)
    data += b"".join(record(4, 1, part, padding) for part in in_pieces(encode_params(pairs), sizes))
    data += record(4, 1, b"", padding)
    data += b"".join(record(5, 1, part, padding) for part in in_pieces(body, sizes)) + record(5, 1, b"", padding)
    side = ApplicationSide()
    for _ in range(2):
        found = read_all(side, in_pieces(data, sizes))
        expected: list[Any] = [BeginRequest(1, Role.RESPONDER, keep), Params(1, pairs)]
        assert found == [*expected, *([Stdin(1, body)] if body else []), StdinEnd(1)]
        assert (side.is_busy, side.is_idle) == (True, False)
        assert responses(b"".join(side.end(9))) == [StreamEnd(RecordType.STDOUT), End(9, 0)]
        assert (side.is_busy, side.is_idle, side.keeps) == (False, True, keep)
        assert side.data_to_send() == b""


@given(st.dictionaries(short, short, max_size=12), cuts)
def test_environment(variables: dict[bytes, bytes], sizes: list[int]) -> None:
    """The pairs as text; of one name twice the last counts."""
    encoded = encode_params(variables.items())
    twice = encode_params((name, b"first") for name in variables) + encoded
    for data in (encoded, twice):
        side = ApplicationSide(as_text=True)
        found = read_all(side, in_pieces(encode_request(data, keep=False, ends=False), sizes))
        text = {name.decode("latin-1"): value.decode("latin-1") for name, value in variables.items()}
        assert found == [BeginRequest(1, Role.RESPONDER, False), Environment(1, text)]


@given(st.binary(max_size=60))
def test_both_decoders_agree(data: bytes) -> None:
    """On what is malformed too."""

    def outcome(decode: Callable[[bytes], Any]) -> Any:
        try:
            return decode(data)
        except ProtocolError as error:
            return str(error)

    found = outcome(decode_params)
    if not isinstance(found, str):
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in found}
    assert outcome(decode_environment) == found


@given(st.dictionaries(short, short, max_size=4), st.binary(max_size=30), st.integers(0, 20), st.data())
def test_the_usual_shape_is_no_special_case(
    variables: dict[bytes, bytes], body: bytes, padding: int, data: st.DataObject
) -> None:
    """A request read in one go is the request that is read by records, whole, cut, or with a byte changed."""
    params = encode_params(variables.items())
    sent = bytearray(begin(flags=data.draw(st.booleans())) + record(4, 1, params, padding) + record(4, 1))
    sent += b"".join(stdin_records(body)) + data.draw(
        st.sampled_from([b"", END_OF_STDIN, END_OF_STDIN + begin(), ABORT])
    )
    if data.draw(st.booleans()):
        sent[data.draw(st.integers(0, min(40, len(sent) - 1)))] = data.draw(st.integers(0, 255))
    whole = bytes(sent[: data.draw(st.integers(1, len(sent)))] if data.draw(st.booleans()) else sent)

    def outcome(at_once: bool) -> Any:
        side = ApplicationSide(as_text=True)
        found: list[Any] = []
        try:
            variables = side.receive_request(whole) if at_once else side.receive(whole)
            if variables is not None:
                found = [BeginRequest(1, Role.RESPONDER, side.keeps), Environment(1, variables)]
                found += [StdinEnd(1)] * side.has_all
            found += read_all(side, [b""])
        except ProtocolError as error:
            return str(error)
        return found, side.is_busy, side.keeps, side.has_all, side.is_idle, side.data_to_send(), side.end()

    assert outcome(True) == outcome(False)


def test_roles() -> None:
    """A Filter gets two streams, an Authorizer none, though some web servers end one."""
    filtered = encode_request(b"", role=Role.FILTER, keep=False, ends=True)
    filtered += b"".join(web_server.data_records(b"file")) + record(8, 1)
    expected = [BeginRequest(1, Role.FILTER, False), Params(1, []), StdinEnd(1)]
    assert requests(filtered) == [*expected, DataStream(1, b"file"), DataStreamEnd(1)]
    for ends in (False, True):
        asked = encode_request(b"", role=Role.AUTHORIZER, keep=False, ends=ends)
        assert requests(asked) == [BeginRequest(1, Role.AUTHORIZER, False), Params(1, [])]


def test_an_unknown_role_is_answered() -> None:
    """And nothing else comes of it."""
    for role, roles in ((9, Role), (3, [Role.RESPONDER])):
        side = ApplicationSide(roles=roles)
        assert read_all(side, [begin(role, flags=1) + record(4, 1, b"\x01\x01AB") + record(4, 1) + END_OF_STDIN]) == []
        assert responses(side.data_to_send()) == [End(0, ProtocolStatus.UNKNOWN_ROLE)]
        assert side.is_idle
        assert side.keeps


def test_a_second_request_is_answered() -> None:
    """CANT_MPX_CONN; the first goes on, and records for the second are ignored."""
    side = ApplicationSide()
    data = begin() + begin(request_id=2) + record(4, 2, b"\x01\x01AB") + record(4, 1) + record(99, 2) + END_OF_STDIN
    assert read_all(side, [data]) == [BeginRequest(1, Role.RESPONDER, False), Params(1, []), StdinEnd(1)]
    assert side.data_to_send() == record(3, 2, bytes((0, 0, 0, 0, 1, 0, 0, 0)))


def test_what_comes_for_no_request_is_ignored() -> None:
    """It may have been sent before its end was known."""
    assert requests(record(4, 1, b"junk") + record(5, 1, b"x") + ABORT + record(99, 5)) == []


def test_abort() -> None:
    """In every state; what comes after it is of no interest; the end is still told."""
    parts = [
        encode_request(b"", keep=True, ends=False),
        *(bytes(piece) for piece in stdin_records(b"12345678")),
        END_OF_STDIN,
    ]
    for count in range(1, len(parts) + 1):
        if count == 2:
            continue
        side = ApplicationSide()
        found = read_all(side, [*parts[:count], ABORT, ABORT, record(5, 1, b"late")])
        assert found[-1] == application.Abort(1)
        assert sum(isinstance(event, application.Abort) for event in found) == 1
        assert side.is_busy
        assert responses(b"".join(side.end(1)))[-1] == End(1, 0)
        assert read_all(side, [begin()]) == [BeginRequest(1, Role.RESPONDER, False)]


def test_management() -> None:
    """Values that are asked for and known; other types are unknown."""
    side = ApplicationSide(max_conns=5, max_reqs=6)
    asked = get_values([records.MAX_CONNS, records.MPXS_CONNS, b"OTHER"])
    assert read_all(side, [asked + record(1, 0, bytes(8)) + record(200, 0, b"")]) == []
    values = Values({b"FCGI_MAX_CONNS": b"5", b"FCGI_MPXS_CONNS": b"0"})
    assert responses(side.data_to_send()) == [values, UnknownType(1), UnknownType(200)]
    assert side.data_to_send() == b""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "version 71 instead of 1"),
        (record(1, 1, bytes(7)), "BEGIN_REQUEST with 7 bytes"),
        (begin() + begin(), "BEGIN_REQUEST for the request 1, which runs"),
        (begin() + record(5, 1, b"x"), "1 bytes of STDIN at the wrong time"),
        (begin() + record(5, 1), "the end of STDIN at the wrong time"),
        (begin() + record(4, 1) + record(4, 1), "the end of PARAMS at the wrong time"),
        (begin() + record(4, 1) + record(8, 1, b"x"), "1 bytes of DATA at the wrong time"),
        (begin() + record(4, 1) + record(5, 1) + record(5, 1, b"x"), "1 bytes of STDIN at the wrong time"),
        (begin(2) + record(4, 1) + record(5, 1, b"x"), "1 bytes of STDIN at the wrong time"),
        (begin() + record(2, 1, b"x"), "ABORT_REQUEST with 1 bytes"),
        (begin() + record(6, 1, b"x"), "STDOUT, which a web server does not send"),
        (begin() + record(99, 1, b"x"), "unknown type 99, which"),
        (begin() + record(4, 1, b"\x05\x05A") + record(4, 1), "only 1 bytes are left"),
        (begin() + record(4, 1, bytes(65_535)) * 17, "bytes of name–value pairs"),
        (record(9, 0, b"\xff"), "end within a length"),
    ],
)
@pytest.mark.parametrize("sizes", [[10**7], [1], [9, 2]], ids=["whole", "bytes", "parts"])
def test_what_no_web_server_may_send(data: bytes, words: str, sizes: list[int]) -> None:
    """Each has its words, however it is cut."""
    if sizes == [1] and len(data) > 100_000:
        sizes = [1000]
    with pytest.raises(ProtocolError, match=words):
        read_all(ApplicationSide(roles=Role), in_pieces(data, sizes))


# Each side against the other


@given(pairs_of_bytes, st.binary(max_size=200_000), st.binary(max_size=100_000), short, st.booleans())
def test_twins(pairs: Pairs, body: bytes, response: bytes, words: bytes, keep: bool) -> None:
    """What one sends the other reads, without an error."""
    sent = encode_request(encode_params(pairs), keep=keep, ends=not body)
    if body:
        sent += b"".join(stdin_records(body)) + END_OF_STDIN
    side = ApplicationSide()
    expected: list[Any] = [BeginRequest(1, Role.RESPONDER, keep), Params(1, pairs)]
    assert read_all(side, [sent]) == [*expected, *([Stdin(1, body)] if body else []), StdinEnd(1)]
    answer = b"".join([*side.stderr(words), *side.stdout(response), *side.end(2**32 - 1)])
    found = responses(answer)
    assert b"".join(event.data for event in found if isinstance(event, Stdout)) == response
    assert b"".join(event.data for event in found if isinstance(event, Stderr)) == words
    assert (StreamEnd(RecordType.STDERR) in found) == bool(words)
    assert found[-1] == End(2**32 - 1, 0)


@pytest.mark.parametrize("status", [ProtocolStatus.OVERLOADED, ProtocolStatus.CANT_MPX_CONN])
def test_a_request_that_was_not_served(status: ProtocolStatus) -> None:
    """Has no response, not an empty one."""
    side = ApplicationSide()
    read_all(side, [begin()])
    answer = b"".join([*side.stderr(b"no worker"), *side.end(0, status)])
    assert responses(answer) == [Stderr(b"no worker"), StreamEnd(RecordType.STDERR), End(0, status)]


@pytest.mark.parametrize("make", [ApplicationSide, ResponseReader])
@given(data=st.binary(max_size=500), sizes=cuts)
def test_any_bytes(make: Callable[[], Any], data: bytes, sizes: list[int]) -> None:
    """Nothing but ProtocolError."""
    try:
        read_all(make(), in_pieces(data, sizes))
    except ProtocolError as error:
        assert str(error)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_records(seed: int) -> None:
    """The short form of the fuzzer."""
    tally = fuzz_fcgi.run(5000, seed)
    assert tally.finished > 20
    assert tally.refused > 20


def test_the_fuzzer_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line too."""
    monkeypatch.setattr(sys, "argv", ["fuzz", "100", "1"])
    fuzz_fcgi.main()
    assert "seed 1" in capsys.readouterr().out
