"""Limits that a route has in place of the server's, or beside them; and who is exempt from those of clients."""

from __future__ import annotations

import base64
import re
import select
import socket

import bcrypt
import pytest

from gateway.config import ConfigFileError, read_file
from tests import misbehaviour, support
from tests.client_support import ECHO, FINE, FLOODS, WAITS, ask, client, request, status
from tests.fcgi_server import FcgiServer

CGI = 'cgi = "cgi"\n'
AT = '[[routes]]\npath = "/{}/"\n'
PLAIN = AT.format("plain") + CGI


@pytest.fixture(autouse=True)
def programs(tmp_path, gate):
    gated = f"#!/bin/sh\necho is gated >&2\nread line <{gate.path}\nprintf 'Content-Type: text/plain\\n\\nlet go'\n"
    for name, text in [("fine", FINE), ("echo", ECHO), ("floods", FLOODS), ("waits", WAITS), ("gated", gated)]:
        misbehaviour.program(tmp_path / "cgi" / name, text)


def route(name, *lines):
    """The text of a route below /NAME/, by the programs."""
    return AT.format(name) + CGI + "".join(line + "\n" for line in lines)


def post(path, size, *fields, chunked=False, body=True):
    """The bytes of a POST with a body of `size` bytes, or of its head alone."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", framing, *fields, "", ""]).encode()
    if not body:
        return head
    return head + (b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size) if chunked else b"x" * size)


def content(got):
    """A response's body, whose coding is taken away."""
    head, _, body = got.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return body
    found = b""
    while body:
        length, _, body = body.partition(b"\r\n")
        found += body[: int(length, 16)]
        body = body[int(length, 16) + 2 :]
    return found


# The body's size.


@pytest.fixture(params=["httptools", "h11"])
def sizes(request, configured):
    """A server that takes 1000 bytes, but for one route 10 and for another 100,000."""
    texts = [route("small", "max_body = 10"), route("large", 'max_body = "100K"'), PLAIN]
    return configured(f'http = "{request.param}"\nmax_body = 1000\n' + "".join(texts))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("name", "most"), [("small", 10), ("plain", 1000), ("large", 100 * 1024)])
def test_a_body_may_be_as_large_as_its_route_says(sizes, name, most, chunked):
    got = ask(sizes, post(f"/{name}/echo", most, chunked=chunked))
    assert (status(got), content(got)) == (200, b"x" * most)
    got = ask(sizes, post(f"/{name}/echo", most + 1, chunked=chunked))
    assert status(got) == 413
    assert got.count(b"HTTP/1.1") == 1
    sizes.wait_for_access(rf"/{name}/echo HTTP/1.1\" 413 .*pid=- .*outcome=refused")


def test_what_is_too_large_is_refused_by_its_head(sizes):
    """Before 100 Continue, and before any of it has come."""
    got = ask(sizes, post("/small/echo", 11, "Expect: 100-continue", body=False))
    assert status(got) == 413
    with client(sizes) as sock:
        sock.sendall(post("/large/echo", 2000, "Expect: 100-continue", body=False))
        assert misbehaviour.read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"x" * 2000)
        assert content(support.receive_all(sock)) == b"x" * 2000


def test_a_chunked_body_is_refused_while_it_comes(sizes):
    with client(sizes) as sock:
        sock.sendall(post("/small/echo", 0, chunked=True, body=False) + b"8\r\nxxxxxxxx\r\n3\r\n")
        assert status(support.receive_all(sock)) == 413


def test_the_next_request_of_a_connection_has_its_own_limit(sizes):
    first = post("/large/echo", 2000).replace(b"Connection: close\r\n", b"")
    with client(sizes) as sock:
        sock.sendall(first + post("/plain/echo", 2000))
        got = support.receive_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"413"]


def test_where_nothing_is_no_body_is_taken(sizes):
    assert status(ask(sizes, post("/nowhere", 50_000))) == 404


def test_the_route_of_the_clients_path_decides(configured, tmp_path):
    server = configured(
        "max_body = 1000\n"
        + route("strict", "max_body = 10", 'try_files = ["$path", "/wide/echo"]')
        + route("wide", "max_body = 5000")
        + '[[rewrites]]\nmatch = "^/renamed$"\nto = "/wide/echo"\n'
    )
    assert status(ask(server, post("/strict/nosuch", 11))) == 413
    assert content(ask(server, post("/strict/nosuch", 10))) == b"x" * 10
    assert content(ask(server, post("/renamed", 5000))) == b"x" * 5000
    assert status(ask(server, post("/renamed", 5001))) == 413


def test_a_page_for_what_is_too_large(configured):
    server = configured(route("small", "max_body = 10", 'error_pages = { 413 = "/plain/fine" }') + PLAIN)
    got = ask(server, post("/small/echo", 11, body=False))
    assert (status(got), content(got)) == (413, b"fine\n")


def test_a_body_for_fastcgi(configured):
    peer = FcgiServer()
    try:
        server = configured(AT.format("app") + f'fastcgi = "{peer.address}"\nmax_body = 10\n')
        assert status(ask(server, post("/app/", 11, chunked=True))) == 413
        with client(server) as sock:
            sock.sendall(post("/app/", 10, chunked=True))
            call = peer.take()
            assert (call.params["CONTENT_LENGTH"], call.body) == (b"10", b"x" * 10)
            call.answer()
            assert status(support.receive_all(sock)) == 200
    finally:
        peer.close()


# Times. What has a longer time is asked first, and lives on when what has a shorter one has ended.


def outlived(server, gate, begin, ends):
    """Ask /long/gated by `begin`; it is answered well although `ends()` has come to an end by its time twice."""
    with client(server) as sock:
        sock.sendall(begin)
        for _ in range(2):
            ends()
        gate.open()
        return support.receive_all(sock)


def test_how_long_a_program_may_be_silent(configured, gate):
    server = configured("script_timeout = 60\nkill_timeout = 1\n" + route("short", "script_timeout = 0.3") + PLAIN)
    got = outlived(
        server, gate, request("/plain/gated", close=True), lambda: ask(server, request("/short/waits", close=True))
    )
    assert content(got) == b"let go"
    assert len(re.findall(r"/short/waits HTTP/1.1\" 504 ", server.wait_for_access(r"(?s).*504 .*504 ")[0])) == 2
    server.wait_for_log(r"no header: .* silent for 0\.3 s \(script_timeout\)")


def test_a_route_may_have_longer_times(configured, gate):
    server = configured("script_timeout = 0.3\nkill_timeout = 1\n" + route("long", "script_timeout = 60") + PLAIN)
    got = outlived(
        server, gate, request("/long/gated", close=True), lambda: ask(server, request("/plain/waits", close=True))
    )
    assert content(got) == b"let go"


def test_fastcgi_has_the_routes_time_too(configured):
    peer = FcgiServer()
    try:
        server = configured(AT.format("app") + f'fastcgi = "{peer.address}"\nscript_timeout = 0.3\n')
        with client(server) as sock:
            sock.sendall(request("/app/", close=True))
            peer.take().wait_for_close()
            assert status(support.receive_all(sock)) == 504
    finally:
        peer.close()


def test_how_long_a_request_waits_for_its_place(configured, gate):
    server = configured("max_programs = 1\n" + route("short", "queue_timeout = 0.3") + PLAIN)
    with client(server) as first, client(server) as waiting:
        first.sendall(request("/plain/gated", close=True))
        waiting.sendall(request("/plain/fine", close=True))
        for _ in range(2):
            assert status(ask(server, request("/short/fine", close=True))) == 503
        gate.open()
        assert content(support.receive_all(first)) == b"let go"
        assert content(support.receive_all(waiting)) == b"fine\n"


def test_how_long_a_body_may_stall(configured):
    server = configured(route("short", "body_timeout = 0.3") + PLAIN)
    with client(server) as sock:
        sock.sendall(post("/plain/echo", 2, body=False) + b"x")
        for _ in range(2):
            assert status(ask(server, post("/short/echo", 2, body=False) + b"x")) == 408
        sock.sendall(b"y")
        assert content(support.receive_all(sock)) == b"xy"


def test_how_long_a_client_may_take_nothing(configured):
    server = configured("kill_timeout = 1\n" + route("short", "send_timeout = 0.5") + PLAIN)

    def flood(path):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(support.PATIENCE)
        sock.connect((server.host, server.port))
        sock.sendall(request(path))
        return sock

    with flood("/plain/floods") as patient, flood("/short/floods"):
        server.wait_for_access(r"/short/floods .*outcome=timeout")
        assert patient.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert "/plain/floods" not in server.accesses.text
    server.wait_for_access(r"/plain/floods .*outcome=client-gone")


# Clients. One request a minute: no machine is so slow that another would be allowed meanwhile.


def test_a_rate_of_a_route_is_its_own(configured):
    server = configured(route("slow", 'limit_rate = "1/m,burst=1"') + route("other", 'limit_rate = "1/m"') + PLAIN, 2)
    answers = [ask(server, request("/slow/fine", close=True)) for _ in range(5)]
    assert [status(answer) for answer in answers] == [200, 200, 429, 429, 429]
    assert re.search(rb"\r\nRetry-After: \d+\r\n", answers[-1])
    assert [status(ask(server, request("/other/fine", close=True))) for _ in range(2)] == [200, 429]
    assert [status(ask(server, request("/plain/fine", close=True))) for _ in range(5)] == [200] * 5
    assert status(ask(server, request("/slow/fine", close=True), "127.0.0.2")) == 200
    server.wait_for_access(r"/slow/fine .* 429 .*pid=- .*outcome=limited")


def test_a_route_is_counted_apart_from_the_server(configured):
    server = configured('[clients]\nlimit_rate = "1/m,burst=3"\n' + route("slow", 'limit_rate = "1/m,burst=1"') + PLAIN)
    paths = ["slow", "slow", "slow", "plain", "plain"]
    got = [status(ask(server, request(f"/{path}/fine", close=True))) for path in paths]
    # The third is one too many for the route, the fifth for the server.
    assert got == [200, 200, 429, 200, 429]


def test_requests_of_a_routes_burst_wait_for_their_turn(configured):
    server = configured(route("slow", 'limit_rate = "50/s,burst=9,delay"'))
    with client(server) as sock:
        sock.sendall(request("/slow/fine") * 9 + request("/slow/fine", close=True))
        got = support.receive_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"] * 10


def test_a_request_is_counted_once(configured):
    server = configured(
        route("slow", 'limit_rate = "1/m,burst=1"', 'try_files = ["$path", "/next/fine"]')
        + route("next", 'limit_rate = "1/m"')
    )
    assert [status(ask(server, request("/slow/x", close=True))) for _ in range(3)] == [200, 200, 429]
    assert [status(ask(server, request("/next/fine", close=True))) for _ in range(2)] == [200, 429]


def test_requests_at_once_of_one_client(configured, gate):
    server = configured(route("few", "limit_connections = 2") + PLAIN, 2)
    with client(server) as one, client(server) as two:
        for sock in (one, two):
            sock.sendall(request("/few/gated", close=True))
        server.wait_for_log(r"is gated[\s\S]*is gated")
        got = ask(server, request("/few/fine", close=True))
        assert (status(got), b"\r\nRetry-After: 1\r\n" in got) == (429, True)
        assert status(ask(server, request("/plain/fine", close=True))) == 200
        assert status(ask(server, request("/few/fine", close=True), "127.0.0.9")) == 200
        gate.open()
        gate.open()
        assert {content(support.receive_all(sock)) for sock in (one, two)} == {b"let go"}
    misbehaviour.wait_for(lambda: status(ask(server, request("/few/fine", close=True))) == 200)


def test_a_client_that_left_is_not_counted(configured):
    server = configured("kill_timeout = 1\n" + route("few", "limit_connections = 1"))
    with client(server) as sock:
        sock.sendall(request("/few/waits"))
        server.wait_for_log("running")
        assert status(ask(server, request("/few/fine", close=True))) == 429
    misbehaviour.wait_for(lambda: status(ask(server, request("/few/fine", close=True))) == 200)


# Who may.


def basic(name, password):
    return "Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def files(tmp_path):
    """Files of passwords: of alice and of bob."""
    for name in ("alice", "bob"):
        hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
        (tmp_path / f"{name}.txt").write_text(f"{name}:{hashed}\n")


def test_a_route_asks_for_its_own_passwords(configured, files):
    server = configured(
        '[clients.auth]\n"/" = "alice.txt"\n'
        + route("bobs", 'auth = "bob.txt"', 'auth_realm = "of bob"')
        + PLAIN
        + route("two", 'methods = ["GET"]')
        + route("two", 'methods = ["POST"]', 'auth = "bob.txt"')
    )

    def got(path, name="", method="GET"):
        fields = [basic(name, "secret")] if name else []
        raw = request(path, *fields, close=True).replace(b"GET", method.encode(), 1)
        return ask(server, raw)

    assert b'\r\nWWW-Authenticate: Basic realm="of bob"' in got("/bobs/fine")
    assert [status(got("/bobs/fine", name)) for name in ("", "alice", "bob")] == [401, 401, 200]
    assert [status(got("/plain/fine", name)) for name in ("", "alice", "bob")] == [401, 200, 401]
    assert [status(got("/two/fine", name)) for name in ("", "alice", "bob")] == [401, 200, 401]
    assert [status(got("/two/fine", name, "POST")) for name in ("", "alice", "bob")] == [401, 401, 200]
    server.wait_for_access(r"- bob .*/bobs/fine")


def test_guesses_are_counted_before_a_password_is_checked(configured, files):
    server = configured(route("bobs", 'auth = "bob.txt"', 'limit_rate = "1/m,burst=1"'))
    guess = request("/bobs/fine", basic("bob", "wrong"), close=True)
    assert [status(ask(server, guess)) for _ in range(4)] == [401, 401, 429, 429]


def test_the_way_to_a_protected_route_within_the_server_is_no_way_around(configured, files):
    server = configured(route("open", 'try_files = ["$path", "/bobs/fine"]') + route("bobs", 'auth = "bob.txt"'))
    assert status(ask(server, request("/open/nosuch", close=True))) == 401
    assert status(ask(server, request("/open/nosuch", basic("bob", "secret"), close=True))) == 200


# Networks that are exempt.


def test_who_is_exempt_is_not_counted(configured):
    limits = 'limit_rate = "1/m"\nlimit_connections = 1\nexempt = ["127.0.0.8/30", "::1"]\n'
    server = configured(f"[clients]\n{limits}" + route("slow", 'limit_rate = "1/m"', "limit_connections = 1"), 2)

    def statuses(address):
        return [status(ask(server, request("/slow/fine", close=True), address)) for _ in range(4)]

    assert statuses("127.0.0.9") == [200] * 4
    assert statuses("127.0.0.12") == [200, 429, 429, 429]
    with client(server, "127.0.0.9") as one, client(server, "127.0.0.9") as two, client(server, "127.0.0.9") as three:
        for sock in (one, two, three):
            sock.sendall(request("/slow/fine"))
            assert status(misbehaviour.read_response(sock)) == 200


def test_a_client_behind_a_proxy_may_be_exempt(configured):
    server = configured(
        '[clients]\nlimit_rate = "1/m"\nreal_ip = ["127.0.0.1"]\nexempt = ["10.0.0.0/8"]\n' + PLAIN
    )

    def statuses(name):
        return [
            status(ask(server, request("/plain/fine", f"X-Forwarded-For: {name}", close=True))) for _ in range(3)
        ]

    assert statuses("10.1.2.3") == [200] * 3
    assert statuses("192.0.2.1") == [200, 429, 429]


def test_who_is_exempt_may_be_slow(serve, tmp_path):
    path = tmp_path / "s"
    server = serve("--min-body-rate", "100000", "--rate-window", "0.5", "--exempt", "127.0.0.2,unix:",
                   "--listen", f"unix:{path}", cgi_dir=tmp_path / "cgi")  # fmt: skip
    raw = post("/cgi-bin/echo", 10, body=False) + b"x" * 9
    with client(server, "127.0.0.2") as spared, socket.socket(socket.AF_UNIX) as local:
        local.connect(str(path))
        for sock in (spared, local):
            sock.sendall(raw)
        for _ in range(2):
            assert status(ask(server, raw)) == 408
        for sock in (spared, local):
            assert not select.select([sock], [], [], 0)[0]
            sock.sendall(b"y")
            assert content(support.receive_all(sock)) == b"xxxxxxxxxy"


# Heads.


def test_a_head_may_be_as_large_as_the_server_says(configured):
    server = configured("max_request_line = 300\nmax_header_size = 2000\nmax_headers = 5\n" + PLAIN)
    # Host and Connection are two of the fields.
    assert status(ask(server, request("/plain/fine", *["A: b"] * 3, close=True))) == 200
    assert status(ask(server, request("/plain/fine", *["A: b"] * 4, close=True))) == 431
    assert status(ask(server, request("/plain/fine?" + "x" * 270, close=True))) == 200
    assert status(ask(server, request("/plain/fine?" + "x" * 280, close=True))) == 414
    assert status(ask(server, request("/plain/fine", "A: " + "x" * 1900, close=True))) == 200
    assert status(ask(server, request("/plain/fine", "A: " + "x" * 2000, close=True))) == 431


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("/x HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("/x HTTP/1.1\r\n\r\n", 400),
        ("/x HTTP/1.1\r\nHost: x\r\nA b\r\n\r\n", 400),
        ("/x HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        ("/x HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n", 417),
        ("/" + "x" * 20_000 + " HTTP/1.1\r\n", 414),
        ("/x HTTP/1.1\r\nHost: x\r\n", 408),
    ],
)
def test_no_body_answers_a_head_that_is_refused(serve, tmp_path, http, rest, expected):
    server = serve("--http", http, "--header-timeout", "0.3", cgi_dir=tmp_path / "cgi")
    for begin in (b"HEAD ", b"\r\nHEAD ", b"HEAD /cgi-bin/fine HTTP/1.1\r\nHost: x\r\n\r\nHEAD "):
        got = server.exchange(begin + rest.encode())
        head, blank, body = got.rpartition(b"\r\n\r\n")
        assert (status(head[head.rindex(b"HTTP/1.1 ") :]), blank, body) == (expected, b"\r\n\r\n", b"")
    assert server.exchange(b"GET " + rest.encode()).endswith(b"</html>\n")


# What is written wrongly.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('max_body = "much"', r"max_body: 'much' is not a size"),
        ("script_timeout = 0", "script_timeout: a time above 0"),
        ('send_timeout = "soon"', "send_timeout: 'soon' is not a time"),
        ('limit_rate = "fast"', "limit_rate: fast: not a rate above 0; write, say, 10/s"),
        ("limit_connections = -1", "limit_connections: -1: a number from 0 to"),
        ('auth = "nosuch"', "auth: nosuch: No such file or directory; name a file that htpasswd -B has made"),
        ('auth = "gate.txt"', "auth: gate.txt: line 1"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, line, message):
    (tmp_path / "gate.txt").write_text("nonsense\n")
    path = tmp_path / "gateway.toml"
    path.write_text(PLAIN + line + "\n")
    with pytest.raises(ConfigFileError, match=rf"^{path}:4: routes\[1\]\.{message}"):
        read_file(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nmax_header_size = 10\n", r":2: server\.max_header_size: 10: a number from 256 to"),
        ("[server]\nmax_headers = 0\n", r":2: server\.max_headers: 0: a number from 1 to"),
        ('[clients]\nexempt = ["everybody"]\n', r":2: clients\.exempt: 'everybody' does not appear to be"),
    ],
)
def test_a_mistake_about_the_server_is_one_line(tmp_path, text, message):
    path = tmp_path / "gateway.toml"
    path.write_text(text + PLAIN)
    with pytest.raises(ConfigFileError, match=rf"^{path}{message}"):
        read_file(str(path))
