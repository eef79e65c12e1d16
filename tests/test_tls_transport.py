"""HTTP over TLS: the same answers as without, however records are cut, and ends that are told from cuts."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import socket
import ssl
import subprocess
import sys
import termios

import pytest

from tests import misbehaviour, support
from tests.client_support import directory, request, status
from tests.corpus_client import Client
from tests.reader_events import finely, whole
from tests.test_corpus import CASES, exchange, programs, running
from tests.tls_support import KeyUpdates, client_context, connected, self_signed

__all__ = ["directory", "programs"]

LOOPS = ["asyncio", "uvloop"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The options for a certificate."""
    cert, key = (tmp_path_factory.mktemp("pair") / name for name in ("cert.pem", "key.pem"))
    self_signed(cert, key, "/CN=localhost")
    return "--tls-cert", str(cert), "--tls-key", str(key)


@pytest.fixture(params=LOOPS)
def loop(request):
    return request.param


# The corpus.


class TlsClient(Client):
    """A client of the corpus, over TLS; each piece is a record of its own."""

    def __init__(self, address):
        super().__init__(address)
        self._socket = client_context().wrap_socket(self._socket, server_hostname="localhost")


@pytest.fixture(scope="module")
def addresses(programs, pair, tmp_path_factory):
    """Addresses of servers, one for each loop."""
    known = {}
    with contextlib.ExitStack() as stack:

        def find(loop):
            if loop not in known:
                options = (*pair, "--max-body", "1M", "--loop", loop)
                known[loop] = stack.enter_context(running(options, programs, tmp_path_factory.mktemp("spool")))
            return known[loop]

        yield find


@pytest.mark.parametrize("number", [number for number, case in enumerate(CASES) if not case.options])
def test_the_corpus(addresses, number):
    """The loops take turns."""
    case, loop = CASES[number], LOOPS[number % 2]
    for cut in (whole, finely(case.raw, 300)):
        with TlsClient(addresses(loop)) as client:
            responses = exchange(case, client, cut(case.raw), False)
        for mark in case.marks:
            among = responses if mark.response == 0 else [responses[mark.response - 1]]
            assert any(mark.text in response.text for response in among) == mark.wanted, (mark, cut)


# Bodies.


@pytest.fixture
def start(serve, pair, loop):
    """Start a server with TLS."""

    def start(*options, **more):
        return serve(*pair, "--loop", loop, "--kill-timeout", "1", *options, **more)

    return start


def test_keep_alive_and_pipelining(start, directory):
    server = start(cgi_dir=directory)
    with connected(server) as client:
        for _ in range(20):
            client.sendall(request())
            assert b"fine" in misbehaviour.read_response(client)
        client.sendall(request() * 30 + request(close=True))
        assert support.receive_all(client).count(b"HTTP/1.1 200 OK") == 31


def test_an_upload_in_chunks(start, directory):
    server = start(cgi_dir=directory)
    data = bytes(range(256)) * 4096 * 5  # 5 MiB
    pieces = [data[at : at + 70_001] for at in range(0, len(data), 70_001)]
    with connected(server) as client:
        head = b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        client.sendall(head)
        for piece in pieces:
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.sendall(b"0\r\n\r\n")
        answer = support.receive_all(client)
    assert status(answer) == 200
    assert len(answer) > len(data)


@pytest.fixture
def files(tmp_path):
    """A directory with a file of 8 MiB."""
    found = tmp_path / "files"
    found.mkdir()
    (found / "large").write_bytes(b"".join(hashlib.sha256(b"%d" % at).digest() for at in range(2**18)))
    return found


def test_a_large_file_for_a_slow_reader(start, files):
    """What it has not taken stays in the file: the worker does not hold it."""
    server = start("--static", str(files))
    worker = server.workers()[0]
    with connected(server) as client:
        client.sendall(request("/large", close=True))
        got = client.recv(1)
        # The server has stopped by itself when nothing moves any more.
        support.wait_until(lambda: _moves(client))
        assert support.resident(worker) < 120 * 2**20
        while data := client.recv(65536):
            got += data
    body = got.partition(b"\r\n\r\n")[2]
    assert body == (files / "large").read_bytes()
    with connected(server) as client:
        client.sendall(request("/large", "Range: bytes=1000-2999", close=True))
        assert support.receive_all(client).endswith(body[1000:3000])


_seen: dict[int, int] = {}


def _moves(client):
    """'' once as much waits in the socket as at the last look."""
    waiting = int.from_bytes(fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
    before, _seen[id(client)] = _seen.get(id(client), -1), waiting
    return "" if waiting and waiting == before else "it moves"


@pytest.mark.parametrize("path", ["/nothing", "/cgi-bin/fine"])
def test_a_connection_that_has_ended_leaves_nothing(start, directory, path):
    """What OpenSSL holds for it, some 35 KiB, is given back at once, not when the collector comes."""
    server = start(cgi_dir=directory)
    (worker,) = server.workers()
    context = client_context()

    def come_and_go(times):
        for _ in range(times):
            with connected(server, context) as client:
                client.sendall(request(path, close=True))
                support.receive_all(client)

    come_and_go(50)
    before = support.resident(worker)
    come_and_go(400)
    assert support.resident(worker) - before < 6 * 2**20


def test_a_program_that_never_ends_is_stopped_by_a_client_that_does_not_read(start, directory):
    """Backpressure reaches the program: it writes no more than the buffers hold, and ends with the client."""
    server = start(cgi_dir=directory)
    with connected(server) as client:
        client.sendall(request("/cgi-bin/floods"))
        assert client.recv(10)
    server.wait_for_access(r'/cgi-bin/floods HTTP/1\.1" 499 .*outcome=client-gone')


def test_a_client_that_vanishes(start, directory):
    server = start(cgi_dir=directory)
    with connected(server) as client:
        client.sendall(request("/cgi-bin/waits"))
        server.wait_for_log(r"running \d+")
        # No close_notify, no FIN: a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.wait_for_access(r'/cgi-bin/waits HTTP/1\.1" 499')
    with connected(server) as client:
        client.sendall(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly a part")
        client.unwrap()  # says that it sends no more
    server.wait_for_access(r'"POST /cgi-bin/echo HTTP/1\.1" 499')


# Records.


class Wire:
    """A client whose records can be cut, changed and counted."""

    def __init__(self, plain):
        self.plain = plain
        self.ours, self.theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context(version=ssl.TLSVersion.TLSv1_3).wrap_bio(
            self.theirs, self.ours, server_hostname="localhost"
        )
        self.at_end = False
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(self.ours.read())
                self.theirs.write(plain.recv(65536))
        plain.sendall(self.ours.read())

    def records(self, data):
        """Return the records that carry `data`."""
        self.tls.write(data)
        return self.ours.read()

    def read_to_end(self):
        """Return what comes, and whether its end was told (close_notify)."""
        got = b""
        while True:
            try:
                data = self.tls.read(65536)
                if not data:
                    return got, True
                got += data
            except ssl.SSLWantReadError:
                raw = b""
                with contextlib.suppress(ConnectionResetError):
                    raw = self.plain.recv(65536)
                if not raw:
                    return got, False
                self.theirs.write(raw)
            except ssl.SSLZeroReturnError:
                return got, True


@contextlib.contextmanager
def wire(server):
    with server.socket() as plain:
        yield Wire(plain)


def test_records_are_cut_anywhere(start, directory):
    server = start(cgi_dir=directory)
    with wire(server) as client:
        raw = client.records(request()) + client.records(request(close=True))
        for byte in raw:
            client.plain.sendall(bytes([byte]))
        answer, was_told = client.read_to_end()
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert was_told


def test_a_record_that_was_changed_ends_the_connection(start, directory):
    server = start(cgi_dir=directory)
    with wire(server) as client:
        raw = bytearray(client.records(request()))
        raw[-1] ^= 1
        client.plain.sendall(raw)
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            client.read_to_end()
    with wire(server) as client:
        client.plain.sendall(client.records(request())[:-3])
        client.plain.shutdown(socket.SHUT_WR)
        assert client.read_to_end()[0] == b""
    with wire(server) as client:
        client.plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ssl.SSLError):
            assert client.read_to_end()[0] == b""


def test_records_of_nothing(start, directory):
    """They carry no type, so they end what they are in (RFC 8446 sections 5.1 and 5.2), and nothing else."""
    server = start(cgi_dir=directory)
    with server.socket() as plain:
        plain.sendall(b"\x16\x03\x01\0\0" * 40)
        assert plain.recv(1) in (b"\x15", b"")
    with wire(server) as client, wire(server) as other:
        client.plain.sendall(b"\x17\x03\x03\0\0" + client.records(request()))
        with contextlib.suppress(ssl.SSLError):
            assert client.read_to_end()[0] == b""
        other.plain.sendall(other.records(request(close=True)))
        assert status(other.read_to_end()[0]) == 200


# Ends.


def test_a_client_that_asks_for_new_keys_and_takes_none(start, files):
    """OpenSSL answers each time; what nobody takes is not kept without end."""
    server = start("--static", str(files))
    with server.socket() as plain, contextlib.closing(KeyUpdates(plain)) as client:
        plain.sendall(client.records(request("/large")))
        # Between bytes of a next request, none of which is looked at before this one has its answer.
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                plain.sendall(b"".join(client.request() + client.records(b"x") for _ in range(500)))
        server.wait_for_access(r'"GET /large HTTP/1\.1" 499 .*outcome=client-gone')


def test_an_end_that_was_meant_is_told(start, directory):
    server = start(cgi_dir=directory)
    for raw, code in (
        (request(close=True), 200),
        (b"GET /cgi-bin/fine HTTP/1.0\r\n\r\n", 200),
        (b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GARBAGE\r\n\r\n" + bytes(3000), 400),
        (b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(50_000), 404),
    ):
        with wire(server) as client:
            client.plain.sendall(client.records(raw))
            answer, was_told = client.read_to_end()
        assert (status(answer), was_told) == (code, True)


CUT = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n{}\\n'\necho half\nkill -9 $$\n"


@pytest.mark.parametrize("length", ["", "Content-Length: 100\\n"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_end_that_was_not_meant_is_not_told(start, tmp_path, length, version):
    """Without a length, and to a client of HTTP/1.0, it is the only sign."""
    (tmp_path / "cgi").mkdir()
    misbehaviour.program(tmp_path / "cgi" / "cut", CUT.format(length))
    server = start(cgi_dir=tmp_path / "cgi")
    with wire(server) as client:
        client.plain.sendall(client.records(b"GET /cgi-bin/cut HTTP/%s\r\nHost: x\r\n\r\n" % version))
        answer, was_told = client.read_to_end()
    assert b"half" in answer
    assert not was_told
    server.wait_for_access("outcome=truncated")


def test_curl(start, directory, files, pair):
    support.need("curl")
    server = start("--static", f"/files/={files}", cgi_dir=directory)
    base = f"https://127.0.0.1:{server.port}"
    large = files / "large"
    command = ["curl", "-sk", "--max-time", "60", f"{base}/cgi-bin/fine", f"{base}/files/large", "-o", "-", "-o", "-"]
    got = subprocess.run(command, capture_output=True, check=True, timeout=90).stdout
    assert got == b"fine\n" + large.read_bytes()
    command = ["curl", "-sk", "--max-time", "60", "--data-binary", f"@{large}", f"{base}/cgi-bin/echo"]
    got = subprocess.run(command, capture_output=True, check=True, timeout=90).stdout
    assert got == large.read_bytes()
