"""Names and passwords before programs, FastCGI servers and files (RFC 7617)."""

from __future__ import annotations

import base64
import contextlib
import os
import re
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest

from tests import misbehaviour, support
from tests.client_support import ask, client, directory, request, status, told
from tests.fcgi_server import FcgiServer

__all__ = ["directory"]


def entry(name, password, cost=4):
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "passwords"
    path.write_text(entry("alice", "secret") + entry("bob", "word") + entry("böb", "gehäus"))
    return path


@pytest.fixture
def start(serve, directory):
    """Start a server with options."""

    def start(*options, **more):
        return serve("--kill-timeout", "1", *options, cgi_dir=directory, **more)

    return start


def basic(name, password):
    return "Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def get(server, path, *fields):
    return ask(server, request(path, *fields, close=True))


def test_before_a_program(start, file):
    server = start("--auth", f"/cgi-bin/={file}", "--auth-realm", "the programs", workers=2)
    got = get(server, "/cgi-bin/env")
    assert status(got) == 401
    assert b'\r\nWWW-Authenticate: Basic realm="the programs", charset="UTF-8"\r\n' in got
    refused = [
        basic("alice", "Secret"), basic("carol", "secret"), basic("alice", ""), "Authorization: Bearer secret",
        "Authorization: Basic !", basic("alice", "secret") + "x" * 5000,
        basic("alice", "secret") + "\r\n" + basic("alice", "secret"),
    ]  # fmt: skip
    for field in refused:
        again = get(server, "/cgi-bin/env", field)
        assert status(again) == 401
        # What is wrong with them is not told.
        assert re.sub(rb"(X-Request-Id: |<code>)[^\r<]+|Date: [^\r]+", b"", again).partition(b"\r\n\r\n")[0] == re.sub(
            rb"(X-Request-Id: |<code>)[^\r<]+|Date: [^\r]+", b"", got
        ).partition(b"\r\n\r\n")[0]
    for name, password in [("alice", "secret"), ("alice", "secret"), ("bob", "word"), ("böb", "gehäus")]:
        env = told(get(server, "/cgi-bin/env", basic(name, password), "X-Other: y"))
        assert (env["AUTH_TYPE"], env["REMOTE_USER"], env["HTTP_X_OTHER"]) == ("Basic", name, "y")
        assert "HTTP_AUTHORIZATION" not in env
    server.wait_for_access(r" - alice \[.* 200 ")
    server.wait_for_access(r" - - \[.* 401 .*outcome=refused")
    # What is not below the prefix is not asked about.
    assert status(get(server, "/elsewhere")) == 404


@pytest.mark.parametrize("path", ["/cgi-bin/env", "/cgi-bin//env", "/%63gi-bin/env", "/x/../cgi-bin/env", "/cgi-bin"])
def test_no_way_of_writing_the_path_leads_round_it(start, file, path):
    server = start("--auth", f"/cgi-bin/={file}")
    assert status(get(server, path)) == 401


def test_where_nothing_is_asked_the_program_has_the_field(start, file):
    server = start("--auth", f"/elsewhere/={file}")
    env = told(get(server, "/cgi-bin/env", basic("alice", "secret")))
    assert env["HTTP_AUTHORIZATION"].startswith("Basic ")
    assert "REMOTE_USER" not in env
    assert "AUTH_TYPE" not in env


def test_the_longest_prefix_asks(start, file, tmp_path):
    (tmp_path / "other").write_text(entry("root", "toor"))
    server = start("--auth", f"/={file}", "--auth", f"/cgi-bin/={tmp_path / 'other'}")
    assert status(get(server, "/cgi-bin/env", basic("alice", "secret"))) == 401
    assert told(get(server, "/cgi-bin/env", basic("root", "toor")))["REMOTE_USER"] == "root"
    assert status(get(server, "/", basic("alice", "secret"))) != 401


def test_before_files_and_a_fastcgi_server(serve, file, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/page.txt").write_text("the page")
    peer = FcgiServer()
    try:
        server = serve(
            "--php", f"/={tmp_path / 'site'}", "--php-server", peer.address, "--fastcgi", f"/app/={peer.address}",
            "--auth", f"/={file}",
        )  # fmt: skip
        for path in ("/page.txt", "/app/x"):
            assert status(get(server, path)) == 401
        assert get(server, "/page.txt", basic("alice", "secret")).endswith(b"the page")
        with client(server) as sock:
            sock.sendall(request("/app/x", basic("alice", "secret")))
            call = peer.take()
            assert call.params["REMOTE_USER"] == b"alice"
            assert call.params["AUTH_TYPE"] == b"Basic"
            assert "HTTP_AUTHORIZATION" not in call.params
            call.answer()
            assert status(misbehaviour.read_response(sock)) == 200
        assert peer.is_quiet()
    finally:
        server.stop()
        peer.close()


def test_an_authorizer_is_asked_after_the_password_and_told_who_it_is(start, file):
    peer = FcgiServer()
    try:
        server = start("--auth", f"/cgi-bin/={file}", "--authorizer", f"/cgi-bin/={peer.address}")
        assert status(get(server, "/cgi-bin/env", basic("alice", "wrong"))) == 401
        assert peer.is_quiet()
        with client(server) as sock:
            sock.sendall(request("/cgi-bin/env", basic("alice", "secret"), close=True))
            call = peer.take_begun()
            assert call.params["REMOTE_USER"] == b"alice"
            assert "HTTP_AUTHORIZATION" not in call.params
            call.answer(b"Status: 200\r\nVariable-ROLE: editor\r\n\r\n")
            env = told(support.receive_all(sock))
        assert (env["REMOTE_USER"], env["ROLE"]) == ("alice", "editor")
        server.wait_for_access(r" - alice \[.* 200 ")
    finally:
        server.stop()
        peer.close()


def test_a_body_is_read_after_the_password_alone(start, file):
    server = start("--auth", f"/cgi-bin/={file}")
    head = "POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
    for password, expected in (("secret", b"HTTP/1.1 100 Continue\r\n\r\n"), ("wrong", b"HTTP/1.1 401 Unauth")):
        with client(server) as sock:
            sock.sendall(f"{head}Connection: close\r\n{basic('alice', password)}\r\n\r\n".encode())
            got = sock.recv(65536)
            assert got.startswith(expected)
            if password == "secret":
                sock.sendall(b"hello")
                assert b"hello" in support.receive_all(sock)


def test_the_file_is_read_again_when_it_changes(start, file):
    server = start("--auth", f"/cgi-bin/={file}")

    def verdict(name, password):
        return status(get(server, "/cgi-bin/fine", basic(name, password)))

    assert [verdict("alice", "secret"), verdict("carol", "new")] == [200, 401]
    file.write_text(entry("carol", "new"))
    misbehaviour.wait_for(lambda: verdict("alice", "secret") == 401)
    assert verdict("carol", "new") == 200
    # Broken: what was read holds, and the log says why, once.
    file.write_text(entry("dave", "later") + "erin:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
    misbehaviour.wait_for(lambda: verdict("dave", "later") == 401 and "SHA-1" in server.errors.text)
    assert verdict("carol", "new") == 200
    file.unlink()
    misbehaviour.wait_for(lambda: verdict("carol", "new") == 200 and "No such file" in server.errors.text)
    file.write_text(entry("dave", "later"))
    misbehaviour.wait_for(lambda: verdict("dave", "later") == 200)
    assert verdict("carol", "new") == 401
    # Emptied: nobody is left.
    file.write_text("")
    misbehaviour.wait_for(lambda: verdict("dave", "later") == 401)
    assert server.errors.text.count("SHA-1") == 1
    assert server.errors.text.count("line 2: the password of erin is not bcrypt") == 1
    assert "until then, what was read before holds" in server.errors.text


def test_a_slow_check_stops_nobody_else_and_those_that_wait_are_bounded(start, tmp_path):
    # 15 is some seconds for one check; so while a hundred come, the first ones are still being checked.
    (tmp_path / "dear").write_text(entry("bob", "word") + "alice:$2b$15$abcdefghijklmnopqrstuu" + "x" * 31 + "\n")
    server = start("--auth", f"/cgi-bin/env/={tmp_path / 'dear'}")
    assert status(get(server, "/cgi-bin/env", basic("bob", "word"))) == 200
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(client(server)) for _ in range(100)]
        for number, sock in enumerate(socks):
            sock.sendall(request("/cgi-bin/env", basic("alice", f"guess {number}")))
        server.wait_for_access(r" 503 ")
        for _ in range(5):
            assert status(get(server, "/cgi-bin/fine")) == 200
            # Nor who is remembered, also when the file has to be looked at again.
            assert status(get(server, "/cgi-bin/env", basic("bob", "word"))) == 200
        assert server.accesses.text.count(" 401 ") < 60
        assert server.accesses.text.count(" 503 ") >= 100 - 64 - server.accesses.text.count(" 401 ")
    # Those that have left are not checked any more.
    misbehaviour.wait_for(lambda: server.accesses.text.count(" 499 ") >= 40)
    server.wait_for_access(r" 503 .*outcome=limited")
    assert " error " not in server.errors.text


def test_one_check_answers_all_who_ask_with_the_same(start, tmp_path):
    (tmp_path / "one").write_text(entry("alice", "secret", 12))
    server = start("--auth", f"/cgi-bin/={tmp_path / 'one'}")
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: status(get(server, "/cgi-bin/fine", basic("alice", "secret"))), range(100)))
    assert found == [200] * 100


def test_a_file_that_cannot_be_read_any_more_at_the_start_of_a_worker(start, file):
    server = start("--auth", f"/cgi-bin/={file}")
    server.expected_status = None
    file.write_text("alice:secret\n")
    (pid,) = server.workers()
    os.kill(pid, 9)
    misbehaviour.wait_until_gone(pid)
    misbehaviour.wait_for(lambda: status(get(server, "/cgi-bin/fine", basic("alice", "secret"))) == 401)
    server.wait_for_log("line 1: the password of alice is not bcrypt .*; until then, nobody is let in")


def test_what_htpasswd_makes(start, tmp_path):
    import subprocess

    support.need("htpasswd")
    path = tmp_path / "made"
    subprocess.run(["htpasswd", "-cbB", path, "alice", "secret"], check=True, capture_output=True)
    server = start("--auth", f"/cgi-bin/={path}")
    assert told(get(server, "/cgi-bin/env", basic("alice", "secret")))["REMOTE_USER"] == "alice"
