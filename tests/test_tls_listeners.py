"""Listeners with TLS and without in one server: where each is, what each says, reload, upgrade, systemd, proxies."""

from __future__ import annotations

import re
import signal
import socket
import ssl

import pytest

from tests import misbehaviour, support
from tests.client_support import directory, request, status, told
from tests.reload_support import site
from tests.test_reload import free_port
from tests.test_systemd import giving, listener
from tests.tls_support import Authority, asked, client_context, connected, ports, serial_of, shown

__all__ = ["directory"]

PLAIN = b"The plain HTTP request was sent to HTTPS port"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def pair(authority):
    return authority.issue("localhost")


@pytest.fixture
def gate(tmp_path):
    gate = misbehaviour.Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def sites(tmp_path, gate):
    with site(tmp_path, gate) as start:
        yield start


def tables(pair, *listen, more=""):
    """The table [tls], as the end of [server]."""
    named = ", ".join(f'"{address}"' for address in listen)
    return f'[tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\nlisten = [{named}]\n{more}'


def plainly(port, raw):
    """What comes back without TLS."""
    with socket.create_connection(("127.0.0.1", port), support.PATIENCE) as client:
        client.sendall(raw)
        return support.receive_all(client)


# Plain beside TLS.


def test_each_listener_says_what_it_is(serve, directory, pair):
    server = serve(*pair.options, "--tls-listen", "127.0.0.1:0", cgi_dir=directory)
    known = ports(server)
    plain = told(plainly(known["http"], request("/cgi-bin/env", close=True)))
    secure = told(asked(server, "/cgi-bin/env", port=known["https"]))
    assert ("HTTPS" in plain, plain["REQUEST_SCHEME"], plain["SERVER_PORT"]) == (False, "http", str(known["http"]))
    assert (secure["HTTPS"], secure["REQUEST_SCHEME"], secure["SERVER_PORT"]) == ("on", "https", str(known["https"]))
    assert not [name for name in plain if name.startswith("SSL_")]


def test_tls_alone_listens_nowhere_else(serve, directory, pair):
    options = ["--tls-listen", "127.0.0.1:0", "--tls-listen", "[::1]:0"]
    server = serve(*pair.options, *options, cgi_dir=directory, listen="")
    assert re.findall(r"listening on (\w+)://(?:127|\[::1)", server.errors.text) == ["https", "https"]
    assert status(asked(server)) == 200


def test_a_unix_socket_has_none(serve, directory, pair, tmp_path):
    server = serve(*pair.options, "--listen", f"unix:{tmp_path}/socket", cgi_dir=directory)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        client.sendall(request(close=True))
        assert status(support.receive_all(client)) == 200
    assert status(asked(server)) == 200


def test_plain_requests_are_sent_to_https(serve, directory, pair, tmp_path):
    config = tmp_path / "gateway.toml"
    config.write_text(f"""
[server]
listen = ["127.0.0.1:0"]
workers = 1
https_port = 8443
{tables(pair, "127.0.0.1:0")}
[[routes]]
path = "/cgi-bin/"
cgi = "{directory}"
""")
    server = serve(config=config)
    known = ports(server)
    raw = b"GET /cgi-bin/fine?x HTTP/1.1\r\nHost: example.org:80\r\nConnection: close\r\n\r\n"
    answer = plainly(known["http"], raw)
    assert status(answer) == 308
    assert b"\r\nLocation: https://example.org:8443/cgi-bin/fine?x\r\n" in answer
    assert status(asked(server, port=known["https"])) == 200


# Plain HTTP where TLS is spoken.


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pieces", [1, 2, 0])
def test_plain_http_to_tls_is_told(serve, directory, pair, loop, pieces):
    server = serve(*pair.options, "--loop", loop, cgi_dir=directory)
    for raw in (request("/cgi-bin/env"), b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" + request()):
        with server.socket() as client:
            if pieces:
                size = len(raw) // pieces + 1
                cut = [raw[at : at + size] for at in range(0, len(raw), size)]
            else:
                cut = [raw[at : at + 1] for at in range(40)] + [raw[40:]]
            for piece in cut:
                client.sendall(piece)
            answer = support.receive_all(client)
        assert status(answer) == 400
        assert answer.count(b"HTTP/1.1") == 1
        assert PLAIN in answer
        assert b"\r\nConnection: close\r\n" in answer
    server.wait_for_access(r'"GET /cgi-bin/env HTTP/1\.1" 400')
    assert status(asked(server)) == 200


def test_what_is_neither_is_refused(serve, directory, pair):
    server = serve(*pair.options, cgi_dir=directory)
    bad = b"HTTP/1.1 400"
    for junk, begin in ((b"GARBAGE\r\n\r\n", bad), (b"\r\n\r\n\0\r\nQUIT\n", bad), (b"\0\1", b"")):
        with server.socket() as client:
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
            assert support.receive_all(client).startswith(begin)


# Reload and upgrade.


def test_a_reload_adds_and_removes_tls(sites, pair):
    served = sites(workers=2)
    assert list(ports(served.server)) == ["http"]
    plain = ports(served.server)["http"]
    served.more = tables(pair, "127.0.0.1:0")
    served.reload()
    known = ports(served.server)
    assert known["http"] == plain
    assert shown(served.server, "localhost", port=known["https"]) == serial_of(pair.certificate)
    with connected(served.server, port=known["https"]) as kept:
        kept.sendall(request("/cgi-bin/echo?1"))
        assert b"first" in misbehaviour.read_response(kept)
        served.more, served.word = "", "second"
        start = len(served.errors.text)
        served.reload()
        assert f"no longer listening on https://127.0.0.1:{known['https']}/" in served.errors.text[start:]
        # It was there before, and is told that its next answer is the last.
        kept.sendall(request("/cgi-bin/echo?2"))
        assert b"\r\nConnection: close\r\n" in support.receive_all(kept)
    with pytest.raises(ConnectionRefusedError):
        asked(served.server, port=known["https"])
    assert served.ask()[2] == "second"


def test_a_listener_that_stays_may_begin_with_tls(sites, pair):
    """The same socket: who came before is served as before."""
    port = free_port()
    served = sites(listen=[f"127.0.0.1:{port}"])
    with served.server.socket() as before:
        before.sendall(request("/cgi-bin/echo?1"))
        misbehaviour.read_response(before)
        served.more = tables(pair)
        start = len(served.errors.text)
        served.reload()
        assert f"listening on https://127.0.0.1:{port}/" in served.errors.text[start:]
        before.sendall(request("/cgi-bin/echo?2"))
        assert b"first" in support.receive_all(before)
    assert status(asked(served.server, "/cgi-bin/echo")) == 200
    served.more = ""
    served.reload()
    assert served.ask()[2] == "first"


def test_a_bad_certificate_leaves_all_as_it_was(sites, pair, authority):
    served = sites(more=tables(pair, "127.0.0.1:0"))
    port = ports(served.server)["https"]
    served.more = tables(pair, "127.0.0.1:0").replace(".key", ".none")
    served.write()
    start = served.signal(signal.SIGHUP)
    said = served.errors.wait_for(r"not reloaded, all stays as it was: .*", start=start)[0]
    assert "tls.key" in said
    assert "No such file" in said
    assert status(asked(served.server, "/cgi-bin/echo", port=port)) == 200
    # It goes on looking at the files of what serves.
    fresh = authority.issue("localhost")
    pair.replace(fresh)
    served.errors.wait_for(r"certificates: the files have changed", start=start)
    assert shown(served.server, "localhost", port=port) == serial_of(fresh.certificate)


def test_an_upgrade_keeps_tls(sites, pair, authority, gate):
    served = sites(more=tables(pair, "127.0.0.1:0"))
    port = ports(served.server)["https"]
    with connected(served.server, port=port) as kept, connected(served.server, port=port) as busy:
        kept.sendall(request("/cgi-bin/echo?1"))
        misbehaviour.read_response(kept)
        start = len(served.errors.text)
        busy.sendall(request("/cgi-bin/gated"))
        served.errors.wait_for(r"gated\[\d+\]: running (\d+)", start=start)
        served.word = "second"
        served.write()
        start = served.signal(signal.SIGUSR2)
        served.errors.wait_for(r"upgrade: pid \d+ serves", start=start)
        kept.sendall(request("/cgi-bin/echo?2"))
        assert b"first" in support.receive_all(kept)
        assert b"second" in asked(served.server, "/cgi-bin/echo?3", port=port)
        gate.open()
        assert b"let go" in support.receive_all(busy)
    fresh = authority.issue("localhost")
    pair.replace(fresh)
    served.errors.wait_for(r"certificates: the files have changed", start=start)
    assert shown(served.server, "localhost", port=port) == serial_of(fresh.certificate)


# Given, and behind a proxy.


@pytest.mark.parametrize("names", [True, False])
def test_sockets_that_are_given(sites, pair, names):
    """All of TCP speak TLS, or those whose address is named."""
    with listener() as plain, listener() as secure:
        numbers = [given.getsockname()[1] for given in (plain, secure)]
        named = [f"127.0.0.1:{numbers[1]}"] if names else []
        served = sites(listen=["127.0.0.1:8000"], more=tables(pair, *named), **giving(plain, secure))
        schemes = dict(re.findall(r"listening on (\w+)://127\.0\.0\.1:(\d+)/", served.errors.text))
        if names:
            assert schemes == {"http": str(numbers[0]), "https": str(numbers[1])}
            assert status(plainly(numbers[0], request("/cgi-bin/echo", "Connection: close\r\n"))) == 200
        else:
            assert schemes == {"https": str(numbers[1])} or schemes == {"https": str(numbers[0])}
            assert status(asked(served.server, "/cgi-bin/echo", port=numbers[0])) == 200
        assert status(asked(served.server, "/cgi-bin/echo", port=numbers[1])) == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_proxy_header_stands_before_tls(serve, directory, pair, loop):
    server = serve(*pair.options, "--proxy-protocol", "127.0.0.1", "--loop", loop, cgi_dir=directory)
    for glued in (False, True):
        with server.socket() as plain:
            header = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n"
            ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = client_context().wrap_bio(theirs, ours, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                client.do_handshake()
            if glued:
                plain.sendall(header + ours.read())
            else:
                plain.sendall(header)
                plain.sendall(ours.read())
            while True:
                theirs.write(plain.recv(65536))
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    continue
            client.write(request("/cgi-bin/env", close=True))
            plain.sendall(ours.read())
            theirs.write(support.receive_all(plain))
            env = told(client.read(65536) + _rest(client))
        assert (env["REMOTE_ADDR"], env["SERVER_PORT"], env["HTTPS"]) == ("192.0.2.7", "443", "on")
    with server.socket() as plain:
        plain.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n" + request())
        assert PLAIN in support.receive_all(plain)


def _rest(client):
    found = b""
    try:
        while data := client.read(65536):
            found += data
    except ssl.SSLError:
        pass
    return found
