"""The Python worker: real processes with the listening socket as descriptor 0, asked over that socket."""

from __future__ import annotations

import ast
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_pool.protocol import ABORT, END_OF_STDIN, ProtocolStatus, Role, encode_record, get_values, stdin_records
from fcgi_pool.protocol.web_server import End, Stderr, Stdout, UnknownType, Values
from fcgi_pool.runtime.worker import KEPT_LIMIT
from tests.fcgi_peer import RUNTIME, Application, directory_of_applications, release, served
from tests.support import ROOT, wait_until


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    """Give the socket and the directory of the applications."""
    with served(directory_of_applications(tmp_path)) as application:
        yield application


# The response


def test_a_small_response_is_one_record(app: Application) -> None:
    """Its length is known, since all of it is there."""
    app.start("apps:hello")
    peer = app.connect()
    for _ in range(3):
        reply = peer.ask()
        assert reply.chunks == [
            b"Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, world\n"
        ]
        assert (reply.app_status, reply.protocol_status, reply.errors) == (0, 0, b"")


def test_without_keep_the_connection_is_closed(app: Application) -> None:
    """By the application (section 5.1)."""
    app.start("apps")
    peer = app.connect()
    assert peer.ask(keep=False).body == b"hello, world\n"
    assert peer.is_closed()


@pytest.mark.parametrize("name", ["valid", "valid_generator"])
def test_wsgiref_validate_finds_nothing(app: Application, name: str) -> None:
    """GET, POST and HEAD."""
    app.start(f"apps:{name}")
    peer = app.connect()
    body = b"a line\n" * 30_000
    assert peer.ask().body == b""
    assert peer.ask("POST", body).body == body
    head = peer.ask("HEAD", CONTENT_LENGTH="")
    assert (head.body, head.errors, head.app_status) == (b"", b"", 0)


def test_the_environment(app: Application) -> None:
    """What WSGI requires, and what must not be there."""
    app.start("apps:show")
    peer = app.connect()
    hostile = {"HTTP_PROXY": "x", "HTTP_CONTENT_LENGTH": "1", "HTTP_CONTENT_TYPE": "y", "HTTP_X": "caf\u00e9"}
    found = ast.literal_eval(_json(peer.ask(HTTPS="on", **hostile).body))
    assert not {"HTTP_PROXY", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"} & set(found)
    assert found["HTTP_X"] == "caf\u00e9".encode().decode("latin-1")
    assert (found["wsgi.url_scheme"], found["wsgi.version"], found["FCGI_ROLE"]) == ("https", [1, 0], "RESPONDER")
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/app", "/path")
    assert found["wsgi.input_terminated"]
    found = ast.literal_eval(_json(peer.ask(SCRIPT_NAME="/", PATH_INFO="").body))
    assert (found["SCRIPT_NAME"], found["PATH_INFO"], found["wsgi.url_scheme"]) == ("", "/", "http")
    found = ast.literal_eval(_json(peer.ask(role=Role.AUTHORIZER).body))
    assert found["FCGI_ROLE"] == "AUTHORIZER"


def _json(text: bytes) -> str:
    return text.decode().replace("true", "True").replace("false", "False")


def test_the_process(app: Application) -> None:
    """The application's modules are not hidden by ours, and its programs do not inherit the listening socket."""
    app.start("apps:process", environment={"FCGI_POOL_MAX_REQUESTS": "5"})
    found = ast.literal_eval(_json(app.connect().ask().body))
    assert found["path"][0] == found["directory"] == str(app.directory)
    assert str(ROOT) not in found["path"]
    assert str(RUNTIME.parent) not in found["path"]
    assert {os.path.dirname(path) for path in found["ours"]} == {str(app.directory)}
    assert (found["left"], found["stdin"]) == ([], "/dev/null")
    assert "socket:" not in found["child"]


def test_a_block_is_sent_before_the_next_is_asked_for(app: Application) -> None:
    """Streaming needs no setting."""
    app.start("apps:streaming")
    peer = app.connect()
    peer.send()
    assert peer.next_event() == Stdout(b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\none\n")
    release(app.directory / "gate")
    assert peer.receive().chunks == [b"two\n"]


def test_write(app: Application) -> None:
    """Sends at once; what the iterable has comes after it."""
    app.start("apps:writer")
    peer = app.connect()
    peer.send()
    assert peer.next_event() == Stdout(b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nwritten\n")
    release(app.directory / "gate")
    assert peer.receive().chunks == [b"returned\n"]


def test_a_large_file(app: Application) -> None:
    """Through wsgi.file_wrapper."""
    data = os.urandom(3_000_001)
    (app.directory / "large").write_bytes(data)
    app.start("apps:file")
    peer = app.connect()
    for _ in range(2):
        assert peer.ask().body == data


@pytest.mark.parametrize("kind", ["list", "iterator"])
@pytest.mark.parametrize(
    ("method", "status", "query", "body", "app_status"),
    [
        ("GET", "200 OK", "4,ab,cd", b"abcd", 0),
        ("GET", "200 OK", "4,ab,cd,e", b"abcd", 0),
        ("GET", "200 OK", "4,ab,cdefg,h", b"abcd", 0),
        ("GET", "200 OK", "1,abcd", b"a", 0),
        ("GET", "200 OK", "0", b"", 0),
        ("GET", "200 OK", "0,x", b"", 0),
        ("GET", "200 OK", "9,ab,cd", b"abcd", 1),
        ("GET", "200 OK", "9", b"", 1),
        ("GET", "200 OK", "", b"", 0),
        ("GET", "204 No Content", "", b"", 0),
        ("GET", "304 Not Modified", "9", b"", 0),
        ("GET", "304 Not Modified", "9,ab", b"", 0),
        ("HEAD", "200 OK", "4,ab,cd", b"", 0),
        ("HEAD", "200 OK", "4", b"", 0),
        ("HEAD", "200 OK", ",ab,cd", b"", 0),
    ],
)
def test_content_length(
    app: Application, kind: str, method: str, status: str, query: str, body: bytes, app_status: int
) -> None:
    """What is promised is kept, or told; the connection goes on."""
    app.start("apps:length")
    peer = app.connect()
    for _ in range(2):
        reply = peer.ask(method, HTTP_KIND=kind, HTTP_STATUS=status, QUERY_STRING=query)
        assert (reply.body, reply.app_status) == (body, app_status)
        assert reply.head[0] == f"Status: {status}"
        lengths = [line for line in reply.head if line.startswith("Content-Length: ")]
        promised = query.split(",", maxsplit=1)[0]
        assert lengths == ([f"Content-Length: {promised}"] if promised else lengths)
        assert ("less than its Content-Length" in reply.errors.decode()) == bool(app_status)


# Failures of the application


@pytest.mark.parametrize("name", ["fails", "exits"])
def test_an_exception_becomes_a_page(app: Application, name: str) -> None:
    """And a traceback in the web server's log; the worker goes on."""
    app.start(f"apps:{name}")
    peer = app.connect()
    for _ in range(2):
        reply = peer.ask()
        assert reply.head[0] == "Status: 500 Internal Server Error"
        assert b"on purpose" not in reply.body
        assert reply.app_status == 1
        assert b"Traceback" in reply.errors
        assert ("on purpose: caf\u00e9" if name == "fails" else "SystemExit: no more") in reply.errors.decode()
    assert peer.ask("HEAD").body == b""


def test_an_exception_after_the_first_block(app: Application) -> None:
    """Ends the response with a status, not with a page within the body."""
    app.start("apps:fails_late")
    reply = app.connect().ask()
    assert (reply.body, reply.app_status) == (b"begun", 1)
    assert b"on purpose" in reply.errors


def test_start_response_with_exc_info(app: Application) -> None:
    """Replaces the header while it can, else raises."""
    app.start("apps:recovers")
    reply = app.connect().ask()
    assert (reply.head[0], reply.body, reply.app_status) == ("Status: 503 Not Now", b"recovered", 0)


def test_start_response_with_exc_info_too_late(app: Application) -> None:
    """The header has been sent."""
    app.start("apps:recovers_late")
    reply = app.connect().ask()
    assert (reply.body, reply.app_status) == (b"begun", 1)
    assert b"too late" in reply.errors


def test_misuse(app: Application) -> None:
    """Each becomes a page and words; nothing gets into the header."""
    app.start("apps:misuse")
    peer = app.connect()
    expected = {
        "no start": "without calling start_response",
        "text": "a block of str",
        "number": "a block of int",
        "none": "NoneType",
        "twice": "called twice",
        "status": "write, say, '404 Not Found'",
        "bytes": "write, say, '404 Not Found'",
        "split": "write, say, '404 Not Found'",
        "header": "does not allow",
        "two lines": "does not allow",
        "name": "does not allow",
        "unicode": "does not allow",
        "int": "not of two strings",
        "length": "write a number",
    }
    for kind, words in expected.items():
        reply = peer.ask(QUERY_STRING=kind)
        assert reply.head[0] == "Status: 500 Internal Server Error", kind
        assert words in reply.errors.decode(), kind
    assert peer.ask(QUERY_STRING="good").body == b"x"


def test_errors_are_records(app: Application) -> None:
    """At a flush, when much has gathered, and with the response; other threads' words go to our own stderr."""
    app.start("apps:logs")
    peer = app.connect()
    peer.send()
    assert peer.next_event() == Stderr("first \u00e9\n".encode())
    assert peer.next_event() == Stderr(b"second \\udc80\n")
    release(app.directory / "gate")
    reply = peer.receive()
    assert (reply.body, reply.errors) == (b"logged", b"x" * 9000 + b"third\n")
    wait_until(lambda: "" if "from a thread\n" in app.errors.read_text() else "no words")


def test_close_comes_after_the_end(app: Application) -> None:
    """Nobody waits for it; what it has to say goes to our own stderr."""
    app.start("apps:LateClose")
    peer = app.connect()
    for _ in range(2):
        reply = peer.ask()
        assert (reply.body, reply.errors, reply.app_status) == (b"body", b"", 0)
        release(app.directory / "gate")
    wait_until(lambda: "" if app.errors.read_text().count("ValueError: in close") == 2 else "no words")
    assert "words after the end" in app.errors.read_text()


# The request body


def test_the_input(app: Application) -> None:
    """All its methods, however it is cut."""
    app.start("apps:input_methods")
    expected = b"abc|def\n|long| line\n||one\n|two\n|three\n|12345|6\nrest|||"
    body = expected.replace(b"|", b"")
    peer = app.connect()
    assert peer.ask("POST", body).body == expected
    peer.send("POST", b"", ends=False)
    for index in range(len(body)):
        peer.socket.sendall(b"".join(stdin_records(body[index : index + 1])))
    peer.socket.sendall(END_OF_STDIN)
    assert peer.receive().body == expected


def test_a_large_body(app: Application) -> None:
    """Is read as it comes."""
    app.start("apps:digest")
    body = os.urandom(1_000_000) * 5
    assert app.connect().ask("POST", body).body.decode() == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("keep", [True, False])
def test_a_body_that_nobody_reads(app: Application, keep: bool) -> None:
    """Neither harms the response nor the next request."""
    app.start("apps:hello")
    peer = app.connect()
    peer.send("POST", b"x" * 20_000, keep=keep, ends=False)
    assert peer.receive().body == b"hello, world\n"
    if keep:
        peer.socket.sendall(b"".join(stdin_records(b"y" * 500_000)) + END_OF_STDIN)
        assert peer.ask().body == b"hello, world\n"
    else:
        assert peer.is_closed()
        peer.socket.sendall(b"".join(stdin_records(b"y" * 500_000)) + END_OF_STDIN)
    assert app.connect().ask().body == b"hello, world\n"


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_body_that_ends_too_early(app: Application, how: str) -> None:
    """The application gets an error, not half a body."""
    app.start("apps:reads_all")
    peer = app.connect()
    peer.send("POST", b"half", ends=False)
    if how == "close":
        peer.socket.shutdown(socket.SHUT_WR)
        words = "closed"
    else:
        peer.socket.sendall(ABORT)
        assert isinstance(peer.receive(), object)
        words = "given the request up"
    closed = app.directory / "closed"
    wait_until(lambda: "" if closed.exists() and words in closed.read_text() else "not told")


# The connection


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("size", ["10", "1000000"])
def test_a_response_that_nobody_wants(app: Application, how: str, size: str) -> None:
    """Is not made any longer; close is called; an aborted request is ended (section 5.4)."""
    app.start("apps:Endless")
    peer = app.connect()
    peer.send(QUERY_STRING=size)
    assert isinstance(peer.next_event(), Stdout)
    if how == "close":
        peer.socket.close()
    else:
        peer.socket.sendall(ABORT)
        assert peer.receive().app_status == 1
    closed = app.directory / "closed"
    wait_until(lambda: "" if closed.exists() and closed.read_text() else "not closed")
    other = app.connect()
    other.send(QUERY_STRING=size)
    assert isinstance(other.next_event(), Stdout)
    other.socket.close()


def test_abort_before_the_request_is_there(app: Application) -> None:
    """Is answered by its end."""
    app.start("apps:hello")
    peer = app.connect()
    peer.socket.sendall(encode_record(1, 1, struct.pack(">HB5x", 1, 1)) + ABORT)
    assert peer.receive().protocol_status == ProtocolStatus.REQUEST_COMPLETE
    peer.reader.begin()
    assert peer.ask().body == b"hello, world\n"


def test_an_idle_connection_pins_nothing(app: Application) -> None:
    """Nor does one that has sent half of a request's beginning; one worker serves them all."""
    app.start("apps:hello")
    kept = [app.connect() for _ in range(5)]
    for peer in kept:
        assert peer.ask().body == b"hello, world\n"
    silent, half = app.connect(), app.connect()
    half.socket.sendall(encode_record(1, 1, struct.pack(">HB5x", 1, 1))[:11])
    for _ in range(3):
        assert app.connect().ask(keep=False).body == b"hello, world\n"
        for peer in kept:
            assert peer.ask().body == b"hello, world\n"
    assert silent.ask().body == b"hello, world\n"


def test_more_connections_than_are_kept(app: Application) -> None:
    """The one idle for longest is closed."""
    app.start("apps:hello")
    peers = [app.connect() for _ in range(KEPT_LIMIT + 2)]
    for peer in peers:
        assert peer.ask().body == b"hello, world\n"
    assert peers[0].is_closed()
    assert peers[1].is_closed()
    assert peers[2].ask().body == b"hello, world\n"


def test_more_connections_than_descriptors(app: Application) -> None:
    """The same, sooner."""
    app.start("apps:hello", prefix=("sh", "-c", 'ulimit -n 24; exec "$@"', "sh"))
    for _ in range(60):
        assert app.connect().ask().body == b"hello, world\n"


def test_requests_that_come_together(app: Application) -> None:
    """One after the other is answered."""
    app.start("apps:hello")
    peer = app.connect()
    peer.send()
    first = encode_record(1, 1, struct.pack(">HB5x", 1, 1)) + encode_record(4, 1) + END_OF_STDIN
    peer.socket.sendall(first * 3)
    for _ in range(4):
        assert peer.receive().body == b"hello, world\n"
        peer.reader.begin()


def test_a_request_within_a_request(app: Application) -> None:
    """Of the same id it breaks the protocol: the response is given up, and the connection is closed."""
    app.start("apps:streaming")
    peer = app.connect()
    peer.send()
    assert isinstance(peer.next_event(), Stdout)
    peer.socket.sendall(encode_record(1, 1, struct.pack(">HB5x", 1, 1)))
    release(app.directory / "gate")
    assert peer.receive().app_status == 1
    assert peer.is_closed()


def test_what_the_protocol_answers(app: Application) -> None:
    """Values, unknown types and roles, a second request."""
    app.start("apps:waiting")
    peer = app.connect()
    peer.socket.sendall(get_values([b"FCGI_MAX_CONNS", b"FCGI_MPXS_CONNS"]) + encode_record(99, 0))
    assert peer.next_event() == Values({b"FCGI_MAX_CONNS": b"1", b"FCGI_MPXS_CONNS": b"0"})
    assert peer.next_event() == UnknownType(99)
    peer.socket.sendall(encode_record(1, 1, struct.pack(">HB5x", 9, 1)))
    assert peer.next_event() == End(0, ProtocolStatus.UNKNOWN_ROLE)
    peer.reader.begin()
    peer.send()
    peer.socket.sendall(get_values([]))
    release(app.directory / "gate")
    assert peer.receive().body == b"hello, world\n"


def test_nonsense_closes_its_connection_alone(app: Application) -> None:
    """Others are served."""
    app.start("apps:hello")
    good = app.connect()
    assert good.ask().body == b"hello, world\n"
    for nonsense in (b"GET / HTTP/1.0\r\n\r\n", encode_record(1, 1, b"short"), encode_record(9, 0, b"\xff" * 8)):
        bad = app.connect()
        bad.socket.sendall(nonsense)
        assert bad.is_closed()
        assert good.ask().body == b"hello, world\n"


@pytest.mark.parametrize(("addresses", "allowed"), [("127.0.0.1, 10.0.0.1", True), ("10.0.0.1", False)])
def test_only_some_web_servers_may_connect(tmp_path: Path, addresses: str, allowed: bool) -> None:
    """FCGI_WEB_SERVER_ADDRS (section 3.2)."""
    with served(directory_of_applications(tmp_path), socket.AF_INET) as app:
        app.start("apps:hello", environment={"FCGI_WEB_SERVER_ADDRS": addresses})
        peer = app.connect()
        if allowed:
            assert peer.ask().body == b"hello, world\n"
        else:
            assert peer.is_closed()
