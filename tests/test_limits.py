"""Limits of each client address, over all workers: rates, connections, paces, handshakes."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket

import pytest

from tests import misbehaviour, support
from tests.client_support import ask, client, directory, request, status, tls

__all__ = ["directory"]


@pytest.fixture
def start(serve, directory):
    """Start a server with options."""

    def start(*options, **more):
        return serve("--kill-timeout", "1", *options, cgi_dir=directory, **more)

    return start


# Rates. One a minute: no machine is so slow that another would be allowed meanwhile.


def test_a_rate_is_one_for_all_workers_and_for_each_address(start):
    server = start("--limit-rate", "1/m,burst=3", workers=2)
    answers = [ask(server, request(close=True)) for _ in range(9)]
    assert [status(answer) for answer in answers] == [200] * 4 + [429] * 5
    (after,) = re.findall(rb"(?i)\r\nretry-after: (\d+)\r\n", answers[-1])
    assert 1 <= int(after) <= 60
    assert status(ask(server, request(close=True), "127.0.0.2")) == 200
    server.wait_for_access(r" 429 .*pid=- .*outcome=limited")
    assert server.errors.text.count("429") == 0


def test_a_refused_request_leaves_the_connection_and_a_crowd_gets_no_more(start):
    server = start("--limit-rate", "1/m,burst=3", workers=2)
    with client(server) as sock:
        sock.sendall(request() * 6)
        got = misbehaviour.read_until(sock, b"</html>\n")
        while got.count(b"HTTP/1.1 ") < 6 or not got.endswith(b"</html>\n"):
            got += sock.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"] * 4 + [b"429"] * 2
    assert b"connection: close" not in got.lower()


def test_another_status_is_no_fault_of_ours(start):
    server = start("--limit-rate", "1/m", "--limit-status", "503")
    assert status(ask(server, request(close=True))) == 200
    got = ask(server, request(close=True))
    assert status(got) == 503
    assert b"Retry-After: " in got
    server.wait_for_access(r" 503 .*outcome=limited")
    assert " error " not in server.errors.text


def test_requests_of_a_burst_wait_for_their_turn(start):
    server = start("--limit-rate", "50/s,burst=9,delay")
    with client(server) as sock:
        sock.sendall(request() * 9 + request(close=True))
        got = support.receive_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"] * 10


def test_who_leaves_while_it_waits_for_its_turn_gets_no_program(start):
    server = start("--limit-rate", "1/m,burst=2,delay")
    assert status(ask(server, request(close=True))) == 200
    with client(server) as sock:
        sock.sendall(request("/cgi-bin/fine?held"))
        # The third is refused, so the second has been counted: it is held.
        with client(server) as other:
            other.sendall(request("/cgi-bin/fine?third"))
            assert status(ask(server, request(close=True))) == 429
    server.wait_for_access(r"fine\?held .* 499 .*pid=- .*outcome=client-gone")


def test_drain_waits_for_who_waits_for_its_turn(start):
    server = start("--limit-rate", "1/s,burst=2,delay")
    with client(server) as sock:
        sock.sendall(request() + request())
        got = misbehaviour.read_response(sock)
        server.process.send_signal(signal.SIGQUIT)
        got += support.receive_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"] * 2
    assert server.process.wait(support.PATIENCE) == 0


def test_who_comes_over_a_unix_socket_has_no_address(start, tmp_path):
    start("--limit-rate", "1/m", "--limit-connections", "1", "--listen", f"unix:{tmp_path / 's'}")
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "s"))
            sock.sendall(request(close=True))
            assert status(support.receive_all(sock)) == 200


# Connections.


def test_connections_are_counted_from_their_begin_over_all_workers(start):
    server = start("--limit-connections", "4", workers=2)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            sock = stack.enter_context(client(server))
            sock.sendall(request())
            assert status(misbehaviour.read_response(sock)) == 200
        got = ask(server, request())
        assert status(got) == 429
        assert b"Retry-After: 1\r\n" in got
        assert b"connection: close" in got.lower()
        assert status(ask(server, request(close=True), "127.0.0.7")) == 200
    # And they may come again.
    misbehaviour.wait_for(lambda: status(ask(server, request(close=True))) == 200)
    server.wait_for_access(r" 429 .*outcome=limited")


def test_a_crowd_is_dropped_before_it_costs_anything(start):
    server = start("--limit-connections", "2")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(client(server)) for _ in range(4)]
        # The kernel hands them out in their order: this one is the fifth.
        assert ask(server, request()) == b""
        # Those between were told, or will be.
        for number, sock in enumerate(silent):
            sock.sendall(request(close=True))
            assert status(support.receive_all(sock)) == (200 if number < 2 else 429)


def test_a_killed_worker_leaves_no_count(start):
    server = start("--limit-connections", "2", workers=2)
    server.expected_status = None
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(client(server))
            sock.sendall(request())
            assert status(misbehaviour.read_response(sock)) == 200
        assert status(ask(server, request(close=True))) == 429
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
            misbehaviour.wait_until_gone(pid)
        misbehaviour.wait_for(lambda: status(ask(server, request(close=True))) == 200)


def test_a_worker_has_so_many_connections_and_the_others_wait(start):
    server = start("--max-connections", "2")
    with client(server) as one, client(server) as two, client(server) as three:
        for sock in (one, two):
            sock.sendall(request())
            assert status(misbehaviour.read_response(sock)) == 200
        three.sendall(request())
        one.sendall(request())
        assert status(misbehaviour.read_response(one)) == 200
        assert not select.select([three], [], [], 0)[0]
        two.close()
        assert status(misbehaviour.read_response(three)) == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_oldest_handshake_gives_way(start, certificate, loop):
    cert, key = certificate
    server = start("--tls-cert", str(cert), "--tls-key", str(key), "--max-handshakes", "3", "--loop", loop)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(client(server)) for _ in range(10)]
        with client(server) as sock, tls(sock, cert) as secure:
            secure.sendall(request(close=True))
            assert status(secure.recv(65536)) == 200
        for sock in silent[:8]:
            assert support.receive_all(sock) == b""
        assert not select.select(silent[8:], [], [], 0)[0]


# Paces.


def trickle(sock, pieces):
    """Send a piece now and then until the server has something to say."""
    for piece in pieces:
        if select.select([sock], [], [], 0.1)[0]:
            return
        sock.sendall(piece)


@pytest.mark.parametrize(
    ("framing", "piece"), [(b"Content-Length: 1000000", b"x"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n")]
)
def test_a_body_that_comes_too_slowly_is_408(start, framing, piece):
    # The stall between two pieces is far below its timeout.
    server = start("--min-body-rate", "1000", "--rate-window", "1")
    with client(server) as sock:
        sock.sendall(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        trickle(sock, [piece] * 600)
        got = support.receive_all(sock)
    assert status(got) == 408
    server.wait_for_access(r" 408 .*pid=- .*outcome=timeout")


def test_a_body_that_is_fast_enough_takes_its_time(start):
    server = start("--min-body-rate", "10", "--rate-window", "0.5")
    with client(server) as sock:
        sock.sendall(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 16000\r\n\r\n")
        trickle(sock, [b"x" * 1000] * 16)
        got = support.receive_all(sock)
    assert status(got) == 200
    # In chunks, where the machine is slow.
    assert got.partition(b"\r\n\r\n")[2].count(b"x") == 16000


def test_who_takes_too_slowly_is_left(start):
    server = start("--min-send-rate", "100000", "--rate-window", "1")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(support.PATIENCE)
        sock.connect((server.host, server.port))
        sock.sendall(request("/cgi-bin/floods"))
        poll = select.poll()
        with contextlib.suppress(ConnectionResetError):
            for _ in range(600):
                # It takes something all the time, and so passes the timeout for who takes nothing.
                if not sock.recv(100):
                    break
                poll.poll(50)
                if "outcome=timeout" in server.accesses.text:
                    break
    server.wait_for_access(r"/cgi-bin/floods .*outcome=timeout")


def test_who_takes_fast_gets_all(start, tmp_path):
    (tmp_path / "big").write_bytes(bytes(30_000_000))
    server = start("--min-send-rate", "1000", "--rate-window", "0.5", "--php", f"/files/={tmp_path}",
                   "--php-server", f"unix:{tmp_path / 'none'}")  # fmt: skip
    got = ask(server, request("/files/big", close=True))
    assert got.endswith(bytes(30_000_000))


# Options.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit-rate", "fast"], "--limit-rate fast: not a rate"),
        (["--limit-rate", "0/s"], "not a rate above 0"),
        (["--limit-rate", "5/h"], "not a rate"),
        (["--limit-rate", "5/s,delay"], "delay needs a burst"),
        (["--limit-rate", "5/s,burst=1,burst=2"], "given twice"),
        (["--limit-connections", "0"], "--limit-connections 0: not a whole number"),
        (["--min-body-rate", "1K"], "--min-body-rate 1K"),
        (["--rate-window", "0"], "--rate-window 0"),
        (["--proxy-protocol", "10.0.0.1/8"], "--proxy-protocol: 10.0.0.1/8 has host bits set"),
        (["--proxy-protocol", "127.0.0.1:1=::1"], "127.0.0.1:1 is not listened on"),
        (["--proxy-protocol", "here=::1"], "not an address"),
        (["--proxy-protocol", "::1", "--proxy-protocol", "127.0.0.1:8000=::1"], "some name an address"),
        (["--real-ip", "proxy.example"], "--real-ip: 'proxy.example'"),
        (["--real-ip-header", "Forwarded"], "nobody is believed"),
        (["--real-ip", "::1", "--real-ip-header", "a b"], "--real-ip-header a b: no name"),
        (["--auth", "/admin/"], "--auth /admin/: the file is missing"),
        (["--auth", "admin=/etc/passwd"], "no prefix of a path"),
        (["--auth", "/=/no/such/file"], "No such file"),
        (["--auth", "/=/etc/passwd"], "line 1: the password of root is not bcrypt"),
        (["--auth", "/=/dev/null", "--auth", "/=/dev/null"], "given twice"),
        (["--auth", "/=/dev/null", "--auth-realm", 'say "x"'], "--auth-realm"),
    ],
)
def test_a_mistake_is_one_line(directory, options, words):
    from tests.test_options import refused

    assert words in refused("--cgi-dir", directory, *options)
