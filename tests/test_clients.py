"""Clients that leave, crawl, stall or talk nonsense: each costs only itself."""

from __future__ import annotations

import re
import select
import socket
from pathlib import Path

import pytest

from tests import misbehaviour, support

# Says on stderr that it runs, then waits for TERM; what TERM brings is told too.
WAITS = """#!/bin/sh
trap 'echo "asked to end" >&2; exit 0' TERM
echo "running $$" >&2
sleep 600
"""
DEAF = """#!/bin/sh
trap '' TERM
echo "running $$" >&2
sleep 600
sleep 600
"""
BEGINS = """#!/bin/sh
printf 'Content-Type: text/plain\\n\\nbegun\\n'
echo "running $$" >&2
exec sleep 600
"""
FLOODS = """#!/bin/sh
printf 'Content-Type: text/plain\\n\\n'
echo "running $$" >&2
exec yes 'and on and on'
"""
FINE = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nfine\\n'\n"
ECHO = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec cat\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cgi")
    for name, text in [
        ("waits", WAITS),
        ("deaf", DEAF),
        ("begins", BEGINS),
        ("floods", FLOODS),
        ("fine", FINE),
        ("echo", ECHO),
    ]:
        misbehaviour.program(directory / name, text)
    return directory


@pytest.fixture(scope="module")
def shared(directory, tmp_path_factory):
    with misbehaviour.shared_server(directory, tmp_path_factory.mktemp("spool"), "--kill-timeout", "1") as server:
        yield server


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


@pytest.fixture
def start(serve, directory):
    """Start a server of one's own, with options."""

    def start(*options, **more):
        return serve("--kill-timeout", "1", *options, cgi_dir=directory, **more)

    return start


def fine(server):
    answer = server.get("/cgi-bin/fine")
    assert (answer.status, answer.body) == (200, b"fine\n")


LEAVING = pytest.mark.parametrize("how", [misbehaviour.vanish, misbehaviour.leave])


# Gone.


@LEAVING
@pytest.mark.parametrize(
    ("program", "exit_word"), [("waits", "0"), ("deaf", "SIGKILL"), ("begins", "SIGTERM"), ("floods", "SIG(TERM|PIPE)")]
)
def test_a_client_that_leaves_ends_its_program(server, how, program, exit_word):
    sock = server.socket()
    sock.sendall(f"GET /cgi-bin/{program} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    pid = int(server.wait_for_log(rf"{program}\[\d+\]: running (\d+)")[1])
    if program in {"begins", "floods"}:
        assert sock.recv(100)
    how(sock)
    server.wait_for_access(
        rf'"GET /cgi-bin/{program} HTTP/1\.1" 499 .*pid={pid} .*exit={exit_word} outcome=client-gone'
    )
    if program == "waits":
        server.wait_for_log(r"asked to end")
    misbehaviour.wait_until_gone(pid)
    server.check_idle()
    fine(server)


@LEAVING
def test_a_whole_group_is_ended(server, how, directory):
    misbehaviour.program(
        directory / "family",
        '#!/bin/sh\nfor n in 1 2 3; do sleep 600 & echo "child $!" >&2; done\necho ready >&2\nwait\n',
    )
    sock = server.socket()
    sock.sendall(b"GET /cgi-bin/family HTTP/1.1\r\nHost: x\r\n\r\n")
    server.wait_for_log(r"family\[\d+\]: ready")
    children = [int(pid) for pid in re.findall(r"family\[\d+\]: child (\d+)", server.errors.text)]
    assert len(children) == 3
    how(sock)
    server.wait_for_access(r"/cgi-bin/family .*outcome=client-gone")
    for pid in children:
        misbehaviour.wait_until_gone(pid)


@LEAVING
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /cgi-bin/fine HTTP/1.1\r\nHo",
        b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome",
        b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + bytes(1_000_000),
        b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    ],
    ids=["nothing", "a letter", "half a head", "no body", "a bit of body", "some spooled", "half a chunk", "expecting"],
)
def test_a_client_that_leaves_in_its_request_leaves_nothing(server, how, sent):
    for _ in range(3):
        sock = server.socket()
        sock.sendall(sent)
        how(sock)
    fine(server)
    server.check_idle()
    assert "error" not in server.errors.text


@LEAVING
def test_a_client_that_leaves_with_requests_in_the_pipeline(server, how):
    sock = server.socket()
    sock.sendall(
        b"GET /cgi-bin/waits HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /cgi-bin/fine?behind HTTP/1.1\r\nHost: x\r\n\r\n" * 50
    )
    pid = int(server.wait_for_log(r"waits\[\d+\]: running (\d+)")[1])
    how(sock)
    server.wait_for_access(r"/cgi-bin/waits .*outcome=client-gone")
    misbehaviour.wait_until_gone(pid)
    # What was behind it is not run for nobody.
    assert "fine?behind" not in server.accesses.text


def test_a_client_that_leaves_while_its_program_waits_for_a_place(start):
    server = start("--max-programs", "1")
    first = server.socket()
    first.sendall(b"GET /cgi-bin/waits HTTP/1.1\r\nHost: x\r\n\r\n")
    server.wait_for_log(r"waits\[\d+\]: running")
    second = server.socket()
    second.sendall(b"GET /cgi-bin/deaf HTTP/1.1\r\nHost: x\r\n\r\n")
    third = server.socket()
    third.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    misbehaviour.vanish(second)
    server.wait_for_access(r"/cgi-bin/deaf .*outcome=client-gone")
    misbehaviour.vanish(first)
    assert support.receive_all(third).startswith(b"HTTP/1.1 200 OK")
    third.close()
    assert "deaf[" not in server.errors.text


def test_many_vanish_at_once_and_one_stays(server):
    kept = server.socket()
    kept.sendall(b"GET /cgi-bin/waits?kept HTTP/1.1\r\nHost: x\r\n\r\n")
    server.wait_for_log(r"waits\[\d+\]: running")
    socks = [server.socket() for _ in range(40)]
    for sock in socks:
        sock.sendall(b"GET /cgi-bin/begins HTTP/1.1\r\nHost: x\r\n\r\n")
    for sock in socks:
        assert sock.recv(10)
    for sock in socks:
        misbehaviour.vanish(sock)
    misbehaviour.wait_for(lambda: server.accesses.text.count("outcome=client-gone") == 40)
    assert "waits?kept" not in server.accesses.text
    fine(server)
    kept.close()


# Slow.


def test_a_head_has_a_total_deadline(start):
    # A byte now and then does not put it off: that would be slowloris.
    server = start("--header-timeout", "1")
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nX: ")
        while not select.select([sock], [], [], 0.1)[0]:
            sock.sendall(b"x")
        got = support.receive_all(sock)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert got.count(b"HTTP/1.1") == 1
    server.wait_for_access(r" 408 .*outcome=timeout")
    fine(server)


@pytest.mark.parametrize("sent", [b"", b"GE", b"GET /cgi-bin/fine HTTP/1.1"])
def test_who_says_nothing_is_left(start, sent):
    server = start("--header-timeout", "1", "--keepalive-timeout", "1")
    with server.socket() as sock:
        sock.sendall(sent)
        assert support.receive_all(sock) == b""
    fine(server)


def test_an_idle_connection_is_closed_after_its_time(start):
    server = start("--keepalive-timeout", "1")
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\n\r\n")
        got = support.receive_all(sock)
    assert got.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" not in got.lower()


@pytest.mark.parametrize(
    "begin",
    [
        b"Content-Length: 100\r\n\r\nsome",
        b"Content-Length: 9000000\r\n\r\n" + bytes(500_000),
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: ",
    ],
)
def test_a_body_that_stalls_is_408(start, begin):
    server = start("--body-timeout", "1")
    with server.socket() as sock:
        sock.sendall(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\n" + begin)
        got = support.receive_all(sock)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in got.lower()
    server.wait_for_access(r'"POST /cgi-bin/echo HTTP/1\.1" 408 .*pid=- .*outcome=timeout')
    server.check_idle()
    fine(server)


def test_a_body_that_trickles_is_served(start):
    # Each piece is within the stall that is allowed; the whole takes as long as it takes.
    server = start("--body-timeout", "2")
    with server.socket() as sock:
        sock.sendall(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nConnection: close\r\n\r\n")
        for n in range(12):
            assert not select.select([sock], [], [], 0.3)[0]
            sock.sendall(b"%x" % n)
        got = support.receive_all(sock)
    assert got.startswith(b"HTTP/1.1 200 OK")
    assert b"0123456789ab" in got


def memory_of(pids):
    return sum(map(support.resident, pids))


def test_a_client_that_takes_nothing_is_left_and_costs_little(start):
    server = start("--send-timeout", "2")
    fine(server)
    processes = server.processes()
    before = memory_of(processes)
    socks = [server.socket() for _ in range(4)]
    for sock in socks:
        sock.sendall(b"GET /cgi-bin/floods HTTP/1.1\r\nHost: x\r\n\r\n")
    misbehaviour.wait_for(lambda: len(re.findall(r"floods\[\d+\]: running \d+", server.errors.text)) == 4)
    most = [0]

    def all_left():
        most[0] = max(most[0], memory_of(processes))
        return server.accesses.text.count("outcome=timeout") == 4

    misbehaviour.wait_for(all_left)
    for pid in re.findall(r"floods\[\d+\]: running (\d+)", server.errors.text):
        misbehaviour.wait_until_gone(int(pid))
    assert most[0] - before < 32 * 2**20
    for sock in socks:
        sock.close()
    server.check_idle()
    fine(server)


def test_a_slow_reader_gets_all_of_it_and_its_program_is_free_before(server, directory):
    misbehaviour.program(
        directory / "big",
        "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n'\nhead -c 30000000 /dev/zero\necho \"done\" >&2\n",
    )
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/big HTTP/1.0\r\n\r\n")
        got = len(sock.recv(1000))
        server.wait_for_log(r"big\[\d+\]: done")
        while more := sock.recv(65536):
            got += len(more)
    assert got > 30_000_000
    server.wait_for_access(r"/cgi-bin/big .*outcome=ok")


def test_a_client_that_reads_slowly_is_not_cut_off(start, directory):
    # It takes a little before each send deadline.
    misbehaviour.program(directory / "big", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n'\nhead -c 6000000 /dev/zero\n")
    server = start("--send-timeout", "2")
    with server.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(b"GET /cgi-bin/big HTTP/1.0\r\n\r\n")
        got = 0
        idle = select.poll()
        for _ in range(14):
            while got < 6_000_000 and (more := sock.recv(65536)):
                got += len(more)
                if got % 7 == 0:
                    break
            idle.poll(300)
        while more := sock.recv(65536):
            got += len(more)
    assert got > 6_000_000
    server.wait_for_access(r"/cgi-bin/big .*outcome=ok")


# Errors that the client still reads.


def test_an_error_is_read_though_the_body_was_not(start):
    server = start("--max-body", "1K")
    with server.socket() as sock:
        head = b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
        sock.sendall(head + bytes(3_000_000))
        got = support.receive_all(sock)
    assert got.startswith(b"HTTP/1.1 413 ")
    assert got.endswith(b"</html>\n")


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_over_the_limit_is_413(start, framing):
    server = start("--max-body", "1K")
    fields = {"length": b"Content-Length: 1025\r\n\r\n" + bytes(1025)}
    fields["chunks"] = b"Transfer-Encoding: chunked\r\n\r\n400\r\n" + bytes(1024) + b"\r\n1\r\nx\r\n0\r\n\r\n"
    raw = server.exchange(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\n" + fields[framing])
    assert raw.startswith(b"HTTP/1.1 413 ")
    assert raw.count(b"HTTP/1.1 ") == 1
    raw = server.exchange(
        b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1024\r\n\r\n" + b"y" * 1024
    )
    assert raw.startswith(b"HTTP/1.1 200 ")
    assert b"y" * 1024 in raw


def test_nonsense_of_all_kinds_harms_nobody(server):
    with server.socket() as witness:
        witness.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\n\r\n")
        workers = server.processes()
        for junk in (
            b"\0" * 1000,
            b"\xff" * 1000,
            b"\r\n" * 1000,
            bytes(range(256)) * 40,
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 500,
            b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"x" * 100_000,
        ):
            with server.socket() as sock:
                try:
                    sock.sendall(junk)
                    sock.shutdown(socket.SHUT_WR)
                except (BrokenPipeError, ConnectionResetError, OSError):
                    pass
                assert not re.match(rb"HTTP/1\.1 (2|5[^0]|500)", support.receive_all(sock)), junk[:60]
        got = b""
        while b"fine\n" not in got:
            more = witness.recv(65536)
            assert more
            got += more
    assert set(workers) <= set(server.processes()) | {pid for pid in workers if not Path(f"/proc/{pid}").exists()}
    assert "Traceback" not in server.errors.text
    fine(server)


def test_more_clients_than_programs_at_once_are_served_in_turn(start):
    server = start("--max-programs", "2")
    socks = [server.socket() for _ in range(50)]
    for sock in socks:
        sock.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for sock in socks:
        assert support.receive_all(sock).startswith(b"HTTP/1.1 200 OK")
        sock.close()
