"""Bodies that programs are given while they come: both directions at once, and who leaves, stalls or does not care."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading

import pytest

from gateway.config import ConfigFileError, read_file
from tests import misbehaviour, support
from tests.client_support import ask, client, request, status
from tests.fcgi_server import FcgiServer
from tests.real_client import Ending, Memory
from tests.test_pool_peers import running_front

MIB = 1 << 20
HEAD = "printf 'Content-Type: text/plain\\n\\n'\n"
# Says on stderr how its input ends: by TERM or by an end.
LISTENS = f"""#!{sys.executable} -ES
import os, signal, sys
def term(*_):
    print("got TERM", file=sys.stderr, flush=True)
    os._exit(1)
signal.signal(signal.SIGTERM, term)
%s
size = 0
print("running", os.getpid(), file=sys.stderr, flush=True)
while piece := os.read(0, 65536):
    size += len(piece)
    print("read", size, file=sys.stderr, flush=True)
print("got the end", file=sys.stderr, flush=True)
os.write(1, b"Content-Type: text/plain\\n\\n%%d\\n" %% size)
"""
# Input that has come by now is echoed before more comes; its length is told first.
ECHO = f"""#!{sys.executable} -ES
import os
os.write(1, b"Content-Type: text/plain\\n\\n" + os.environ.get("CONTENT_LENGTH", "none").encode() + b"\\n")
while piece := os.read(0, 65536):
    while piece:
        piece = piece[os.write(1, piece):]
"""
SUMS = f"""#!{sys.executable} -ES
import hashlib, os
%s
sum, size = hashlib.sha256(), 0
while piece := os.read(0, 65536):
    sum.update(piece)
    size += len(piece)
print("Content-Type: text/plain\\n")
print(size, sum.hexdigest())
"""
FIRST = "os.write(1, b'Content-Type: text/plain\\n\\nfirst\\n')"
WHOLE = "os.write(1, b'Content-Length: 6\\nContent-Type: text/plain\\n\\nwhole\\n')"
PROGRAMS = {
    "echo": ECHO,
    "listens": LISTENS % "",
    "begins": LISTENS % FIRST,
    "whole": LISTENS % WHOLE,
    "closes": LISTENS % f"{FIRST}; os.close(1)",
    "early": f"#!/bin/sh\n{HEAD}echo enough\n",
    "fails": "#!/bin/sh\nexit 3\n",
    "nowhere": "#!/no/such/interpreter\n",
    "ignores": "#!/bin/sh\nexec sleep 600\n",
    "dies": "#!/bin/sh\nhead -c 5 >&2\nkill -9 $$\n",
    "hops": "#!/bin/sh\nhead -c 5 >/dev/null\nprintf 'Location: /cgi/early\\n\\n'\n",
}
ROUTE = '[[routes]]\npath = "/cgi/"\ncgi = "cgi"\nstream_body = true\n'


@pytest.fixture
def start(configured, tmp_path, gate):
    """Start a server by what stands in [server], with a route of programs that are given bodies while they come."""
    gated = f"#!/bin/sh\nexec 3<{gate.path}\nread line <&3\n"
    for name, text in {
        **PROGRAMS,
        "gated": gated + f"{HEAD}cat\n",
        "sums late": SUMS % f"open({str(gate.path)!r}, 'rb').readline()",
        "writes first": SUMS % "os.write(1, b'Content-Type: text/plain\\n\\n'); os.write(1, bytes(10 << 20))",
        "closes stdin": f"#!/bin/sh\nexec <&-\n{gated}{HEAD}echo closed\n",
    }.items():
        misbehaviour.program(tmp_path / "cgi" / name, text)

    def start(text="", more=""):
        return configured(f"kill_timeout = 1\n{text}{ROUTE}{more}")

    return start


def head(path, length, *fields):
    """The head of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def until(sock, end):
    """What comes until `end` is in it."""
    got = b""
    while end not in got:
        more = sock.recv(65536)
        assert more, got
        got += more
    return got


@contextlib.contextmanager
def pushed(sock, data):
    """Send in a thread, for as long as it is taken."""

    def push():
        with contextlib.suppress(OSError):
            sock.sendall(data)

    thread = threading.Thread(target=push)
    thread.start()
    yield
    thread.join(support.PATIENCE)
    assert not thread.is_alive()


def test_both_directions_at_once(start):
    server = start()
    with client(server) as sock:
        sock.sendall(head("/cgi/echo", 10, "Connection: close") + b"first")
        got = until(sock, b"first")
        sock.sendall(b"later")
        got += support.receive_all(sock)
    assert (status(got), b"\n10\n" in got, b"later" in got) == (200, True, True)
    assert got.endswith(b"0\r\n\r\n")
    server.wait_for_access(r"/cgi/echo HTTP/1.1\" 200 .*exit=0 outcome=ok")


def test_a_body_whose_length_is_not_known_comes_whole(start):
    server = start()
    with client(server) as sock:
        sock.sendall(b"POST /cgi/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        # It is not started yet: another is, and ends.
        assert server.get("/cgi/early").text == "enough\n"
        sock.sendall(b"5\r\nlater\r\n0\r\n\r\n")
        assert b"10\nfirstlater" in misbehaviour.read_response(sock)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_to_stream(start, method):
    server = start()
    assert server.get("/cgi/echo", method=method).text == ("none\n" if method == "GET" else "0\n")


def test_the_connection_goes_on_after_a_body_that_was_read(start):
    server = start()
    with client(server) as sock:
        for _ in range(3):
            sock.sendall(head("/cgi/listens", 100_000) + bytes(100_000))
            assert b"100000\n" in misbehaviour.read_response(sock)


def test_it_is_asked_for_when_the_program_starts(start, gate):
    server = start("max_programs = 1\n")
    with client(server) as first, client(server) as sock:
        first.sendall(request("/cgi/gated", close=True))
        sock.sendall(head("/cgi/echo", 3, "Expect: 100-continue", "Connection: close"))
        with client(server) as third:
            # Whoever comes later waits behind it, so it has been read.
            third.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(misbehaviour.read_response(third)) == 404
        gate.open()
        assert status(support.receive_all(first)) == 200
        assert until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.sendall(b"abc")
        assert b"abc" in support.receive_all(sock)


def test_a_body_that_is_too_large_starts_nothing(start):
    server = start(more="max_body = 10\n")
    assert status(ask(server, head("/cgi/listens", 11, "Expect: 100-continue"))) == 413
    assert "running" not in server.errors.text


# Programs that care little.


def test_who_does_not_read_is_not_sent_more(start, gate):
    """The client is stopped, not the body gathered; what is read then is whole."""
    server = start()
    memory = Memory([server.pid, *support.children(server.pid)])
    body = os.urandom(MIB) * 48
    with client(server) as sock, pushed(sock, head("/cgi/sums%20late", len(body), "Connection: close") + body):
        for _ in range(20):
            assert server.get("/cgi/early").status == 200
        gate.open()
        got = support.receive_all(sock)
    assert f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode() in got
    assert memory.growth() < 16 * MIB
    assert not list(server.temp_dir.iterdir())


def test_who_writes_first(start):
    server = start()
    body = bytes(4 * MIB)
    with client(server) as sock, pushed(sock, head("/cgi/writes%20first", len(body), "Connection: close") + body):
        got = support.receive_all(sock)
    assert status(got) == 200
    assert got.count(b"\0") == 10 * MIB
    assert f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode() in got


def test_who_answers_without_reading(start):
    server = start()
    body = bytes(2 * MIB)
    with client(server) as sock, pushed(sock, head("/cgi/early", 64 * MIB) + body):
        got = support.receive_all(sock)
    assert (status(got), b"enough\n" in got, b"Connection: close" in got) == (200, True, True)
    server.wait_for_access(r"/cgi/early HTTP/1.1\" 200 .*exit=0 outcome=ok")


def test_who_closes_its_stdin_lets_the_client_go_on(start, gate):
    server = start()
    body = bytes(4 * MIB)
    with client(server) as sock:
        with pushed(sock, head("/cgi/closes%20stdin", len(body)) + body):
            pass
        gate.open()
        assert b"closed\n" in misbehaviour.read_response(sock)
        # All of the body has come, so the connection goes on.
        sock.sendall(request("/cgi/early"))
        assert b"enough\n" in misbehaviour.read_response(sock)


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [("fails", 502, "exit status 3"), ("dies", 502, "KILL"), ("nowhere", 500, "/no/such/interpreter")],
)
def test_who_fails_in_the_middle(start, name, expected, words):
    server = start()
    with client(server) as sock:
        sock.sendall(head(f"/cgi/{name}", 64 * MIB) + b"xxxxx")
        assert status(support.receive_all(sock)) == expected
    server.wait_for_log(rf"error \[.*\] {expected} .*{words}")


def test_a_redirect_within_the_server_takes_no_body_along(start):
    server = start()
    with client(server) as sock:
        sock.sendall(head("/cgi/hops", 64 * MIB) + b"xxxxx")
        got = support.receive_all(sock)
    assert (status(got), b"enough\n" in got) == (200, True)


# Nobody takes a part of a body for the whole of it.


def test_a_client_that_leaves_ends_the_program(start):
    server = start()
    with client(server) as sock:
        sock.sendall(head("/cgi/listens", 10) + b"first")
        server.wait_for_log("read 5")
    server.wait_for_log("got TERM")
    server.wait_for_access(r"/cgi/listens HTTP/1.1\" 499 .*exit=1 outcome=client-gone")
    assert "got the end" not in server.errors.text


def test_a_client_that_leaves_while_nobody_reads(start, gate):
    server = start()
    with client(server) as sock, pushed(sock, head("/cgi/ignores", 64 * MIB) + bytes(8 * MIB)):
        for _ in range(5):
            assert server.get("/cgi/early").status == 200
        misbehaviour.vanish(sock)
    server.wait_for_access(r"/cgi/ignores HTTP/1.1\" 499 .*exit=SIGTERM outcome=client-gone")


def test_a_stall_is_408_and_ends_the_program(start):
    server = start("body_timeout = 0.3\n")
    with client(server) as sock:
        sock.sendall(head("/cgi/listens", 10) + b"first")
        assert status(support.receive_all(sock)) == 408
    server.wait_for_log("got TERM")
    server.wait_for_access(r"/cgi/listens HTTP/1.1\" 408 .*exit=1 outcome=timeout")
    assert "got the end" not in server.errors.text


def test_a_stall_within_the_response_cuts_it_off(start):
    server = start("body_timeout = 0.3\n")
    with client(server) as sock:
        sock.sendall(head("/cgi/begins", 10) + b"x")
        got = support.receive_all(sock)
    assert (status(got), b"first\n" in got, got.endswith(b"0\r\n\r\n")) == (200, True, False)
    server.wait_for_log("got TERM")
    server.wait_for_access(r"/cgi/begins HTTP/1.1\" 200 .*outcome=timeout")


@pytest.mark.parametrize("name", ["whole", "closes"])
def test_who_waits_for_the_rest_after_its_answer_is_ended(start, name):
    server = start("script_timeout = 0.5\n")
    with client(server) as sock:
        sock.sendall(head(f"/cgi/{name}", 10) + b"x")
        got = support.receive_all(sock)
    assert status(got) == 200
    server.wait_for_log(r"still running 0\.5 s after its response \(script_timeout\); it is ended")
    server.wait_for_log("got TERM")
    assert "got the end" not in server.errors.text


def test_a_slow_client_is_not_a_silent_program(start):
    server = start("script_timeout = 0.4\n")
    with client(server) as sock:
        sock.sendall(head("/cgi/listens", 10) + b"first")
        # Two programs are ended for their silence, one after the other.
        for _ in range(2):
            assert status(ask(server, request("/cgi/ignores", close=True))) == 504
        sock.sendall(b"later")
        assert b"10\n" in misbehaviour.read_response(sock)


def test_a_program_that_has_all_and_says_nothing_is_silent(start):
    server = start("script_timeout = 0.4\n")
    for size in (3, MIB):
        assert status(ask(server, head("/cgi/ignores", size, "Connection: close") + bytes(size))) == 504


def test_a_server_that_stops_ends_the_program(start):
    server = start()
    with client(server) as sock:
        sock.sendall(head("/cgi/listens", 10) + b"first")
        pid = int(server.wait_for_log(r"running (\d+)")[1])
        ending = Ending(pid)
        server.stop()
        ending.wait()


# Large bodies.


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_256_mib_each_way_need_no_memory(start, loop):
    server = start(f'loop = "{loop}"\n')
    assert server.get("/cgi/early").status == 200
    memory = Memory([server.pid, *support.children(server.pid)])
    piece = os.urandom(MIB)
    expected, got, size = hashlib.sha256(), hashlib.sha256(), 0
    with client(server) as sock:

        def push():
            sock.sendall(head("/cgi/echo", 256 * MIB, "Connection: close"))
            for _ in range(256):
                sock.sendall(piece)

        thread = threading.Thread(target=push)
        thread.start()
        stream = sock.makefile("rb")
        while stream.readline() != b"\r\n":
            pass
        is_first = True
        while length := int(stream.readline(), 16):
            data = stream.read(length)
            assert stream.readline() == b"\r\n"
            if is_first:
                told, _, data = data.partition(b"\n")
                assert told == b"%d" % (256 * MIB)
                is_first = False
            got.update(data)
            size += len(data)
        thread.join()
    for _ in range(256):
        expected.update(piece)
    assert (size, got.hexdigest()) == (256 * MIB, expected.hexdigest())
    assert memory.growth() < 24 * MIB
    assert not list(server.temp_dir.iterdir())


@pytest.fixture
def pooled(tmp_path):
    """Start a server that may have pools, by what stands after its table [server]."""
    (tmp_path / "cgi").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:

        def pooled(text):
            path = tmp_path / "gateway.toml"
            path.write_text(f'[server]\nlisten = ["127.0.0.1:0"]\nworkers = 1\n{text}')
            return stack.enter_context(running_front(config=path))

        yield pooled


def test_a_script_that_runs_warm(start, tmp_path):
    misbehaviour.program(
        tmp_path / "cgi" / "lines.py",
        f"#!{sys.executable}\nimport sys\nprint('Content-Type: text/plain\\n', flush=True)\n"
        "for line in sys.stdin:\n    print('got', line.strip(), flush=True)\n",
    )
    server = start(more="warm = true\n")
    for _ in range(3):
        with client(server) as sock:
            sock.sendall(head("/cgi/lines.py", 12, "Connection: close") + b"first\n")
            got = until(sock, b"got first\n")
            sock.sendall(b"later\n")
            got += support.receive_all(sock)
        assert b"got later\n" in got


# FastCGI.


@pytest.fixture
def peer():
    peer = FcgiServer()
    yield peer
    peer.close()


@pytest.fixture
def front(configured, peer):
    """Start a server by what stands in [server], whose route passes bodies on to `peer` while they come."""

    def front(text="", more=""):
        route = f'[[routes]]\npath = "/app/"\nfastcgi = "{peer.address}"\nstream_body = true\n'
        return configured(f"{text}{route}{more}")

    return front


def read_on(call, size):
    """Read on until so much of a body has come."""
    while len(call.body) < size:
        assert not call.connection.is_closed
        call.connection.wait()
        call.connection.pull()


def test_stdin_comes_as_it_is_sent(front, peer):
    server = front()
    with client(server) as sock:
        sock.sendall(head("/app/", 10, "Connection: close") + b"first")
        call = peer.take_begun()
        read_on(call, 5)
        assert (call.params["CONTENT_LENGTH"], bytes(call.body)) == (b"10", b"first")
        call.stdout(b"Content-Type: text/plain\r\n\r\nso far\n")
        got = until(sock, b"so far\n")
        sock.sendall(b"later")
        call = peer.take()
        assert call.body == b"firstlater"
        call.end()
        got += support.receive_all(sock)
    assert (status(got), got.endswith(b"0\r\n\r\n")) == (200, True)


@pytest.mark.parametrize(
    ("rest", "body"),
    [(b"Content-Length: 0\r\n\r\n", b""), (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc")],
)
def test_what_is_not_streamed(front, peer, rest, body):
    server = front()
    with client(server) as sock:
        sock.sendall(b"POST /app/ HTTP/1.1\r\nHost: x\r\n" + rest)
        call = peer.take()
        assert (call.params["CONTENT_LENGTH"], call.body) == (b"%d" % len(body), body)
        call.answer()
        assert status(misbehaviour.read_response(sock)) == 200


def test_a_client_that_leaves_aborts(front, peer):
    server = front()
    with client(server) as sock:
        sock.sendall(head("/app/", 10) + b"first")
        call = peer.take_begun()
        read_on(call, 5)
    call.wait_for_abort()
    call.wait_for_close()
    server.wait_for_access(r"/app/ HTTP/1.1\" 499 .*outcome=client-gone")


def test_a_stall_aborts(front, peer):
    server = front("body_timeout = 0.3\n")
    with client(server) as sock:
        sock.sendall(head("/app/", 10) + b"first")
        call = peer.take_begun()
        call.wait_for_abort()
        assert status(support.receive_all(sock)) == 408
    call.wait_for_close()


def test_a_server_that_answers_early(front, peer):
    server = front()
    with client(server) as sock, pushed(sock, head("/app/", 64 * MIB) + bytes(MIB)):
        call = peer.take_begun()
        call.answer()
        got = support.receive_all(sock)
    assert (status(got), b"fine\n" in got, b"Connection: close" in got) == (200, True, True)


def test_nothing_is_sent_twice(front, peer):
    server = front(more="connections = 2\n")
    with client(server) as sock:
        sock.sendall(request("/app/"))
        peer.take().answer()
        assert status(misbehaviour.read_response(sock)) == 200
        # Idempotent, and still not on a connection that was kept, and not again when its own breaks.
        sock.sendall(head("/app/", 10).replace(b"POST", b"PUT") + b"first")
        call = peer.take_begun()
        read_on(call, 5)
        call.close()
        assert status(support.receive_all(sock)) == 502
    assert peer.accepted == 2


@pytest.mark.parametrize("protocol_status", [1, 2])
def test_a_server_that_turns_it_away_is_not_asked_again(front, peer, protocol_status):
    server = front()
    with client(server) as sock:
        sock.sendall(head("/app/", 10) + b"first")
        peer.take_begun().end(protocol_status=protocol_status)
        assert status(support.receive_all(sock)) == 503
    assert peer.accepted == 1


def test_who_does_not_read_its_stdin_is_not_sent_more(front, peer):
    server = front()
    memory = Memory([server.pid, *support.children(server.pid)])
    body = os.urandom(MIB) * 48
    with client(server) as sock, pushed(sock, head("/app/", len(body), "Connection: close") + body):
        call = peer.take_begun()
        for _ in range(20):
            assert server.get("/").status == 404
        call = peer.take()
        assert call.body == body
        call.answer()
        assert status(support.receive_all(sock)) == 200
    assert memory.growth() < 16 * MIB


def test_a_slow_client_is_not_a_silent_server(front, peer):
    server = front("script_timeout = 0.4\n")
    with client(server) as sock:
        sock.sendall(head("/app/", 10) + b"first")
        slow = peer.take_begun()
        for _ in range(2):
            with client(server) as other:
                other.sendall(head("/app/", 0, "Connection: close"))
                peer.take().wait_for_close()
                assert status(support.receive_all(other)) == 504
        sock.sendall(b"later")
        read_on(slow, 10)
        peer.take().answer()
        assert status(misbehaviour.read_response(sock)) == 200


ECHO_APP = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    while piece := environ["wsgi.input"].read(65536):
        yield piece
"""


def test_256_mib_each_way_through_a_pool(pooled, tmp_path):
    (tmp_path / "wiki.py").write_text(ECHO_APP)
    server = pooled(
        f'[pools.wiki]\napp = "wiki:application"\nmax_children = 1\nenv = {{ PYTHONPATH = "{tmp_path}" }}\n'
        '[[routes]]\npath = "/app/"\nfastcgi = "pool:wiki"\nstream_body = true\n'
    )
    assert server.get("/app/").status == 200
    memory = Memory([pid for pid in server.workers() if "fcgi_pool" not in support.command(pid)])
    piece = os.urandom(MIB)
    size = 0
    with client(server) as sock, pushed(sock, head("/app/", 256 * MIB, "Connection: close") + piece * 256):
        while data := sock.recv(MIB):
            size += len(data)
    assert size > 256 * MIB
    assert memory.growth() < 24 * MIB


# What is written wrongly.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('root = "."\nstream_body = true\n', "goes with cgi or fastcgi"),
        ('cgi = "."\nwarm = "reuse"\nstream_body = true\n', "does not go with reuse"),
    ],
)
def test_who_is_given_no_body_while_it_comes(tmp_path, text, message):
    (tmp_path / "gateway.toml").write_text('[[routes]]\npath = "/"\n' + text)
    with pytest.raises(ConfigFileError, match=rf":[45]: routes\[1\]\.stream_body: {message}"):
        read_file(str(tmp_path / "gateway.toml"))
