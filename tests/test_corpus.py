"""The corpus of raw requests: each one whole, byte by byte and cut at its line ends, through both readers.

First through the readers alone, then through the front door of a real server.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.http.limits import Limits
from gateway.http.message import Refused, Request
from tests.corpus_client import Client, Response
from tests.corpus_format import Case, read_corpus
from tests.reader_events import (
    READERS,
    Cut,
    Pieces,
    after_line_ends,
    finely,
    requests_ended,
    verdict,
    whole,
    within_line_ends,
)
from tests.support import start_server
from tests.test_readers import cuts, mutated

CASES = read_corpus()
MAX_BODY = 1024**2
# Statuses of requests that the reader itself refuses.
REFUSED = (400, 405, 413, 414, 417, 431, 501, 505)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_readers(case: Case) -> None:
    limits = Limits(body=MAX_BODY)
    expected = verdict("h11", whole(case.raw), limits)
    for kind in READERS:
        for cut in (whole, finely(case.raw, 20_000), after_line_ends, within_line_ends):
            assert verdict(kind, cut(case.raw), limits) == expected, (kind, cut)
    refused = [event.status for event in expected if isinstance(event, Refused)]
    statuses = [status.code for status in case.final_statuses]
    if case.end == "close" and not case.refused_behind_reader and statuses and statuses[-1] in REFUSED:
        assert refused == statuses[-1:]
        assert requests_ended(expected) == len(statuses) - 1
    else:
        assert not refused


# The front door.

PROGRAMS = {
    "echo": r"printf 'Content-Type: application/octet-stream\n\n'; env; printf 'BODY=['; cat; printf ']\n'",
    "arguments": r"""printf 'Content-Type: text/plain\n\nCOUNT=%s\nQUERY=%s\n' $# "$QUERY_STRING" """,
    "count": r"""printf 'Content-Type: text/plain\n\nCOUNT=%s\n' "$(wc -c)" """,
    "slow": r"sleep 0.1; printf 'Content-Type: text/plain\n\nSLOW\n'",
    "measured": r"printf 'Content-Type: text/plain\nContent-Length: 9\n\nmeasured\n'",
    "measured-too-long": r"printf 'Content-Type: text/plain\nContent-Length: 100\n\nshort'",
    "measured-too-short": r"printf 'Content-Type: text/plain\nContent-Length: 5\n\nshortSURPLUS'",
    "status-204": r"printf 'Status: 204 No Content\nContent-Type: text/plain\n\nSURPLUS'",
    "status-304": r"printf 'Status: 304 Not Modified\nETag: \"x\"\n\nSURPLUS'",
}


def write_program(path: Path, body: str, mode: int = 0o755) -> None:
    path.write_text(f"#!/bin/sh\n# SOURCE\n{body}\n")
    path.chmod(mode)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of programs, and of what only looks like one."""
    top = tmp_path_factory.mktemp("site")
    directory = top / "cgi"
    (directory / "folder").mkdir(parents=True)
    for name, body in PROGRAMS.items():
        write_program(directory / name, body)
    for path in (directory / "folder" / "echo", directory / "a name", top / "beside"):
        write_program(path, PROGRAMS["echo"])
    write_program(directory / "not-executable", PROGRAMS["echo"], 0o644)
    for name, target in {"link": "echo", "outside": "../beside", "dangling": "nothing", "round": "round"}.items():
        (directory / name).symlink_to(target)
    (directory / "device").symlink_to("/dev/zero")
    os.mkfifo(directory / "fifo", 0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(directory / "socket"))
    (directory / "socket").chmod(0o755)
    return directory


@contextmanager
def running(options: tuple[str, ...], programs: Path, temp_dir: Path) -> Iterator[tuple[str, int]]:
    """A server of its own; gives its address, and checks at the end that nothing is left."""
    server = start_server(*options, cgi_dir=programs, temp_dir=temp_dir, access_log="off")
    try:
        yield server.host, server.port
        server.finish()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


Addresses = Callable[[Case, str], tuple[str, int]]


@pytest.fixture(scope="module")
def addresses(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Gives the address of a server for a case and a reader; those of the same options share one."""
    known: dict[tuple[str, ...], tuple[str, int]] = {}
    with ExitStack() as stack:

        def find(case: Case, kind: str) -> tuple[str, int]:
            options = ("--http", kind, "--max-body", "1M", *case.options)
            if options not in known:
                known[options] = stack.enter_context(running(options, programs, tmp_path_factory.mktemp("spool")))
            return known[options]

        yield find


def exchange(case: Case, client: Client, pieces: Pieces, waits: bool) -> list[Response]:
    """Send the case, read its responses, and see what becomes of the connection; return the final responses.

    A client that `waits` sends the rest of its bytes when it has seen a first response to its head.
    """
    finals: list[Response] = []
    interims = 0

    def read() -> None:
        nonlocal interims
        assert len(finals) < len(case.final_statuses)
        expected = case.final_statuses[len(finals)]
        response = client.read(expected.to_head)
        assert response is not None, f"closed after {[one.status for one in finals]}"
        if response.status < 200:
            assert response.status == 100
            interims += 1
        else:
            assert response.status == expected.code, response.text
            finals.append(response)

    for piece in pieces:
        client.send(piece)
        if waits and not finals and not interims:
            read()
    while len(finals) < len(case.final_statuses):
        read()
    assert interims == case.interims if waits else interims <= case.interims
    assert all(response.is_whole for response in finals) == (case.end != "cut")
    assert not any(response.announces_close for response in finals[:-1])
    if finals and case.end != "cut":
        assert finals[-1].announces_close == (case.end == "close")
    if case.end == "open":
        client.send(b"GET /cgi-bin/echo/probe HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
        probe = client.read(to_head=False)
        assert probe is not None
        assert probe.status == 200
        assert b"\nPATH_INFO=/probe\n" in probe.body
    assert client.read_to_end() == b""
    # Who asks to close and sends on may be cut off; who is told of an error must be able to read that.
    asked_for = case.end == "close" and bool(finals) and finals[-1].status < 400
    assert asked_for or not client.was_reset, "reset"
    return finals


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_front_door(addresses: Addresses, case: Case, kind: str) -> None:
    address = addresses(case, kind)
    cuts: list[tuple[Cut, bool]] = [(whole, False)]
    if case.interims or (case.theme == "expect" and case.raw.endswith(b"\r\n\r\n")):
        cuts.append((after_head, True))
    if not case.options:
        cuts += [(cut, False) for cut in (finely(case.raw, 4096), after_line_ends, within_line_ends)]
    for cut, waits in cuts:
        with Client(address) as client:
            responses = exchange(case, client, cut(case.raw), waits)
        for mark in case.marks:
            among = responses if mark.response == 0 else [responses[mark.response - 1]]
            found = any(mark.text in response.text for response in among)
            assert found == mark.wanted, (mark, cut, [response.text for response in among])


def after_head(raw: bytes) -> Pieces:
    end = raw.index(b"\r\n\r\n") + 4
    yield from filter(None, (raw[:end], raw[end:]))


def test_corpus_is_large_and_its_names_differ() -> None:
    names = Counter(map(str, CASES))
    assert len(names) == len(CASES) > 180


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
def test_front_door_stands_what_nobody_wrote(addresses: Addresses, kind: str, data: st.DataObject) -> None:
    """As many well-formed responses as the reader alone sees requests, or fewer where one ends the connection."""
    raw = data.draw(mutated())
    pieces = data.draw(cuts(raw))
    events = verdict(kind, whole(raw), Limits(body=MAX_BODY))
    asked = [event for event in events if isinstance(event, Request)]
    due = requests_ended(events) + sum(isinstance(event, Refused) for event in events)
    finals: list[Response] = []
    with Client(addresses(CASES[0], kind)) as client:
        for piece in pieces:
            client.send(piece)
        while len(finals) < due:
            response = client.read(to_head=len(finals) < len(asked) and asked[len(finals)].method == b"HEAD")
            assert response is not None
            if response.status >= 200:
                finals.append(response)
            if response.announces_close or not response.is_whole:
                assert client.read_to_end() == b""
                break
        assert not client.was_reset or finals[-1].status < 400
