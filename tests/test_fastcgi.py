"""Requests to a FastCGI server: what it is sent, and what a client gets for what it answers (FastCGI 1.0)."""

from __future__ import annotations

import hashlib
import re
import socket
import sys
import threading

import pytest

from fcgi_pool.protocol import RecordType, decode_params
from tests import misbehaviour, support
from tests.fcgi_server import PAGE, FcgiServer, end_record, record
from tests.real_client import Memory, spooled
from tests.test_cgi_output import Said

MIB = 1 << 20
STDOUT, STDERR = RecordType.STDOUT, RecordType.STDERR


@pytest.fixture(scope="module", params=["a connection for each request", "kept connections"])
def shared(request, tmp_path_factory):
    """A front and the FastCGI server behind it."""
    options = ["--connections", "2"] if request.param.startswith("kept") else []
    peer = FcgiServer()
    mount = f"/app/={peer.address}"
    server = support.start_server("--debug", "--fastcgi", mount, *options, temp_dir=tmp_path_factory.mktemp("spool"))
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
def keeps(request):
    return "kept" in request.node.callspec.id


@pytest.fixture
def behind():
    """A FastCGI server for a front of the test's own."""
    peer = FcgiServer()
    yield peer
    peer.close()


def ask(server, head="GET /app/", body=b"", close=True):
    """Send a request on a connection of its own."""
    client = server.socket()
    line, *fields = head.split("\n")
    fields += ["Host: a.example", *(["Connection: close"] if close else [])]
    fields += [f"Content-Length: {len(body)}"] if body else []
    client.sendall("\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode("latin-1") + body)
    return client


def said(client):
    """Read the response."""
    with client:
        return Said(support.receive_all(client))


@pytest.fixture
def say(server, peer):
    """Have the application send exactly these bytes; the response to them."""

    def once(*pieces, head="GET /app/"):
        client = ask(server, head)
        call = peer.take()
        call.send(*pieces)
        call.connection.ended(call.keep)
        return said(client)

    return once


# What the application is asked.


def test_the_variables(server, peer):
    head = "POST /app/a%20b/c%2Fd/?x=1&y=%20\nContent-Type: a/b\nCookie: c=1\nCookie: d=2\nX-One: 1\nX-One: 2\nProxy: p"
    client = ask(server, head + "\nAuthorization: Basic eDp5\nX_Odd: 1", b"the body")
    call = peer.take()
    expected = {
        "GATEWAY_INTERFACE": b"CGI/1.1",
        "REQUEST_METHOD": b"POST",
        "SCRIPT_NAME": b"/app",
        "PATH_INFO": b"/a b/c/d/",
        "QUERY_STRING": b"x=1&y=%20",
        "REQUEST_URI": b"/app/a%20b/c%2Fd/?x=1&y=%20",
        "CONTENT_LENGTH": b"8",
        "CONTENT_TYPE": b"a/b",
        "SERVER_PROTOCOL": b"HTTP/1.1",
        "SERVER_NAME": b"a.example",
        "SERVER_PORT": str(server.port).encode(),
        "SERVER_ADDR": b"127.0.0.1",
        "REMOTE_ADDR": b"127.0.0.1",
        "REQUEST_SCHEME": b"http",
        "REDIRECT_STATUS": b"200",
        "HTTP_HOST": b"a.example",
        "HTTP_COOKIE": b"c=1; d=2",
        "HTTP_X_ONE": b"1, 2",
        "HTTP_AUTHORIZATION": b"Basic eDp5",
        "HTTP_CONNECTION": b"close",
    }
    port = str(client.getsockname()[1]).encode()
    call.answer()
    assert said(client).body == b"fine\n"
    assert len(call.pairs) == len(call.params)
    assert call.params.pop("REMOTE_PORT") == port
    assert call.params.pop("SERVER_SOFTWARE").startswith(b"gateway/")
    assert call.params.pop("PATH")
    assert call.params == expected
    assert bytes(call.body) == b"the body"


@pytest.mark.parametrize(
    ("path", "info"),
    [("/app", None), ("/app/", b"/"), ("/app/x", b"/x"), ("/app//x/./y/../z", b"/x/z"), ("/app/x/", b"/x/"),
     ("/app/%ff%0a", b"/\xff\n"), ("/app/%2526", b"/%26")],
)  # fmt: skip
def test_the_path_below_the_prefix_is_path_info(server, peer, path, info):
    client = ask(server, f"GET {path}")
    call = peer.take()
    call.answer()
    assert said(client).status == 200
    assert call.params["SCRIPT_NAME"] == b"/app"
    assert call.params.get("PATH_INFO") == info
    assert not {"CONTENT_LENGTH", "CONTENT_TYPE", "SCRIPT_FILENAME", "DOCUMENT_ROOT"} & set(call.params)


@pytest.mark.parametrize("path", ["/application", "/ap", "/app/../../x", "/app/%00", "/app/..%2fx"])
def test_what_is_not_below_the_prefix_is_not_passed_on(server, peer, path):
    assert said(ask(server, f"GET {path}")).status in {400, 404}
    assert peer.is_quiet()


def test_connections_are_kept_only_where_their_number_is_known(server, peer, keeps):
    for _ in range(3):
        client = ask(server)
        call = peer.take()
        assert call.keep == keeps
        call.answer()
        assert said(client).status == 200
    if not keeps:
        assert all(one.is_closed for one in peer.connections)


def test_params_over_64_kib_in_records_without_a_split_pair(serve, behind):
    env = [option for number in range(6) for option in ("--env", f"LONG_{number}={'v' * 9000}")]
    server = serve("--fastcgi", f"/app/={behind.address}", *env)
    fields = [f"X-{number}: {'f' * 6000}" for number in range(10)]
    client = ask(server, "\n".join(["GET /app/", *fields]))
    call = behind.take()
    call.answer()
    assert said(client).status == 200
    contents = [content for kind, _, content in call.connection.records if kind == RecordType.PARAMS]
    assert contents.pop() == b""
    assert len(contents) > 1
    # Each record is whole by itself.
    assert [pair for content in contents for pair in decode_params(content)] == call.pairs
    assert all(len(content) <= 65528 for content in contents)
    assert sum(map(len, contents)) > 100_000
    assert call.params["HTTP_X_9"] == b"f" * 6000
    assert call.params["LONG_5"] == b"v" * 9000


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_large_body_streams_from_a_file(server, peer, framing, tmp_path):
    size = 48 * MIB
    body = bytes(range(256)) * (size // 256)
    workers = server.workers()
    client = ask(server)
    peer.take().answer()
    said(client)
    memory = Memory(workers)
    client = server.socket()
    head = b"POST /app/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    if framing == "length":
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % size + body)
    else:
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (size, body))
    call = peer.take()
    assert spooled(workers) >= size
    call.answer()
    assert said(client).status == 200
    assert call.params["CONTENT_LENGTH"] == str(size).encode()
    assert "HTTP_TRANSFER_ENCODING" not in call.params
    assert hashlib.sha256(call.body).digest() == hashlib.sha256(body).digest()
    assert memory.growth() < 32 * MIB


def test_an_empty_body_has_its_length(server, peer):
    for field in ("Content-Length: 0", "Transfer-Encoding: chunked"):
        client = ask(server, f"POST /app/\n{field}")
        if field.endswith("chunked"):
            client.sendall(b"0\r\n\r\n")
        call = peer.take()
        call.answer()
        assert said(client).status == 200
        assert call.params["CONTENT_LENGTH"] == b"0"


@pytest.mark.parametrize("length", [1, 65535, 65536, 65537, 131056, 262144, 262145, 1_000_003])
def test_bodies_of_odd_lengths(server, peer, length):
    body = (bytes(range(251)) * (length // 251 + 1))[:length]
    client = ask(server, "POST /app/", body)
    call = peer.take()
    call.answer()
    assert said(client).status == 200
    assert bytes(call.body) == body


# What the application answers.


def test_padding_of_every_length(server, peer):
    with ask(server, close=False) as client:
        for padding in range(256):
            call = peer.take()
            call.send(
                record(STDOUT, b"Content-Type: a/b\r\n", padding=padding),
                record(STDERR, b"", padding=padding),
                record(STDOUT, b"\r\nbo", padding=padding),
                record(STDOUT, b"dy %d" % padding, padding=255 - padding),
                record(STDOUT, b"", padding=padding),
                end_record(padding=padding),
            )
            call.connection.ended(call.keep)
            assert Said(misbehaviour.read_response(client)).body == b"body %d" % padding
            if padding < 255:
                client.sendall(b"GET /app/ HTTP/1.1\r\nHost: x\r\n\r\n")


def test_a_reply_byte_by_byte(server, peer):
    client = ask(server)
    call = peer.take()
    reply = b"".join([
        record(STDERR, b"said so\n", padding=3), record(STDOUT, b"Status: 201 Made\r\nX-A: b\r\n\r\n", padding=1),
        record(STDOUT, b"body", padding=5), record(STDOUT), record(STDERR), end_record(7),
    ])  # fmt: skip
    for byte in reply:
        call.send(bytes([byte]))
    call.connection.ended(call.keep)
    got = said(client)
    assert (got.status, got.reason, got.body, got.one("x-a")) == (201, "Made", b"body", "b")
    server.wait_for_access(r'"GET /app/ HTTP/1\.1" 201 4 .* exit=7 outcome=ok')
    server.wait_for_log(r" script \[[^]]+\] app\[-\]: said so$")


def test_records_of_one_byte_and_of_65535(say):
    output = b"Content-Type: a/b\r\n\r\n" + bytes(range(256)) * 2
    assert say(*(record(STDOUT, output[at : at + 1]) for at in range(len(output))), end_record()).body == output[21:]
    large = b"\r\n".join([b"Content-Type: a/b", b"", b"x" * 65514])
    assert len(large) == 65535
    assert say(record(STDOUT, large, padding=1), end_record()).body == b"x" * 65514


def test_end_request_closes_stdout_too(say):
    got = say(record(STDOUT, PAGE), end_record())
    assert (got.status, got.body) == (200, b"fine\n")


@pytest.mark.parametrize(
    "pieces",
    [
        [end_record()],
        [record(STDOUT), end_record()],
        [record(STDOUT), record(STDERR), end_record()],
        [record(STDOUT, b"Content-Type: text/plain\r\n"), record(STDOUT), end_record(3)],
        [record(STDOUT, b"no header\n"), end_record()],
        [record(STDOUT, b"X: a\rSet-Cookie: b\n\n"), end_record()],
    ],
    ids=["nothing", "empty STDOUT", "empty streams", "half a header", "no header", "an injected line"],
)
def test_no_header_is_502(say, server, pieces):
    got = say(*pieces)
    assert got.status == 502
    assert b"/app at /app/ (unix:" in got.body
    server.wait_for_log(r" error \[[^]]+\] 502 /app at /app/ \(unix:\S+\) (wrote|ended with)")


def test_stderr_between_header_records_goes_to_the_log(say, server):
    got = say(
        record(STDERR, b"PHP Warning: one\nPHP "),
        record(STDOUT, b"Content-Type: text/plain\r\nX-A:"),
        record(STDERR, b"Warning: two\n"),
        record(STDOUT, b" b\r\n\r\nbody"),
        record(STDERR, b"three\x1b[0m"),
        end_record(),
    )
    assert (got.status, got.one("x-a"), got.body) == (200, "b", b"body")
    assert b"Warning" not in got.raw
    request_id = re.escape(got.one("x-request-id"))
    for words in ("PHP Warning: one", "PHP Warning: two", r"three\\x1b\[0m"):
        server.wait_for_log(rf"^\S+ script \[{request_id}\] app\[-\]: {words}$")


def test_stderr_explains_what_failed(say):
    got = say(record(STDERR, b"PHP Fatal error: out of luck\n"), end_record(255))
    assert got.status == 502
    assert b"ended with status 255" in got.body
    assert b"PHP Fatal error: out of luck" in got.body


@pytest.mark.parametrize("status", [0, 1, 255, 2**32 - 1])
def test_the_application_status_is_in_the_access_log(say, server, status):
    assert say(record(STDOUT, PAGE), record(STDOUT), end_record(status)).status == 200
    server.wait_for_access(rf'"GET /app/ HTTP/1\.1" 200 5 .* exit={status} outcome=ok$')


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (record(STDOUT, PAGE, version=2) + end_record(), "version 2 instead of 1"),
        (record(STDOUT, PAGE, request_id=2) + end_record(), "STDOUT for the request 2, which does not exist"),
        (record(STDOUT, PAGE, request_id=0) + end_record(), "STDOUT for no request"),
        (record(RecordType.STDIN, PAGE) + end_record(), "STDIN, which an application does not send"),
        (record(77, PAGE) + end_record(), "a record of the unknown type 77"),
        (record(RecordType.END_REQUEST, b"1234"), "END_REQUEST with 4 bytes instead of 8"),
        (record(RecordType.END_REQUEST), "END_REQUEST without content"),
        (record(STDOUT) + record(STDOUT, PAGE) + end_record(), "after the end of that stream"),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "version 72 instead of 1"),
        (bytes(64), "version 0 instead of 1"),
    ],
    ids=[
        "version", "id", "no id", "a web server's type", "unknown type", "short end", "empty end", "after the end",
        "HTTP", "zeros",
    ],
)  # fmt: skip
def test_a_reply_that_is_no_fastcgi_is_502(say, server, reply, words):
    got = say(reply)
    assert got.status == 502
    assert words in got.body.decode()
    server.wait_for_log(rf" error .* 502 .* it does not speak FastCGI: .*{words}")
    assert say(record(STDOUT, PAGE), end_record()).body == b"fine\n"


def test_nonsense_within_a_response_cuts_it_off(server, peer):
    client = ask(server)
    call = peer.take()
    call.stdout(b"Content-Type: text/plain\r\n\r\nbegun")
    got = misbehaviour.read_until(client, b"begun\r\n")
    call.send(record(STDOUT, b"never", request_id=9))
    with client:
        got += support.receive_all(client)
    assert b"never" not in got
    assert not got.endswith(b"0\r\n\r\n")
    server.wait_for_access(r'"GET /app/ HTTP/1\.1" 200 5 .* outcome=truncated')


def test_what_comes_after_the_end_spoils_the_connection_alone(server, peer):
    client = ask(server)
    call = peer.take()
    call.send(record(STDOUT, PAGE), end_record(), record(STDOUT, b"more"))
    assert said(client).body == b"fine\n"
    call.wait_for_close()


def test_values_that_were_not_asked_for_harm_nobody(say):
    values = record(RecordType.GET_VALUES_RESULT, b"\x0e\x01FCGI_MAX_CONNS4", request_id=0)
    unknown = record(RecordType.UNKNOWN_TYPE, bytes(8), request_id=0)
    assert say(values, record(STDOUT, PAGE), unknown, end_record()).body == b"fine\n"


@pytest.mark.parametrize(
    ("head", "output", "status"),
    [
        ("HEAD /app/", b"Content-Type: a/b\r\n\r\nnot for a HEAD", 200),
        ("HEAD /app/", b"Content-Type: a/b\r\nContent-Length: 14\r\n\r\n", 200),
        ("GET /app/", b"Status: 204 No Content\r\n\r\nnot for a 204", 204),
        ("GET /app/", b"Status: 304 Not Modified\r\nETag: x\r\n\r\nnot for a 304", 304),
    ],
)
def test_no_body_where_there_is_none(server, peer, head, output, status):
    for _ in range(2):  # a header that was seen before takes another way
        with ask(server, head, close=False) as client:
            peer.take().answer(output)
            client.sendall(b"GET /app/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            peer.take().answer()
            raw = support.receive_all(client)
        first, _, second = raw.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % status)
        assert Said(second).body == b"fine\n"


def test_lengths_that_lie(server, peer):
    """More is cut off, less closes the client's connection; the next one on the server's is not disturbed."""
    for output, complete in [(b"Content-Length: 3\r\n\r\nfine", True), (b"Content-Length: 9\r\n\r\nfine", False)] * 2:
        client = ask(server)
        peer.take().answer(output)
        got = said(client)
        assert (got.status, got.complete) == (200, complete)
        assert got.rest == b"fine"[: 3 if complete else 4]


def test_a_local_redirect_is_a_request_of_its_own(server, peer):
    client = ask(server, "POST /app/from\nContent-Type: a/b", b"the body")
    peer.take().answer(b"Location: /app/to%20there?q=1\r\n\r\n")
    call = peer.take()
    call.answer()
    got = said(client)
    assert (got.status, got.body, got.all("location")) == (200, b"fine\n", [])
    assert (call.params["REQUEST_METHOD"], call.params["PATH_INFO"]) == (b"GET", b"/to there")
    assert call.params["QUERY_STRING"] == b"q=1"
    assert "CONTENT_LENGTH" not in call.params
    assert not call.body


def test_local_redirects_end(server, peer):
    client = ask(server)
    for _ in range(11):
        peer.take().answer(b"Location: /app/\r\n\r\n")
    assert said(client).status == 502


# Pieces, and who is slow.


def test_each_piece_goes_on_as_it_comes(server, peer):
    with ask(server) as client:
        call = peer.take()
        call.stdout(b"Content-Type: text/event-stream\r\n\r\n")
        misbehaviour.read_until(client, b"\r\n\r\n")
        for number in range(5):
            call.stdout(b"data: %d\n\n" % number)
            assert misbehaviour.read_until(client, b"\n\n\r\n").endswith(b"data: %d\n\n\r\n" % number)
        # A part of a record, too.
        call.send(record(STDOUT, bytes(1000))[:508])
        misbehaviour.read_until(client, bytes(500) + b"\r\n")
        call.send(bytes(500))
        misbehaviour.read_until(client, bytes(500) + b"\r\n")
        call.end()
        assert support.receive_all(client) == b"0\r\n\r\n"


def test_a_slow_client_does_not_hold_the_server(server, peer):
    """Up to a bound: it has ended, and serves others, before this client has read a byte."""
    size = 32 * MIB
    with ask(server) as client:
        call = peer.take()
        call.stdout(b"Content-Type: a/b\r\nContent-Length: %d\r\n\r\n" % size)
        call.stdout(bytes(size))
        call.end()
        other = ask(server)
        peer.take().answer()
        assert said(other).body == b"fine\n"
        assert Said(support.receive_all(client)).body == bytes(size)


def test_past_the_bound_nothing_is_read(server, peer):
    """The server is held where its client is too far behind."""
    size = 160 * MIB
    workers = server.workers()
    memory = Memory(workers)
    with ask(server) as client:
        call = peer.take()
        call.stdout(b"Content-Type: a/b\r\nContent-Length: %d\r\n\r\n" % size)
        written, read = hashlib.sha256(), hashlib.sha256()

        def send():
            for number in range(size // MIB):
                piece = number.to_bytes(8, "big") * (MIB // 8)
                written.update(piece)
                call.stdout(piece)
            call.end()

        sender = threading.Thread(target=send)
        sender.start()
        misbehaviour.wait_for(lambda: spooled(workers) >= 64 * MIB, "the bound is not reached")
        head, _, first = client.recv(65536).partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d" % size in head
        read.update(first)
        while more := client.recv(MIB):
            read.update(more)
            assert spooled(workers) < 72 * MIB
        sender.join()
    assert read.digest() == written.digest()
    assert memory.growth() < 32 * MIB
    server.wait_for_access(rf'"GET /app/ HTTP/1\.1" 200 {size} .* exit=0 outcome=ok')


def test_an_answer_before_the_body_was_read(server, peer):
    """Nothing waits for the other: the application ends without its input, and the connection with it."""
    body = bytes(16 * MIB)
    client = ask(server, "POST /app/", body)
    call = peer.take_begun()
    assert len(call.body) < len(body)
    call.stdout(b"Content-Type: a/b\r\n\r\n" + bytes(MIB))
    call.end()
    call.close()
    assert said(client).body == bytes(MIB)
    other = ask(server)
    peer.take().answer()
    assert said(other).status == 200


def test_a_body_that_nobody_holds_any_more_is_not_passed_for_whole(server, peer):
    """The response is complete and the client gone before the application has read on."""
    body = bytes(16 * MIB)
    client = ask(server, "POST /app/", body)
    call = peer.take_begun()
    call.stdout(b"Content-Type: a/b\r\nContent-Length: 4\r\n\r\nfine")
    assert said(client).body == b"fine"
    call.wait_for_abort()
    assert len(call.body) < len(body)
    call.end()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_unix_and_tcp(serve, family):
    peer = FcgiServer(family)
    try:
        server = serve("--fastcgi", f"/app/={peer.address}")
        body = bytes(3 * MIB)
        client = ask(server, "POST /app/", body)
        call = peer.take()
        call.stdout(b"Content-Type: a/b\r\n\r\n" + bytes(range(256)) * 8192)
        call.end()
        assert said(client).body == bytes(range(256)) * 8192
        assert bytes(call.body) == body
    finally:
        peer.close()


def test_without_debug_the_client_is_told_nothing(serve, behind):
    server = serve("--fastcgi", f"/app/={behind.address}")
    client = ask(server)
    behind.take().answer(b"no header\n")
    got = said(client)
    assert got.status == 502
    assert str(behind.address).encode() not in got.body
    assert b"no header" not in got.body


def test_nothing_but_the_request_in_the_servers_environment(serve, behind):
    server = serve("--fastcgi", f"/app/={behind.address}", "--env", "OWN=1", env={"SECRET": "x"})
    client = ask(server)
    call = behind.take()
    call.answer()
    assert said(client).status == 200
    assert call.params["OWN"] == b"1"
    assert "SECRET" not in call.params
    assert sys.executable.encode() not in b"".join(call.params.values())
