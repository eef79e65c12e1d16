"""Handshakes: versions, protocols, sessions that are resumed by any worker, and who is waited for."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess

import pytest

from tests import support
from tests.client_support import directory, request, status
from tests.tls_support import Authority, asked, client_context, connected, ports

__all__ = ["directory"]

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
WHO = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s %s' \"$SSL_SESSION_RESUMED\" \"$SSL_PROTOCOL\"\n"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def who(tmp_path):
    """A directory of a program that says whether the session was resumed."""
    found = tmp_path / "who"
    found.mkdir()
    support.script(found / "who", WHO)
    return found


def visit(server, context, session=None, name="localhost"):
    """Ask once; return the session and what the program said."""
    with connected(server, context, name, session=session) as client:
        client.sendall(request("/cgi-bin/who", close=True))
        answer = support.receive_all(client)
        found = re.search(rb"(Initial|Resumed) TLSv1\.[23]", answer)
        assert found, answer
        return client.session, found[0].decode()


def one_worker(server, only):
    """Have one worker accept alone: the others are stopped."""
    for pid in server.workers():
        os.kill(pid, signal.SIGCONT if pid == only else signal.SIGSTOP)


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("name", ["localhost", "other.example.org"])
def test_a_session_is_resumed_by_every_worker_and_after_a_reload(serve, who, authority, version, name):
    """Also where the name has a certificate of its own: the context that is chosen is another than the root."""
    first, second = authority.issue("localhost"), authority.issue("other.example.org")
    server = serve(*first.options, *second.options, cgi_dir=who, workers=2)
    context = client_context(authority.certificate, version=version)
    workers = server.workers()
    one_worker(server, workers[0])
    session, said = visit(server, context, name=name)
    assert said == f"Initial {version.name.replace('_', '.')}"
    one_worker(server, workers[1])
    session, said = visit(server, context, session, name)
    assert said.startswith("Resumed")
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    for _ in range(2):
        start = len(server.errors.text)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(r"^gateway: reloaded", start=start)
        session, said = visit(server, context, session, name)
        assert said.startswith("Resumed")
    support.wait_until(lambda: "old workers" if set(workers) & set(server.workers()) else "")
    server.note_baseline(2)


@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes(serve, who, certificate, tmp_path, option):
    cert, key = certificate
    server = serve("--tls-cert", str(cert), "--tls-key", str(key), cgi_dir=who, workers=2)
    file = tmp_path / "session"

    def ask(*more):
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", option, "-ign_eof", *map(str, more)]
        asks = request("/cgi-bin/who", close=True)
        ended = subprocess.run(command, input=asks, capture_output=True, check=False, timeout=support.PATIENCE)
        return ended.stdout.decode()

    assert "Initial TLSv1" in ask("-sess_out", file)
    for _ in range(4):
        said = ask("-sess_in", file)
        assert "\nReused, TLSv1" in said
        assert "Resumed TLSv1" in said
    start = len(server.errors.text)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(r"^gateway: reloaded", start=start)
    assert "\nReused, TLSv1" in ask("-sess_in", file)
    server.note_baseline(2)


def test_no_session_outlives_the_trust_in_its_client(serve, who, authority, tmp_path):
    """Another authority after a reload: a certificate of the first is not taken on the word of a ticket."""
    other = Authority(tmp_path / "other", "Other")
    pair, own = authority.issue("localhost"), authority.issue(subject="/CN=client")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    options = [*pair.options, "--tls-client-ca", str(trusted), "--tls-verify-client", "require"]
    server = serve(*options, cgi_dir=who)
    context = client_context(authority.certificate, own=own, version=TLS13)
    session, _ = visit(server, context)
    session, said = visit(server, context, session)
    assert said.startswith("Resumed")
    trusted.write_bytes(other.certificate.read_bytes())
    start = len(server.errors.text)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(r"^gateway: reloaded", start=start)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        visit(server, context, session)
        pytest.fail("it was served")
    server.note_baseline()


@pytest.mark.parametrize(
    ("offered", "chosen"), [((), None), (("http/1.1",), "http/1.1"), (("h2", "http/1.1"), "http/1.1"), (("h2",), None)]
)
def test_alpn(serve, directory, certificate, offered, chosen):
    cert, key = certificate
    server = serve("--tls-cert", str(cert), "--tls-key", str(key), cgi_dir=directory)
    with connected(server, client_context(cert, alpn=offered)) as client:
        assert client.selected_alpn_protocol() == chosen
        client.sendall(request(close=True))
        assert status(support.receive_all(client)) == 200
    with connected(server, client_context(cert, alpn=offered)) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert status(support.receive_all(client)) == 505


def test_old_versions_and_renegotiation_are_refused(serve, directory, certificate):
    cert, key = certificate
    server = serve("--tls-cert", str(cert), "--tls-key", str(key), "--debug", cgi_dir=directory)
    for version in ("-tls1", "-tls1_1"):
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", version, "-cipher", "ALL:@SECLEVEL=0"]
        said = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=support.PATIENCE)
        assert "alert protocol version" in said.stderr
    server.wait_for_log(r"notice 127\.0\.0\.1: no TLS was agreed: unsupported protocol")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as peer:
        assert peer.stdin
        peer.stdin.write(b"R\n")
        peer.stdin.flush()
        assert b"no renegotiation" in peer.communicate(timeout=support.PATIENCE)[0]
    # The client's own end: nothing was asked on that connection.
    assert status(asked(server)) == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_silent_connections_keep_nobody_out(serve, directory, certificate, loop):
    """A hundred that say nothing, or begin and stop, of 20 that may; the oldest of them give way."""
    cert, key = certificate
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--max-handshakes", "20", "--loop", loop]
    server = serve(*options, cgi_dir=directory)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.socket()) for _ in range(100)]
        for number, client in enumerate(silent[50:]):
            client.sendall(b"\x16\x03\x01"[: 1 + number % 3])
        assert status(asked(server, context=client_context(cert))) == 200
        for client in silent[:79]:
            assert support.receive_all(client) == b""
        assert not select.select(silent[-19:], [], [], 0)[0]
        assert status(asked(server, context=client_context(cert))) == 200


@contextlib.contextmanager
def held(server):
    """The worker takes nothing for a while; then it finds all that has come at once."""
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_many_at_once_where_few_may_shake_hands(serve, directory, certificate, loop):
    """Those without TLS are not asked to give way; the others are, at any moment of their coming."""
    cert, key = certificate
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-listen", "127.0.0.1:0"]
    server = serve(*options, "--max-handshakes", "1", "--loop", loop, cgi_dir=directory)
    found = ports(server)
    with contextlib.ExitStack() as stack:

        def come(scheme):
            return stack.enter_context(socket.create_connection((server.host, found[scheme]), support.PATIENCE))

        with held(server):
            plain = [come("http") for _ in range(20)]
            silent = [come("https") for _ in range(20)]
            for client in plain:
                client.sendall(request("/nothing", close=True))
        for client in plain:
            assert status(support.receive_all(client)) == 404
        for client in silent[:-1]:
            assert support.receive_all(client) == b""


@pytest.mark.parametrize("begin", [b"", b"\x16\x03"])
def test_a_handshake_has_its_time(serve, directory, certificate, begin):
    cert, key = certificate
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--handshake-timeout", "0.1"]
    server = serve(*options, cgi_dir=directory)
    with server.socket() as client:
        client.sendall(begin)
        assert support.receive_all(client) == b""
    # It is over with the handshake: then a request has a time of its own.
    with connected(server, client_context(cert)) as kept, server.socket() as client:
        assert support.receive_all(client) == b""
        kept.sendall(request(close=True))
        assert status(support.receive_all(kept)) == 200


def test_an_alert_in_the_handshake(serve, directory, certificate):
    """A client that does not trust us, one that leaves in the middle, one that says what is no TLS."""
    cert, key = certificate
    server = serve("--tls-cert", str(cert), "--tls-key", str(key), "--debug", cgi_dir=directory)
    context = ssl.create_default_context()
    context.load_default_certs()
    with pytest.raises(ssl.SSLCertVerificationError):
        asked(server, context=context)
    server.wait_for_log(r"no TLS was agreed: .*unknown ca")
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client_context(cert).wrap_bio(theirs, ours, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    raw = ours.read()
    for at in (1, 5, 20, len(raw) - 1, len(raw)):
        with server.socket() as client:
            client.sendall(raw[:at])
            client.shutdown(socket.SHUT_WR)
            support.receive_all(client)
    sslv2 = b"\x80\x2e\x01\x03\x01" + bytes(44)
    for junk in (b"\x16\x03\x01\xff\xff" + bytes(70000), bytes(100), sslv2, b"\x15\x03\x03\0\2\2\0"):
        with server.socket() as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(junk)
            support.receive_all(client)
    # Byte by byte, it is the same handshake.
    with server.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in raw:
            client.sendall(bytes([byte]))
        while True:
            theirs.write(client.recv(65536))
            try:
                hello.do_handshake()
            except ssl.SSLWantReadError:
                continue
            break
        hello.write(request(close=True))
        for byte in ours.read():
            client.sendall(bytes([byte]))
        answer = b""
        while True:
            theirs.write(client.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                while data := hello.read(65536):
                    answer += data
                break
        assert status(answer) == 200
    assert status(asked(server, context=client_context(cert))) == 200
