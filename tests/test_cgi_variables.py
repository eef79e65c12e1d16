"""What a program finds when it starts: variables, arguments, input, descriptors, signals, its session (RFC 3875, 4)."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import sys

import pytest

from tests import misbehaviour

# Tells everything about itself. The environment is read from the kernel, so that nothing the interpreter does to it
# is seen, and as Latin-1, so that each byte is one character. Of a warm process the kernel knows what its interpreter
# was started with; there it is what another program would be given, without what Python sets in the C locale (PEP 538).
TELL = f"""#!{sys.executable} -IS
import json, os, sys
held = []
for n in map(int, os.listdir("/proc/self/fd")):
    try:
        os.fstat(n)
    except OSError:
        continue
    held.append(n)
with open("/proc/self/cmdline", "rb") as file:
    is_warm = b"/cgi/warm/bootstrap." in file.read()
if is_warm:
    items = [name + b"=" + value for name, value in os.environb.items() if name != b"LC_CTYPE"]
else:
    with open("/proc/self/environ", "rb") as file:
        items = file.read().split(b"\\0")
pairs = [item.decode("latin-1").partition("=")[::2] for item in items if item]
mask = os.umask(0)
print("Content-Type: application/json")
print()
print(json.dumps({{
    "pairs": pairs, "arguments": sys.argv[1:], "program": sys.argv[0],
    "body": sys.stdin.buffer.read().decode("latin-1"),
    "directory": os.getcwd(), "descriptors": sorted(held), "umask": mask,
    "pid": os.getpid(), "session": os.getsid(0), "group": os.getpgrp()}}))
"""

STATUS = """#!/bin/sh
printf 'Content-Type: text/plain\\n\\n'
exec cat /proc/self/status
"""

ALWAYS = {
    "GATEWAY_INTERFACE",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
}
DE_FACTO = {
    "SCRIPT_FILENAME",
    "DOCUMENT_ROOT",
    "REQUEST_URI",
    "REQUEST_SCHEME",
    "REMOTE_PORT",
    "SERVER_ADDR",
    "REDIRECT_STATUS",
    "PATH",
}


class Told:
    """What TELL told of itself."""

    def __init__(self, body: bytes) -> None:
        told = json.loads(body)
        self.pairs = [tuple(pair) for pair in told["pairs"]]
        self.env = dict(self.pairs)
        self.arguments = told["arguments"]
        self.program = told["program"]
        self.body = told["body"].encode("latin-1")
        self.directory = told["directory"]
        self.descriptors = told["descriptors"]
        self.umask = told["umask"]
        self.pid, self.session, self.group = told["pid"], told["session"], told["group"]


def ask(sock: socket.socket, request: bytes) -> Told:
    """Send one raw request on `sock` and read what TELL answers."""
    sock.sendall(request)
    response = http.client.HTTPResponse(sock)
    response.begin()
    body = response.read()
    assert response.status == 200, body
    return Told(body)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cgi")
    misbehaviour.program(directory / "tell", TELL)
    misbehaviour.program(directory / "status", STATUS)
    return directory


@pytest.fixture(scope="module")
def shared(directory, tmp_path_factory):
    with misbehaviour.shared_server(directory, tmp_path_factory.mktemp("spool")) as server:
        yield server


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


@pytest.fixture
def tell(server):
    """Ask TELL with a raw head (without Host and the blank line) and a body."""

    def ask_once(line="GET /cgi-bin/tell HTTP/1.1", *fields, host=b"Host: example.org", body=b""):
        head = [part if isinstance(part, bytes) else part.encode() for part in (line, *fields)]
        head[1:1] = [host, b"Connection: close"]
        with server.socket() as sock:
            return ask(sock, b"\r\n".join(head) + b"\r\n\r\n" + body)

    return ask_once


# Always set.


def test_a_plain_get_has_every_variable(tell, server, directory):
    env = tell("GET /cgi-bin/tell?a=1 HTTP/1.1").env
    assert set(env) >= ALWAYS | DE_FACTO
    assert env["GATEWAY_INTERFACE"] == "CGI/1.1"
    assert env["REQUEST_METHOD"] == "GET"
    assert env["QUERY_STRING"] == "a=1"
    assert env["SCRIPT_NAME"] == "/cgi-bin/tell"
    assert env["SCRIPT_FILENAME"] == str(directory / "tell")
    assert env["REQUEST_URI"] == "/cgi-bin/tell?a=1"
    assert env["REQUEST_SCHEME"] == "http"
    assert env["REMOTE_ADDR"] == "127.0.0.1"
    assert env["REMOTE_PORT"].isdigit()
    assert env["SERVER_ADDR"] == "127.0.0.1"
    assert env["SERVER_NAME"] == "example.org"
    assert env["SERVER_PORT"] == str(server.port)
    assert env["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert env["SERVER_SOFTWARE"].lower().startswith("gateway")
    assert env["REDIRECT_STATUS"] == "200"
    assert "/usr/bin" in env["PATH"].split(":")
    assert env["HTTP_HOST"] == "example.org"


def test_a_plain_get_has_no_other_variable(tell):
    env = tell().env
    absent = {"HTTPS", "PATH_INFO", "PATH_TRANSLATED", "CONTENT_LENGTH", "CONTENT_TYPE", "AUTH_TYPE", "REMOTE_USER"}
    assert not absent & set(env)


def test_no_variable_comes_twice(tell):
    pairs = tell("GET /cgi-bin/tell HTTP/1.1", "X-A: 1", "X-a: 2", "x-A: 3").pairs
    names = [name for name, _ in pairs]
    assert sorted(names) == sorted(set(names))


def test_remote_port_is_the_clients(server):
    with server.socket() as sock:
        own = sock.getsockname()[1]
        told = ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: x\r\n\r\n")
    assert told.env["REMOTE_PORT"] == str(own)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_the_method_is_passed_as_sent(tell, method):
    assert tell(f"{method} /cgi-bin/tell HTTP/1.1").env["REQUEST_METHOD"] == method


def test_http_1_0_without_host(server):
    with server.socket() as sock:
        env = ask(sock, b"GET /cgi-bin/tell HTTP/1.0\r\n\r\n").env
    assert env["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert env["SERVER_NAME"] == "127.0.0.1"
    assert "HTTP_HOST" not in env


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("example.org", "example.org"),
        ("example.org:9999", "example.org"),
        ("192.0.2.7:80", "192.0.2.7"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:8443", "[2001:db8::1]"),
    ],
)
def test_server_name_is_the_host_without_its_port(tell, server, host, name):
    env = tell(host=f"Host: {host}".encode()).env
    assert env["SERVER_NAME"] == name
    assert env["SERVER_PORT"] == str(server.port)
    assert env["HTTP_HOST"] == host


def test_the_authority_of_an_absolute_target_wins(tell):
    env = tell("GET http://other.example/cgi-bin/tell?q HTTP/1.1").env
    assert env["SERVER_NAME"] == "other.example"
    assert env["HTTP_HOST"] == "other.example"
    assert env["SCRIPT_NAME"] == "/cgi-bin/tell"
    assert env["QUERY_STRING"] == "q"


# PATH_INFO and the query.


@pytest.mark.parametrize(
    ("target", "info"),
    [
        ("/cgi-bin/tell/", "/"),
        ("/cgi-bin/tell/a/b", "/a/b"),
        ("/cgi-bin/tell/a%20b", "/a b"),
        ("/cgi-bin/tell/a%2Fb", "/a/b"),
        ("/cgi-bin/tell/%252e%252e", "/%2e%2e"),
        ("/cgi-bin/tell/a/./b//c/../d", "/a/b/d"),
        ("/cgi-bin/tell/line%0Abreak", "/line\nbreak"),
        ("/cgi-bin/tell/%C3%A9%FF", "/\xc3\xa9\xff"),
        ("/cgi-bin/tell/a+b;c=d", "/a+b;c=d"),
        ("/cgi-bin/tell/tell", "/tell"),
        ("/cgi-bin//./tell/x", "/x"),
    ],
)
def test_path_info_is_decoded_once(tell, target, info):
    env = tell(f"GET {target} HTTP/1.1").env
    assert env["PATH_INFO"] == info
    assert env["SCRIPT_NAME"] == "/cgi-bin/tell"
    assert env["PATH_TRANSLATED"] == env["DOCUMENT_ROOT"].rstrip("/") + info
    assert env["REQUEST_URI"] == target


def test_a_program_in_a_folder(server, directory):
    misbehaviour.program(directory / "deep er" / "tell", TELL)
    with server.socket() as sock:
        told = ask(sock, b"GET /cgi-bin/deep%20er/tell/rest HTTP/1.1\r\nHost: x\r\n\r\n")
    assert told.env["SCRIPT_NAME"] == "/cgi-bin/deep er/tell"
    assert told.env["PATH_INFO"] == "/rest"
    assert told.directory == str(directory / "deep er")


@pytest.mark.parametrize(
    "query", ["", "a=%20b+c&d", "-s", "-d+allow_url_include%3d1", "a b".replace(" ", "+"), "x?y=/..", "=%zz"]
)
def test_the_query_is_raw_and_never_an_argument(tell, query):
    told = tell(f"GET /cgi-bin/tell?{query} HTTP/1.1")
    assert told.env["QUERY_STRING"] == query
    assert told.arguments == []


def test_no_query_is_an_empty_query(tell):
    assert tell().env["QUERY_STRING"] == ""


# The body.


def test_a_body_has_its_length_and_type(tell):
    told = tell(
        "POST /cgi-bin/tell HTTP/1.1", "Content-Length: 5", 'Content-Type: text/x;  charset="a b"', body=b"hel\0\xff"
    )
    assert told.env["CONTENT_LENGTH"] == "5"
    assert told.env["CONTENT_TYPE"] == 'text/x;  charset="a b"'
    assert told.body == b"hel\0\xff"
    assert not {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"} & set(told.env)


def test_a_chunked_body_is_counted_without_its_coding(tell):
    told = tell(
        "POST /cgi-bin/tell HTTP/1.1",
        "Transfer-Encoding: chunked",
        body=b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-Trailer: t\r\n\r\n",
    )
    assert told.env["CONTENT_LENGTH"] == "6"
    assert told.body == b"hello!"
    assert "HTTP_TRANSFER_ENCODING" not in told.env
    assert "HTTP_X_TRAILER" not in told.env


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 65536, 65537, 1_000_003])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_all_sizes_arrive_whole(tell, size, chunked):
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    if chunked:
        field = "Transfer-Encoding: chunked"
        sent = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 7001]), body[i : i + 7001]) for i in range(0, size, 7001))
        sent += b"0\r\n\r\n"
    else:
        field, sent = f"Content-Length: {size}", body
    told = tell("PUT /cgi-bin/tell HTTP/1.1", field, body=sent)
    assert told.env["CONTENT_LENGTH"] == str(size)
    assert told.body == body


def test_an_empty_body_is_the_end_of_input_at_once(tell):
    assert tell().body == b""
    told = tell("POST /cgi-bin/tell HTTP/1.1", "Content-Length: 0")
    assert told.body == b""
    assert told.env["CONTENT_LENGTH"] == "0"


# HTTP_*.


def test_fields_of_one_name_are_joined(tell):
    env = tell(
        "GET /cgi-bin/tell HTTP/1.1", "Accept: a", "Cookie: a=1", "accept: b;q=0", "cookie: b=2", "Cookie: c"
    ).env
    assert env["HTTP_ACCEPT"] == "a, b;q=0"
    assert env["HTTP_COOKIE"] == "a=1; b=2; c"


@pytest.mark.parametrize("field", ["Proxy: http://evil.example/", "PROXY: x", "pRoXy: x"])
def test_http_proxy_is_never_set(tell, field):
    assert not [name for name in tell("GET /cgi-bin/tell HTTP/1.1", field).env if name.upper() == "HTTP_PROXY"]


def test_names_that_would_pose_as_others_are_dropped(tell):
    posing = ("X_Forwarded_For: 1", "X_Real_IP: wrong", "Content_Length: 9", "X.Dot: 1", "X!: 1", "X'Q: 1")
    env = tell("GET /cgi-bin/tell HTTP/1.1", *posing, "X-Real-IP: right").env
    assert env["HTTP_X_REAL_IP"] == "right"
    assert {name for name in env if name.startswith("HTTP_")} <= {"HTTP_HOST", "HTTP_CONNECTION", "HTTP_X_REAL_IP"}
    assert "CONTENT_LENGTH" not in env


def test_field_values_are_passed_byte_by_byte(tell):
    env = tell("GET /cgi-bin/tell HTTP/1.1", b"X-Bytes: \xc3\xa9 \xff\t()=$(id) `id`", "X-Empty:").env
    assert env["HTTP_X_BYTES"] == "\xc3\xa9 \xff\t()=$(id) `id`"
    assert env["HTTP_X_EMPTY"] == ""


def test_authorization_is_passed_and_nothing_is_called_verified(tell):
    env = tell("GET /cgi-bin/tell HTTP/1.1", "Authorization: Basic dTpw").env
    assert env["HTTP_AUTHORIZATION"] == "Basic dTpw"
    assert not {"AUTH_TYPE", "REMOTE_USER", "REMOTE_IDENT"} & set(env)


def test_a_client_cannot_set_variables_of_ours(tell, server):
    env = tell("GET /cgi-bin/tell HTTP/1.1", "Server-Port: 1", "Https: on", "Path: /evil", "Remote-Addr: 6.6.6.6").env
    assert env["SERVER_PORT"] == str(server.port)
    assert env["REMOTE_ADDR"] == "127.0.0.1"
    assert "HTTPS" not in env
    assert "evil" not in env["PATH"]


# Listeners.


@pytest.mark.parametrize("one_file", [False, True])
def test_tls_sets_https(serve, directory, certificate, tmp_path, one_file):
    cert, key = certificate
    if one_file:
        both = tmp_path / "both.pem"
        both.write_bytes(cert.read_bytes() + key.read_bytes())
        server = serve("--tls-cert", str(both), cgi_dir=directory)
    else:
        server = serve("--tls-cert", str(cert), "--tls-key", str(key), cgi_dir=directory)
    server.wait_for_log(rf"listening on https://127\.0\.0\.1:{server.port}/")
    context = ssl.create_default_context(cafile=str(cert))
    with server.socket() as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
        for body in (b"", bytes(range(256)) * 400):
            head = b"POST /cgi-bin/tell HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            told = ask(sock, head + body)
            assert told.env["HTTPS"] == "on"
            assert told.env["REQUEST_SCHEME"] == "https"
            assert told.env["SERVER_PORT"] == str(server.port)
            assert told.body == body


def test_plain_http_to_a_tls_listener_harms_nobody(serve, directory, certificate):
    cert, key = certificate
    server = serve("--tls-cert", str(cert), "--tls-key", str(key), cgi_dir=directory)
    for junk in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff", b""):
        with server.socket() as sock:
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    context = ssl.create_default_context(cafile=str(cert))
    with server.socket() as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
        assert ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: localhost\r\n\r\n").env["HTTPS"] == "on"


def test_an_ipv6_listener(serve, directory):
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    server = serve("--listen", "[::1]:0", cgi_dir=directory)
    port = int(server.wait_for_log(r"listening on http://\[::1\]:(\d+)/")[1])
    with socket.create_connection(("::1", port), timeout=20) as sock:
        own = sock.getsockname()[1]
        env = ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: [::1]:%d\r\n\r\n" % port).env
    assert env["REMOTE_ADDR"] == "::1"
    assert env["REMOTE_PORT"] == str(own)
    assert env["SERVER_ADDR"] == "::1"
    assert env["SERVER_NAME"] == "[::1]"
    assert env["SERVER_PORT"] == str(port)
    with socket.create_connection(("::1", port), timeout=20) as sock:
        assert ask(sock, b"GET /cgi-bin/tell HTTP/1.0\r\n\r\n").env["SERVER_NAME"] == "[::1]"


def test_a_unix_listener(serve, directory, tmp_path):
    path = tmp_path / "front.sock"
    server = serve("--listen", f"unix:{path}", cgi_dir=directory)
    server.wait_for_log(rf"listening on unix:{re.escape(str(path))}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        for _ in range(2):
            env = ask(sock, b"GET /cgi-bin/tell/x?y HTTP/1.1\r\nHost: example.org:8080\r\n\r\n").env
            assert set(env) >= ALWAYS
            assert env["SERVER_NAME"] == "example.org"
            assert env["PATH_INFO"] == "/x"
            assert "HTTPS" not in env


# What the server keeps to itself, and what it gives on request.


def test_nothing_of_the_servers_environment_leaks(serve, directory):
    names = ["SECRET_TOKEN", "HTTP_PROXY", "http_proxy", "PYTHONWARNINGS", "LANG", "HTTP_X", "AUTH_TYPE", "LISTEN_FDS"]
    server = serve(cgi_dir=directory, env=dict.fromkeys(names, "leak-a5c3"))
    with server.socket() as sock:
        told = ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "leak-a5c3" not in str(told.pairs)
    assert not set(names) & set(told.env)
    assert not [name for name in told.env if name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST", "UV_", "LC_"))]
    assert not {"HOME", "USER", "LOGNAME", "SHELL", "OLDPWD", "_"} & set(told.env)


def test_env_gives_variables_to_every_program(serve, directory):
    server = serve(
        "--env",
        "GIT_PROJECT_ROOT=/srv/git=x",
        "--env",
        "FROM_SERVER",
        "--env",
        "EMPTY=",
        cgi_dir=directory,
        env={"FROM_SERVER": "passed on", "OTHER": "not"},
    )
    with server.socket() as sock:
        env = ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: x\r\n\r\n").env
    assert env["GIT_PROJECT_ROOT"] == "/srv/git=x"
    assert env["FROM_SERVER"] == "passed on"
    assert env["EMPTY"] == ""
    assert "OTHER" not in env


def test_env_does_not_replace_what_is_known_of_the_request(serve, directory):
    server = serve("--env", "REQUEST_METHOD=EVIL", cgi_dir=directory)
    with server.socket() as sock:
        told = ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: x\r\n\r\n")
    assert told.env["REQUEST_METHOD"] == "GET"
    assert len(told.pairs) == len(told.env)


# The process.


def test_working_directory_is_the_scripts(tell, directory):
    assert tell().directory == str(directory)


def test_no_argument_and_the_program_by_its_path(tell, directory):
    told = tell("GET /cgi-bin/tell?one+two HTTP/1.1")
    assert told.arguments == []
    assert os.path.basename(told.program) == "tell"


def test_descriptors_are_0_1_2_and_no_other(serve, directory):
    # One that the server inherits itself must not travel on either.
    server = serve(cgi_dir=directory, prefix=["sh", "-c", 'exec "$@" 7</dev/null', "sh"])
    with server.socket() as idle, server.socket() as sock:
        idle.sendall(b"POST /cgi-bin/tell HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + bytes(100_000))
        for body in (b"", b"x" * 100, bytes(2_000_000)):
            head = b"POST /cgi-bin/tell HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            assert ask(sock, head + body).descriptors == [0, 1, 2]


def test_own_session_and_process_group(tell):
    told = tell()
    assert told.session == told.group == told.pid


@pytest.mark.parametrize("mask", [0, 0o077])
def test_umask_is_set_whatever_the_server_had(serve, directory, mask):
    before = os.umask(mask)
    try:
        server = serve(cgi_dir=directory)
    finally:
        os.umask(before)
    with server.socket() as sock:
        assert ask(sock, b"GET /cgi-bin/tell HTTP/1.1\r\nHost: x\r\n\r\n").umask == 0o022


def test_signals_are_at_default_and_none_is_blocked(server):
    status = server.get("/cgi-bin/status").body.decode()
    for name in ("SigBlk", "SigIgn", "SigPnd"):
        # 32 and 33 are the C library's own, whatever is done to them.
        held = int(re.search(rf"^{name}:\s*([0-9a-f]+)$", status, re.M)[1], 16) & ~(0b11 << 31)
        assert held == 0, name


def test_a_program_that_lost_its_reader_is_told_by_sigpipe(server, directory):
    # The disposition again, seen from a pipe line: head ends first, and yes must not complain.
    misbehaviour.program(directory / "pipe", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nyes | head -n 1\n")
    answer = server.get("/cgi-bin/pipe")
    assert (answer.status, answer.body) == (200, b"y\n")
    assert not re.search(r"yes: .*(Broken pipe|standard output)", server.errors.text)
