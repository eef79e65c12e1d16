"""Connections to a FastCGI server: how many, who gets the next, and what becomes of a request when one breaks."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import deque

import pytest

from fcgi_pool.protocol import ProtocolStatus, RecordType
from tests import misbehaviour, support
from tests.fcgi_server import PAGE, FcgiServer, record
from tests.test_cgi_output import Said
from tests.test_fastcgi import ask, said

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A front and the server behind it, which can serve one connection."""
    peer = FcgiServer()
    options = ["--fastcgi", f"/app/={peer.address}", "--connections", "1"]
    server = support.start_server("--debug", *options, temp_dir=tmp_path_factory.mktemp("spool"))
    try:
        yield server, peer
        server.finish()
    finally:
        server.process.kill()
        server.process.wait()
        peer.close()


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared[0])


@pytest.fixture
def peer(shared, server):
    yield shared[1]
    assert shared[1].is_quiet()


@pytest.fixture
def behind():
    """A FastCGI server for a front of the test's own."""
    peer = FcgiServer()
    yield peer
    peer.close()


@pytest.fixture
def start(serve, behind):
    """Start a front of the test's own."""

    def start(*options, **more):
        return serve("--debug", "--fastcgi", f"/app/={behind.address}", *options, **more)

    return start


def request(line, *fields, body=b"", close=False):
    """The bytes of a request."""
    fields = ["Host: a.example", *fields, *(["Connection: close"] if close else [])]
    fields += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode() + body


def follows_on_kept(server, peer, second):
    """Have the bytes `second` of a request follow another one on the connection; return client and connection.

    The client sends both at once, so that the second comes at the moment at which the first has been answered.
    """
    client = server.socket()
    client.sendall(request("GET /app/first") + second)
    call = peer.take()
    assert call.params["PATH_INFO"] == b"/first"
    call.answer()
    got = misbehaviour.read_response(client)
    assert got.startswith(b"HTTP/1.1 200 ")
    return client, call.connection


def in_line(server):
    """Return a client whose request /app/second the front has read.

    It came together with one that is answered before it, without the server behind.
    """
    client = server.socket()
    client.sendall(request("OPTIONS *") + request("GET /app/second", close=True))
    misbehaviour.read_response(client)
    return client


# A connection that breaks.


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_lost_on_a_kept_connection_is_asked_again_on_a_new_one(server, peer, method):
    client, connection = follows_on_kept(server, peer, request(f"{method} /app/second", close=True))
    connection.wait()
    connection.close()
    call = peer.take()
    assert call.connection is not connection
    assert call.params["PATH_INFO"] == b"/second"
    call.answer()
    got = said(client)
    assert got.status == 200
    server.wait_for_access(rf'"{method} /app/second HTTP/1\.1" 200 .* exit=0 outcome=ok')
    assert "error" not in server.errors.text


@pytest.mark.parametrize("reads", [False, True], ids=["unread", "read"])
def test_a_get_is_asked_again_once_and_no_more(server, peer, reads):
    client, connection = follows_on_kept(server, peer, request("GET /app/second", close=True))
    if reads:
        peer.take().close()
    else:
        connection.wait()
        connection.close()
    peer.take().close()
    got = said(client)
    assert got.status == 502
    assert b"gave no answer" in got.body
    assert peer.is_quiet()


@pytest.mark.parametrize("reads", [False, True], ids=["unread", "read"])
def test_a_put_is_asked_again_with_its_body(server, peer, reads):
    body = bytes(range(256)) * 2000
    client, connection = follows_on_kept(server, peer, request("PUT /app/second", body=body, close=True))
    if reads:
        peer.take().close()
    else:
        connection.wait()
        connection.close()
    call = peer.take()
    call.answer()
    assert bytes(call.body) == body
    assert said(client).status == 200


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("body", [b"", b"x"], ids=["without a body", "with a body"])
def test_a_post_gets_a_new_connection_and_is_not_asked_again(server, peer, method, body):
    """A kept one may be closed while it is on its way; its place is the new one's, since there is but one."""
    client, connection = follows_on_kept(server, peer, request(f"{method} /app/second", body=body, close=True))
    call = peer.take()
    assert call.connection is not connection
    call.close()
    got = said(client)
    assert got.status == 502
    assert b"gave no answer" in got.body
    server.wait_for_log(r" error \[[^]]+\] 502 /app at /app/ \(unix:\S+\) gave no answer: ")
    server.wait_for_access(rf'"{method} /app/second HTTP/1\.1" 502 .* outcome=failed')
    assert peer.is_quiet()


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (record(RecordType.STDOUT, b"C"), 502),
        (record(RecordType.STDOUT, b"Content-Type: a/b\r\n"), 502),
        (record(RecordType.STDERR, b"about to die\n"), 502),
        (record(RecordType.STDOUT, b"whole")[:3], 502),
        (record(RecordType.STDOUT, b"Content-Type: a/b\r\nContent-Length: 9\r\n\r\nbegun"), 200),
        (record(RecordType.STDOUT, b"Content-Type: a/b\r\n\r\nbegun"), 200),
        (record(RecordType.STDOUT, PAGE) + record(RecordType.STDOUT), 200),
    ],
    ids=["a byte", "half a header", "stderr", "half a record", "with a length", "without", "all but the end"],
)
def test_after_the_first_byte_nothing_is_asked_again(server, peer, begun, status):
    client, _ = follows_on_kept(server, peer, request("GET /app/second", close=True))
    call = peer.take()
    call.send(begun)
    call.close()
    got = said(client)
    assert got.status == status
    if status == 200:
        assert not got.complete
        server.wait_for_log(r" error \[[^]]+\] response cut off: /app at /app/ .* ended before its response did")
        server.wait_for_access(r'"GET /app/second HTTP/1\.1" 200 .* outcome=truncated')
    assert peer.is_quiet()


def test_a_reset_over_tcp(serve):
    peer = FcgiServer(socket.AF_INET)
    try:
        server = serve("--debug", "--fastcgi", f"/app/={peer.address}", "--connections", "1")
        client, connection = follows_on_kept(server, peer, request("GET /app/second", close=True))
        connection.wait()
        misbehaviour.vanish(connection.socket)
        connection.close()
        peer.take().answer()
        assert said(client).status == 200
        client, _ = follows_on_kept(server, peer, request("POST /app/second", body=b"x", close=True))
        call = peer.take()
        misbehaviour.vanish(call.connection.socket)
        call.close()
        assert said(client).status == 502
        assert peer.is_quiet()
    finally:
        peer.close()


def test_a_server_that_closes_idle_connections(server, peer):
    """It says keep, and closes all the same: nobody notices."""
    for _ in range(20):
        client = ask(server)
        call = peer.take()
        call.answer()
        call.close()
        assert said(client).status == 200


# A server that turns requests away.


@pytest.mark.parametrize("status", [ProtocolStatus.OVERLOADED, ProtocolStatus.CANT_MPX_CONN])
@pytest.mark.parametrize(("line", "body"), [("GET /app/", b""), ("POST /app/", b"the body")])
def test_turned_away_once_is_asked_again(server, peer, status, line, body):
    client = ask(server, line, body)
    first = peer.take()
    first.end(0, status)
    second = peer.take()
    second.answer()
    assert bytes(second.body) == body
    assert second.connection is not first.connection
    assert said(client).status == 200


@pytest.mark.parametrize("status", [ProtocolStatus.OVERLOADED, ProtocolStatus.CANT_MPX_CONN])
def test_turned_away_twice_is_503(server, peer, status):
    client = ask(server, "POST /app/", b"the body")
    for _ in range(2):
        call = peer.take()
        call.stderr(b"no worker boots: out of luck\n")
        call.end(0, status)
    got = said(client)
    assert got.status == 503
    assert int(got.one("retry-after")) > 0
    assert b"out of luck" in got.body
    server.wait_for_log(r" script \[[^]]+\] app\[-\]: no worker boots: out of luck")
    server.wait_for_access(r'"POST /app/ HTTP/1\.1" 503 .* outcome=failed')
    assert peer.is_quiet()


def test_a_role_that_is_not_served_is_500(server, peer):
    client = ask(server)
    peer.take().end(0, ProtocolStatus.UNKNOWN_ROLE)
    got = said(client)
    assert got.status == 500
    assert b"UNKNOWN_ROLE" in got.body
    assert peer.is_quiet()


def test_a_status_that_nobody_knows_is_502(server, peer):
    client = ask(server)
    peer.take().end(3, 77)
    assert said(client).status == 502


# A server that is not there.


@pytest.mark.parametrize("leaves_socket", [False, True], ids=["no socket", "nobody listens"])
@pytest.mark.parametrize("options", [[], ["--connections", "1"]], ids=["each its own", "kept"])
def test_no_server_is_503_until_it_is_back(start, behind, options, leaves_socket):
    server = start(*options)
    client = ask(server)
    behind.take().answer()
    assert said(client).status == 200
    behind.stop(leaves_socket)
    for _ in range(3):
        got = said(ask(server, "POST /app/", b"x"))
        assert got.status == 503
        assert int(got.one("retry-after")) > 0
        assert (b"nobody listens there" if leaves_socket else b"there is no such socket") in got.body
    server.wait_for_log(r" error \[[^]]+\] 503 /app/ \(unix:\S+\) cannot be reached: ")
    if leaves_socket:
        os.unlink(behind.address.removeprefix("unix:"))
    behind.listen()
    for _ in range(3):
        client = ask(server)
        behind.take().answer()
        assert said(client).status == 200


def test_a_server_that_goes_with_requests_under_way(start, behind):
    server = start("--connections", "2")
    clients = [ask(server, f"POST /app/{number}", b"x") for number in range(3)]
    for _ in range(2):
        behind.take()
    behind.stop()
    assert sorted(said(client).status for client in clients) == [502, 502, 503]


def test_no_server_over_tcp(serve):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    server = serve("--debug", "--fastcgi", f"/app/=tcp:127.0.0.1:{port}", "--connections", "1")
    for _ in range(2):
        got = said(ask(server))
        assert got.status == 503
        assert b"nobody listens there" in got.body


def test_a_socket_whose_queue_is_full_is_waited_for(start, behind):
    behind.stop()
    behind.listen(backlog=0)
    server = start()
    clients = [ask(server, f"GET /app/{number}") for number in range(8)]
    for _ in clients:
        behind.take().answer()
    assert [said(client).status for client in clients] == [200] * 8


# Silence.


def test_a_silent_server_is_504(start, behind):
    server = start("--script-timeout", "1", "--connections", "1")
    client = ask(server)
    call = behind.take()
    got = said(client)
    assert got.status == 504
    assert b"was silent for 1 s (--script-timeout)" in got.body
    call.wait_for_close()
    assert call.aborted
    server.wait_for_access(r'"GET /app/ HTTP/1\.1" 504 .* outcome=timeout')
    # Its place is free again.
    client = ask(server)
    behind.take().answer()
    assert said(client).status == 200


def test_silence_within_a_response_cuts_it_off(start, behind):
    server = start("--script-timeout", "1", "--connections", "1")
    client = ask(server)
    call = behind.take()
    call.stdout(b"Content-Type: a/b\r\n\r\nbegun")
    got = said(client)
    assert (got.status, got.complete) == (200, False)
    call.wait_for_close()
    server.wait_for_log(r"response cut off: .* was silent for 1 s")
    server.wait_for_access(r'"GET /app/ HTTP/1\.1" 200 .* outcome=timeout')


def test_who_speaks_now_and_then_is_not_silent(start, behind):
    server = start("--script-timeout", "2")
    client = ask(server)
    call = behind.take()
    call.stdout(b"Content-Type: a/b\r\n\r\n")
    idle = select.poll()
    for number in range(8):
        idle.poll(400)
        call.stdout(b"%d" % number)
    call.end()
    assert said(client).body == b"01234567"


def test_who_reads_now_and_then_is_not_silent(start, behind):
    """A body that is taken slowly takes as long as it takes."""
    server = start("--script-timeout", "2")
    body = bytes(8 * MIB)
    client = ask(server, "POST /app/", body)
    connection = behind.accept()
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    idle = select.poll()
    for _ in range(8):
        idle.poll(400)
        for _ in range(16):
            connection.pull(65536)
    call = behind.take()
    assert len(call.body) == len(body)
    call.answer()
    assert said(client).status == 200


# The client.


@pytest.mark.parametrize("how", [misbehaviour.vanish, misbehaviour.leave])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_aborts_the_request(server, peer, how, begun):
    client = ask(server)
    call = peer.take()
    if begun:
        call.stdout(b"Content-Type: a/b\r\n\r\nbegun")
        misbehaviour.read_until(client, b"begun\r\n")
    how(client)
    call.wait_for_close()
    assert call.aborted
    server.wait_for_access(r'"GET /app/ HTTP/1\.1" 499 .* outcome=client-gone')
    client = ask(server)
    peer.take().answer()
    assert said(client).status == 200


def test_a_client_that_leaves_in_mid_upload_to_the_server(server, peer):
    """What is left of the body never comes; an ABORT only if it happens to be between two records."""
    body = bytes(16 * MIB)
    client = ask(server, "POST /app/", body)
    call = peer.take_begun()
    misbehaviour.vanish(client)
    call.wait_for_close()
    assert len(call.body) < len(body)
    server.wait_for_access(r'"POST /app/ HTTP/1\.1" 499 .* outcome=client-gone')


def test_a_client_that_leaves_the_line(server, peer):
    first = ask(server)
    call = peer.take()
    second = in_line(server)
    third = ask(server, "GET /app/third")
    misbehaviour.vanish(second)
    server.wait_for_access(r'"GET /app/second HTTP/1\.1" 499 .* exit=- outcome=client-gone')
    call.answer()
    call = peer.take()
    assert call.params["PATH_INFO"] == b"/third"
    call.answer()
    assert [said(client).status for client in (first, third)] == [200, 200]


def test_a_client_that_leaves_while_a_flood_comes(server, peer):
    client = ask(server)
    call = peer.take()
    call.stdout(b"Content-Type: a/b\r\n\r\n")
    assert client.recv(100)
    misbehaviour.vanish(client)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            call.stdout(bytes(MIB))
    call.close()
    server.wait_for_access(r'"GET /app/ HTTP/1\.1" 499 .* outcome=client-gone')


# How many, and whose turn.


def test_who_waits_too_long_is_503(start, behind):
    server = start("--connections", "1", "--queue-timeout", "1")
    first = ask(server, "GET /app/first")
    call = behind.take()
    got = said(ask(server, "GET /app/second"))
    assert got.status == 503
    assert int(got.one("retry-after")) > 0
    assert b"1 s passed (--queue-timeout) and no connection to /app at /app/ " in got.body
    server.wait_for_access(r'"GET /app/second HTTP/1\.1" 503 .* outcome=timeout')
    call.answer()
    assert said(first).status == 200
    assert behind.is_quiet()


def apart(server, count=1):
    """Return `count` clients of each of two workers, and the workers in the same order.

    A worker that is stopped accepts nobody; one that has answered has accepted.
    """
    clients = []
    workers = server.workers()
    for other in reversed(workers):
        os.kill(other, signal.SIGSTOP)
        try:
            support.wait_until(lambda other=other: "" if support.state(other) == "T" else "not stopped yet")
            for _ in range(count):
                clients.append(server.socket())
                clients[-1].sendall(request("OPTIONS *"))
                misbehaviour.read_response(clients[-1])
        finally:
            os.kill(other, signal.SIGCONT)
    return clients, workers


@pytest.mark.parametrize("count", [1, 3])
def test_connections_are_as_many_as_told_and_none_waits_for_a_free_one(start, behind, count):
    """Over two workers: all of them are busy as long as somebody waits, and there is never one more."""
    server = start("--connections", str(count), workers=2)
    each, crowd = 5, 40
    clients, _ = apart(server, crowd // 2)
    for client in clients:
        client.sendall(request("GET /app/") * (each - 1) + request("GET /app/", close=True))
    busy = deque(behind.take() for _ in range(count))
    for _ in range(each * crowd - count):
        busy.popleft().answer()
        busy.append(behind.take())
    while busy:
        busy.popleft().answer()
    for client in clients:
        with client:
            assert support.receive_all(client).count(b"HTTP/1.1 200 OK\r\n") == each
    assert behind.most == count


def test_nobody_waits_for_an_idle_connection(start, behind):
    """One connection, and two workers that want it in turn."""
    server = start("--connections", "1", workers=2)
    clients, _ = apart(server)
    for _ in range(50):
        for client in clients:
            client.sendall(request("GET /app/"))
            behind.take().answer()
            assert Said(misbehaviour.read_response(client)).body == b"fine\n"
    assert behind.most == 1
    for client in clients:
        client.close()


def test_a_busy_worker_lets_the_other_have_its_turn(start, behind):
    """One worker always has another request for the one connection; the other's is served before all of them."""
    server = start("--connections", "1", workers=2)
    (many, one), _ = apart(server)
    many.sendall(request("GET /app/many") * 3000)
    call = behind.take()
    one.sendall(request("GET /app/one"))
    served = 0
    while call.params["PATH_INFO"] != b"/one":
        call.answer()
        served += 1
        assert served < 3000
        call = behind.take()
    call.answer()
    assert Said(misbehaviour.read_response(one)).body == b"fine\n"
    misbehaviour.vanish(many)
    one.close()
    assert behind.most == 1


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_worker_that_is_killed_gives_its_connections_back(start, behind, busy):
    server = start("--connections", "1", workers=2)
    (first, second), (worker, _) = apart(server)
    first.sendall(request("GET /app/first"))
    call = behind.take()
    if not busy:
        call.answer()
        misbehaviour.read_response(first)
    os.kill(worker, signal.SIGKILL)
    first.close()
    for _ in range(10):
        second.sendall(request("GET /app/second"))
        call = behind.take()
        assert call.params["PATH_INFO"] == b"/second"
        call.answer()
        assert Said(misbehaviour.read_response(second)).body == b"fine\n"
    second.close()
    server.wait_for_log(rf"worker \d+ \(pid {worker}\) died: .*; it is replaced at once")
    assert behind.most == 1
    misbehaviour.wait_for(lambda: len(server.workers()) == 2)
    client = ask(server)
    behind.take().answer()
    assert said(client).status == 200


def test_a_worker_that_waits_for_a_connection_and_is_killed(start, behind):
    """It held none and was next in line: nobody waits for it."""
    server = start("--connections", "1", workers=2)
    (first, second), (_, worker) = apart(server)
    first.sendall(request("GET /app/first"))
    call = behind.take()
    second.sendall(request("GET /app/second"))
    os.kill(worker, signal.SIGKILL)
    server.wait_for_log(rf"\(pid {worker}\) died")
    call.answer()
    misbehaviour.read_response(first)
    for _ in range(3):
        first.sendall(request("GET /app/first"))
        behind.take().answer()
        misbehaviour.read_response(first)
    for client in (first, second):
        client.close()
    assert behind.most == 1
    misbehaviour.wait_for(lambda: len(server.workers()) == 2)


def test_quit_ends_what_is_under_way_and_what_waits(start, behind):
    server = start("--connections", "1")
    first = ask(server, "GET /app/first")
    call = behind.take()
    second = in_line(server)
    server.process.send_signal(signal.SIGQUIT)
    with pytest.raises(ConnectionError):
        while True:
            server.socket().close()
    call.answer()
    behind.take().answer()
    assert [said(client).status for client in (first, second)] == [200, 200]
    assert server.process.wait(support.PATIENCE) == 0


def test_without_a_number_each_request_has_a_connection_of_its_own(start, behind):
    server = start()
    clients = [ask(server, f"GET /app/{number}") for number in range(40)]
    calls = [behind.take() for _ in clients]
    assert behind.most == 40
    for call in calls:
        call.answer()
    assert [said(client).status for client in clients] == [200] * 40


def test_what_the_log_calls_the_server(start, behind):
    server = start()
    client = ask(server)
    behind.take().close()
    got = said(client)
    assert got.status == 502
    match = server.wait_for_log(r" error \[([^]]+)\] 502 /app at /app/ \(unix:(\S+)\) gave no answer: ")
    assert match[1] == got.one("x-request-id")
    assert f"unix:{match[2]}" == behind.address
