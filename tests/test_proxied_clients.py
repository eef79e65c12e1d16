"""Clients behind proxies: who they are by a PROXY header, or by fields of a request, and whose word is taken."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

import pytest

from tests import misbehaviour, support
from tests.client_support import ask, client, directory, request, status, tls, told
from tests.fcgi_server import FcgiServer
from tests.test_proxy_header import inet, v2

__all__ = ["directory"]

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 50000 443\r\n"
V2 = v2(1, 0x11, inet(), b"\x01\x00\x08http/1.1")
ENV = request("/cgi-bin/env", close=True)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def shared(request, directory, tmp_path_factory):
    options = ("--proxy-protocol", "127.0.0.1", "--loop", request.param)
    with misbehaviour.shared_server(directory, tmp_path_factory.mktemp("spool"), *options) as server:
        yield server


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


@pytest.fixture
def start(serve, directory):
    """Start a server with options."""

    def start(*options, **more):
        return serve("--kill-timeout", "1", *options, cgi_dir=directory, **more)

    return start


def ends(env):
    return tuple(env.get(name) for name in ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_ADDR", "SERVER_PORT"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (V1, ("192.0.2.1", "50000", "198.51.100.2", "443")),
        (V1_IPV6, ("2001:db8::1", "50000", "2001:db8::2", "443")),
        (V2, ("192.0.2.1", "50000", "198.51.100.2", "443")),
        (v2(1, 0x21, inet("2001:db8::1", "2001:db8::2")), ("2001:db8::1", "50000", "2001:db8::2", "443")),
    ],
)
def test_the_client_that_a_header_names(server, header, expected):
    assert ends(told(ask(server, header + ENV))) == expected
    server.wait_for_access(rf"^{expected[0]} - - .* 200 ")


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", v2(0, 0), v2(0, 0x11, inet()), v2(1, 0), v2(1, 0x31, bytes(216))]
)
def test_a_header_that_names_no_client(server, header):
    env = told(ask(server, header + ENV))
    assert env["REMOTE_ADDR"] == env["SERVER_ADDR"] == "127.0.0.1"
    assert env["SERVER_PORT"] == str(server.port)


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_may_come_in_any_pieces(server, header):
    with client(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header + ENV:
            sock.sendall(bytes([byte]))
        assert told(support.receive_all(sock))["REMOTE_ADDR"] == "192.0.2.1"


@pytest.mark.parametrize(
    "raw",
    [
        ENV, V1[:-2] + b"\n" + ENV, b"\x16\x03\x01" + bytes(300), v2(1, 0x11, size=11), v2(2, 0x11, inet()) + ENV,
        V1 + V1 + ENV,
    ],
)  # fmt: skip
def test_what_does_not_begin_with_a_header_is_closed(server, raw):
    got = ask(server, raw)
    # The last has one; what follows it is no request.
    assert status(got) == (400 if raw.startswith(V1) else 0)


def test_a_header_is_told_of_once_when_it_is_missing(start):
    server = start("--proxy-protocol", "127.0.0.1")
    for _ in range(5):
        assert ask(server, ENV) == b""
    assert told(ask(server, V1 + ENV))
    words = r"warning 127\.0\.0\.1 sent no header of the PROXY protocol: it does not begin with PROXY; its connection"
    server.wait_for_log(words)
    assert len(support.warnings_in(server.errors.text)) == 1


def test_who_checks_whether_we_live_is_not_told_of(server):
    for raw in (b"", b"PROXY TCP4", v2(0, 0)):
        with client(server) as sock:
            sock.sendall(raw)
    server.check_idle()
    assert not support.warnings_in(server.errors.text)


def test_a_header_has_a_deadline(server):
    with client(server) as sock:
        sock.sendall(V1[:20])
        assert support.receive_all(sock) == b""


def test_a_header_of_somebody_else_is_not_taken(start):
    server = start("--proxy-protocol", "127.0.0.1,127.0.0.8/30")
    assert ask(server, V1 + ENV, "127.0.0.7") == b""
    server.wait_for_log(r"warning 127\.0\.0\.7 is no trusted proxy")
    assert told(ask(server, V1 + ENV, "127.0.0.9"))["REMOTE_ADDR"] == "192.0.2.1"


def test_a_header_comes_before_tls(start, certificate):
    cert, key = certificate
    server = start("--tls-cert", str(cert), "--tls-key", str(key), "--proxy-protocol", "127.0.0.1")
    for header in (V1, V2):
        with client(server) as sock:
            # In one segment with what follows it: nothing of that is lost.
            sock.sendall(header)
            with tls(sock, cert) as secure:
                secure.sendall(ENV)
                env = told(support.receive_all(secure))
        assert ends(env) == ("192.0.2.1", "50000", "198.51.100.2", "443")
        assert env["HTTPS"] == "on"


def test_one_listener_of_several(start, tmp_path):
    path = tmp_path / "s"
    server = start("--listen", f"unix:{path}", "--proxy-protocol", f"unix:{path}=unix:")
    assert told(ask(server, ENV))["REMOTE_ADDR"] == "127.0.0.1"
    assert status(ask(server, V1 + ENV)) == 400
    for raw, expected in ((V2 + ENV, 200), (ENV, 0)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(raw)
            got = support.receive_all(sock)
        assert status(got) == expected
    server.wait_for_access(r"^192\.0\.2\.1 ")


def test_limits_see_the_client_behind_the_header(start):
    server = start("--proxy-protocol", "127.0.0.1", "--limit-rate", "1/m", "--limit-connections", "1", workers=2)
    assert status(ask(server, V1 + ENV)) == 200
    assert status(ask(server, V1 + ENV)) == 429
    assert status(ask(server, V1_IPV6 + ENV)) == 200
    # Another address of the same /64.
    assert status(ask(server, V1_IPV6.replace(b"db8::1", b"db8::ffff") + ENV)) == 429
    assert status(ask(server, V1_IPV6.replace(b"db8::1", b"db8:0:1::") + ENV)) == 200
    third = V1.replace(b"192.0.2.1", b"192.0.2.3")
    with client(server) as one:
        one.sendall(third + request())
        assert status(misbehaviour.read_response(one)) == 200
        assert status(ask(server, third + ENV)) == 429
        with client(server) as two:
            two.sendall(third)
            with client(server) as three:
                three.sendall(V1.replace(b"192.0.2.1", b"192.0.2.4") + request())
                assert status(misbehaviour.read_response(three)) == 200


def test_who_is_turned_away_behind_the_header_is_counted_back_once(start):
    """One connection is served, one is told that it is too many, and all the others are closed."""
    server = start("--proxy-protocol", "127.0.0.1", "--limit-connections", "1", "--header-timeout", "600")
    with contextlib.ExitStack() as stack:
        served, *others = [stack.enter_context(client(server)) for _ in range(8)]
        served.sendall(V1 + request())
        assert status(misbehaviour.read_response(served)) == 200
        for other in others:
            other.sendall(V1)
        closed: set[socket.socket] = set()
        while len(closed) < len(others) - 1:
            ended, _, _ = select.select([other for other in others if other not in closed], [], [], support.PATIENCE)
            assert ended, f"{len(closed)} of {len(others)} were closed"
            assert all(other.recv(1) == b"" for other in ended)
            closed.update(ended)
        served.sendall(request())
        assert status(misbehaviour.read_response(served)) == 200


# Fields of requests.


def asked(server, *fields, address="127.0.0.1"):
    return told(ask(server, request("/cgi-bin/env", *fields, close=True), address))


def test_the_client_that_a_trusted_proxy_names(start):
    server = start("--real-ip", "127.0.0.1,10.0.0.0/8", "--real-ip", "2001:db8::/32")
    env = asked(server, "X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.7", "X-Forwarded-Proto: https")
    assert env["REMOTE_ADDR"] == "192.0.2.1"
    assert "REMOTE_PORT" not in env
    assert env["SERVER_PORT"] == str(server.port)
    assert env["REQUEST_SCHEME"] == "https"
    assert env["HTTPS"] == "on"
    server.wait_for_access(r"^192\.0\.2\.1 - - ")
    assert asked(server, "X-Forwarded-For: [2001:db9::1]:99")["REMOTE_PORT"] == "99"
    env = asked(server, "X-Forwarded-For: unknown")
    assert env["REMOTE_ADDR"] == "127.0.0.1"
    assert "HTTPS" not in env
    env = asked(server, "X-Forwarded-Proto: https")
    assert (env["REMOTE_ADDR"], env["HTTPS"]) == ("127.0.0.1", "on")
    assert env["REMOTE_PORT"]


def test_nobody_else_is_believed(start):
    server = start("--real-ip", "127.0.0.2")
    env = asked(server, "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "Forwarded: for=192.0.2.1")
    assert env["REMOTE_ADDR"] == "127.0.0.1"
    assert "HTTPS" not in env
    env = asked(server, "X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.7", address="127.0.0.2")
    assert env["REMOTE_ADDR"] == "192.0.2.1"


def test_a_proxy_over_a_unix_socket(start, tmp_path):
    raw = request("/cgi-bin/env", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", close=True)
    for number, (options, expected) in enumerate([(("--real-ip", "unix:"), "192.0.2.1"), ((), "127.0.0.1")]):
        path = tmp_path / f"s{number}"
        start("--listen", f"unix:{path}", *options)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(raw)
            env = told(support.receive_all(sock))
        assert env["REMOTE_ADDR"] == expected
        assert ("HTTPS" in env) is (expected == "192.0.2.1")


@pytest.mark.parametrize(
    ("header", "line"),
    [("Forwarded", 'Forwarded: for=6.6.6.6, For="192.0.2.1:80";proto=HTTPS'), ("X-Real-IP", "x-real-ip: 192.0.2.1")],
)
def test_the_field_can_be_another(start, header, line):
    server = start("--real-ip", "127.0.0.0/8", "--real-ip-header", header)
    env = asked(server, line, "X-Forwarded-For: 6.6.6.6")
    assert env["REMOTE_ADDR"] == "192.0.2.1"
    assert ("HTTPS" in env) is (header == "Forwarded")


@pytest.mark.parametrize("connections", [(), ("--connections", "1")])
def test_one_connection_carries_requests_of_many_clients(serve, connections):
    peer = FcgiServer()
    try:
        server = serve("--fastcgi", f"/app/={peer.address}", *connections, "--real-ip", "127.0.0.1")
        with client(server) as sock:
            for number in [*range(1, 20), 1, 1]:
                sock.sendall(request("/app/", f"X-Forwarded-For: 192.0.2.{number}"))
                call = peer.take()
                assert call.params["REMOTE_ADDR"] == b"192.0.2.%d" % number
                assert [name for name, _ in call.pairs].count(b"REMOTE_ADDR") == 1
                call.answer()
                assert status(misbehaviour.read_response(sock)) == 200
                server.wait_for_access(rf"^192\.0\.2\.{number} ")
            sock.sendall(request("/app/"))
            call = peer.take()
            assert call.params["REMOTE_ADDR"] == b"127.0.0.1"
            call.answer()
            misbehaviour.read_response(sock)
    finally:
        server.stop()
        peer.close()


def test_limits_see_the_client_that_a_request_names(start):
    server = start("--real-ip", "127.0.0.1", "--limit-rate", "1/m,burst=1", "--limit-connections", "1", workers=2)

    def line(name):
        return f"X-Forwarded-For: {name}"

    with client(server) as proxy:
        for name, expected in [("192.0.2.1", 200), ("192.0.2.1", 200), ("192.0.2.1", 429), ("192.0.2.2", 200)]:
            proxy.sendall(request("/cgi-bin/fine", line(name)))
            assert status(misbehaviour.read_response(proxy)) == expected
        # A proxy has as many connections as it likes; of each client so many requests are answered at once.
        with client(server) as other:
            other.sendall(request("/cgi-bin/waits?one", line("192.0.2.3")))
            server.wait_for_log(r"waits\[\d+\]: running")
            proxy.sendall(request("/cgi-bin/fine", line("192.0.2.3")))
            assert status(misbehaviour.read_response(proxy)) == 429
            proxy.sendall(request("/cgi-bin/fine", line("192.0.2.4")))
            assert status(misbehaviour.read_response(proxy)) == 200
        server.wait_for_access(r"^192\.0\.2\.3 .*waits\?one .*outcome=client-gone")
        proxy.sendall(request("/cgi-bin/fine", line("192.0.2.3")))
        assert status(misbehaviour.read_response(proxy)) == 200


def test_the_header_and_the_fields_of_one_proxy_behind_another(start):
    # The first in the way speaks the PROXY protocol and names the second, whose fields name the client.
    server = start("--proxy-protocol", "127.0.0.1", "--real-ip", "192.0.2.1")
    raw = request("/cgi-bin/env", "X-Forwarded-For: 203.0.113.9", close=True)
    assert told(ask(server, V1 + raw))["REMOTE_ADDR"] == "203.0.113.9"
    assert told(ask(server, V1.replace(b"192.0.2.1", b"192.0.2.2") + raw))["REMOTE_ADDR"] == "192.0.2.2"


def test_a_reset_in_the_header_harms_nobody(server):
    for end in (0, 5, len(V2) - 1):
        with client(server) as sock:
            sock.sendall(V2[:end])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert told(ask(server, V2 + ENV))["REMOTE_ADDR"] == "192.0.2.1"
