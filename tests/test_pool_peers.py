"""Real peers on both sides: FastCGI programs of every kind behind our front, other web servers before our pools."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import peer_programs, support, web_servers
from tests.peer_programs import KINDS
from tests.pool_support import running_pool
from tests.real_client import multipart

EXAMPLES = support.ROOT / "examples"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BODY = bytes(range(256)) * 4096
MIB = 1 << 20


@contextlib.contextmanager
def short_directory():
    """A directory whose sockets have short paths, and that other users may pass."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def running_front(*options, config=None):
    """A front with pools of its own: at the end no process below it is left, and no socket of theirs."""
    with short_directory() as directory:
        spool = directory / "spool"
        spool.mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # The directory of the sockets, too.
        env = {"TMPDIR": str(spool), "PATH": path}
        server = support.start_server(*options, config=config, temp_dir=spool, env=env, wait=False)
        try:
            server.wait_for_log("^gateway: ready")
            server.port = int(server.wait_for_log(r"listening on http://127.0.0.1:(\d+)/")[1])
            yield server
            below = server.processes()
            assert server.stop() == 0
            left = [pid for pid in below if support.state(pid)]
            assert not left
            assert not list(spool.iterdir())
            assert "Traceback" not in support.without_scripts(server.errors.text), server.errors.text
            assert "unexpected, please report" not in server.errors.text, server.errors.text
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
            for thread in server.threads:
                thread.join(support.PATIENCE)


# Every kind of program behind every web server.


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A directory with a program of each kind."""
    support.need("cc", "perl", "php-cgi")
    support.need_perl("FCGI")
    support.need_perl("CGI::Fast")
    support.need_file("/usr/include/fcgi_stdio.h")
    directory = tmp_path_factory.mktemp("peers")
    peer_programs.build(directory)
    return directory


@pytest.fixture(scope="module")
def sockets(programs, tmp_path_factory):
    """A manager with a pool for each kind; the directory of their sockets."""
    with short_directory() as directory:
        config = tmp_path_factory.mktemp("manager") / "pools.toml"
        config.write_text(peer_programs.pools(programs, directory, sys.executable))
        with running_pool("--config", str(config)):
            yield directory
        assert not list(directory.iterdir())


@pytest.fixture(scope="module", params=["gateway", *web_servers.NAMES])
def peer(request, sockets, programs, tmp_path_factory):
    """A web server in front of those pools: its name and its port."""
    if request.param != "gateway":
        support.need(web_servers.NAMES[request.param])
        with short_directory() as work:
            work.chmod(0o755)
            with web_servers.running(request.param, sockets, programs, work) as port:
                yield request.param, port
        return
    mounts = [f"--fastcgi=/{kind}/=unix:{sockets / kind}" for kind in KINDS if kind != "php"]
    php = ["--php", f"/php/={programs}", "--php-server", f"unix:{sockets / 'php'}"]
    server = support.start_server(*mounts, *php, "--connections", "5", temp_dir=tmp_path_factory.mktemp("spool"))
    try:
        yield request.param, server.port
        server.finish()
    finally:
        server.process.kill()
        server.process.wait()


def path_of(name: str, kind: str) -> str:
    if kind != "php":
        return f"/{kind}/some/path"
    return {"gateway": "/php/peer.php", "lighttpd": "/peer.php"}.get(name, "/php/any")


def ask(client, method, path, body=None):
    client.request(method, path, body, {"Content-Type": "application/octet-stream"} if body else {})
    answer = client.getresponse()
    return answer, answer.read()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_a_body_and_a_large_response(peer, kind):
    """One client connection, kept throughout: each response must end where it says."""
    name, port = peer
    path = path_of(name, kind)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=support.PATIENCE)
    with contextlib.closing(client):
        for number in range(3):
            answer, body = ask(client, "GET", f"{path}?n={number}")
            assert (answer.status, body) == (200, f"{kind} GET {path}?n={number}\n".encode())
            assert answer.headers["X-Kind"] == kind
            connected = client.sock
            assert connected
        answer, body = ask(client, "POST", path, BODY)
        assert answer.status == 200
        assert hashlib.sha256(body).digest() == hashlib.sha256(BODY).digest()
        answer, body = ask(client, "GET", f"{path}?size={8 * 10**6}")
        assert answer.status == 200
        assert body == b"0123456789" * (8 * 10**5)
        answer, body = ask(client, "HEAD", path)
        assert (answer.status, body) == (200, b"")
        assert client.sock is connected


@pytest.mark.parametrize("kind", KINDS)
def test_the_connection_to_the_pool_is_used_again(peer, sockets, kind):
    """Where the web server keeps connections (FCGI_KEEP_CONN), the next request comes on the same one."""
    name, port = peer
    path = path_of(name, kind)

    def once():
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=support.PATIENCE)
        with contextlib.closing(client):
            assert ask(client, "GET", path)[0].status == 200

    if name in ("gateway", "lighttpd"):
        # Ours is given back when it was idle for a moment, so that nobody waits for a program that serves nobody;
        # lighttpd opens one for each request.
        once()
        support.wait_until(lambda: accepted(sockets / kind) and "a connection is held for nothing")
        return
    seen = []
    for _ in range(10):
        once()
        seen.append(accepted(sockets / kind))
    # Not each time: Apache takes a new one when the rest of an answer comes late.
    assert any(earlier & later for earlier, later in itertools.pairwise(seen)), seen


def accepted(path: Path) -> set[str]:
    """Return the inodes of the connections that programs have accepted on a Unix socket (proc(5): state 03)."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {fields[6] for fields in rows if fields[5] == "03" and fields[-1] == str(path)}


# The examples, by the commands that they give.


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """One front with all examples that it starts itself."""
    support.need("cc", "php-cgi")
    support.need_perl("CGI::Fast")
    directory = tmp_path_factory.mktemp("examples")
    hello = directory / "hello"
    line = re.search(r"^ \*     (cc .*)$", (EXAMPLES / "c/hello.c").read_text(), re.MULTILINE)
    assert line
    compile_it = line[1].replace("-o examples/c/hello ", f"-o {hello} -Wall -Wextra -Werror ")
    subprocess.run(compile_it.split(), cwd=support.ROOT, check=True)
    flup = shlex.join([sys.executable, str(EXAMPLES / "flup/hello.fcgi")])
    mounts = {"flup": flup, "perl": EXAMPLES / "perl-fast/hello.fcgi", "c": hello}
    options = [f"--pool=/{name}/={program}" for name, program in mounts.items()]
    sessions = directory / "sessions"
    sessions.mkdir()
    php = ["--php", f"/php/={EXAMPLES / 'php'}", "--env", f"SESSIONS={sessions}"]
    with running_front(*options, *php, "--children", "2") as server:
        yield server


def test_a_flup_script_runs_unchanged(examples):
    assert "Hello, World!" in examples.get("/flup/").text
    assert "Hello, &lt;J&gt;!" in examples.get("/flup/?name=%3CJ%3E").text
    answer = examples.get("/flup/a/b", "POST", FORM, b"name=A+%26+B")
    assert answer.status == 200
    assert "Hello, A &amp; B!" in answer.text
    assert "You asked for /a/b." in answer.text


def test_cgi_fast(examples):
    answer = examples.get("/perl/a%3Cb?name=%3CJ%3E", headers={"Cookie": "visits=6"})
    assert "Hello, &lt;J&gt;!" in answer.text
    assert "visit number 7." in answer.text
    assert 'PATH_INFO is "/a&lt;b"' in answer.text
    assert answer.headers["Set-Cookie"].startswith("visits=7; ")
    answer = examples.get("/perl/", "POST", FORM, b"name=Ada")
    assert "Hello, Ada!" in answer.text
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def test_a_program_in_c(examples):
    numbers: dict[str, list[int]] = {}
    for _ in range(8):
        answer = examples.get("/c/a?x=%3C&y", "POST", body=b"x" * 10_000)
        assert 'POST /a, query "x=%3C&amp;y", 10000 bytes received.' in answer.text
        found = re.search(r"Process (\d+) has answered (\d+) requests", answer.text)
        assert found
        numbers.setdefault(found[1], []).append(int(found[2]))
    # Few processes, each of which goes on counting.
    assert len(numbers) <= 2
    assert all(counted == list(range(1, len(counted) + 1)) for counted in numbers.values())


def test_php_with_a_form_a_session_and_an_upload(examples):
    answer = examples.get("/php/")
    assert "Hello, stranger!" in answer.text
    assert "visit number 1." in answer.text
    cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    token = re.search('name="token" value="([0-9a-f]{32})"', answer.text)
    assert token
    content = os.urandom(MIB)
    kind, body = multipart(
        ("token", None, token[1].encode()), ("name", None, b"<Ada>"), ("file", "a <b>.bin", content)
    )
    answer = examples.get("/php/index.php", "POST", {**cookie, "Content-Type": kind}, body)
    assert answer.status == 200
    assert "Hello, &lt;Ada&gt;!" in answer.text
    digest = hashlib.sha256(content).hexdigest()
    assert f"a &lt;b&gt;.bin has {MIB} bytes, SHA-256 {digest}." in answer.text
    assert "visit number 3." in examples.get("/php/?again", headers=cookie).text
    kind, body = multipart(("token", None, b"guessed"), ("name", None, b"Eve"))
    assert examples.get("/php/", "POST", {**cookie, "Content-Type": kind}, body).status == 403
    assert "Hello, &lt;Ada&gt;!" in examples.get("/php/", headers=cookie).text
    sheet = examples.get("/php/style.css")
    assert (sheet.status, sheet.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert examples.get("/php/style.css", headers={"If-None-Match": sheet.headers["ETag"]}).status == 304
    assert examples.get("/php/nothing.php").status == 404
    assert examples.get("/php/style.css/x.php").status == 404


def test_the_index_names_what_is_mounted(examples):
    text = examples.get("/").text
    for prefix in ("/flup/", "/perl/", "/c/", "/php/"):
        assert prefix in text


GUESTBOOK = ("--chdir", str(EXAMPLES / "wsgi"), "--app", "guestbook:application")


def test_a_wsgi_application(tmp_path, serve):
    with running_pool("--children", "3", "--env", f"GUESTBOOK={tmp_path / 'db'}", *GUESTBOOK) as pool:
        server = serve("--fastcgi", f"/book/=unix:{pool.socket}", "--connections", "3")
        answer = server.get("/book/", "POST", FORM, b"name=Ada&words=1+%3C+2")
        assert (answer.status, answer.headers["Location"]) == (303, "/book/")
        assert "<li><b>Ada</b>: 1 &lt; 2\n" in server.get("/book/").text
        assert '<form method="post" action="/book/">' in server.get("/book").text
        for number in range(5):
            assert server.get("/book/", "POST", FORM, b"name=B&words=%d" % number).status == 303
        assert len(re.findall("<li>", server.get("/book/").text)) == 6
        assert server.get("/book/", "POST", FORM, b"name=B").status == 400
        assert server.get("/book/", "POST", FORM, b"name=" + b"x" * 20_000).status == 413
        assert server.get("/book/", "DELETE").status == 405
        assert server.get("/book/x").status == 404
        assert server.get("/book/", "HEAD").body == b""


# The Authorizer.


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A front with the programs of cgi-bin/ behind the example's Authorizer, and pages that are not."""
    authorizer = EXAMPLES / "authorizer/authorizer.py"
    code = "import authorizer; print('ada', authorizer.digest('secret word', 'salt'))"
    told = subprocess.check_output([sys.executable, "-c", code], cwd=authorizer.parent, text=True)
    name, digest = told.split()
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text(f"bob:x:0\n{name}:salt:{digest}\n")
    app = ("--chdir", str(authorizer.parent), "--app", "authorizer:application")
    mounts = ("--cgi-dir", str(support.ROOT / "cgi-bin"), "--cgi-dir", f"/open/={support.ROOT / 'cgi-bin'}")
    with running_pool("--children", "2", "--env", f"USERS={users}", *app) as pool:
        guard = ("--authorizer", f"/cgi-bin/=unix:{pool.socket}", "--connections", "2")
        server = support.start_server(*mounts, *guard, temp_dir=tmp_path_factory.mktemp("spool"))
        try:
            yield server
            server.finish()
        finally:
            server.process.kill()
            server.process.wait()


def test_the_authorizer_grants(guarded):
    answer = guarded.get("/cgi-bin/environment.sh", headers=basic("ada:secret word"))
    assert answer.status == 200
    assert "<tr><th>REMOTE_USER<td>ada\n" in answer.text
    assert "<tr><th>AUTH_TYPE<td>Basic\n" in answer.text
    guarded.wait_for_access(r'^127\.0\.0\.1 - ada \[.*"GET /cgi-bin/environment\.sh HTTP/1\.1" 200 ')


def test_a_body_waits_for_the_verdict(guarded):
    """It is more than is read ahead, and comes to the program whole."""
    kind, body = multipart(("file", "a.bin", b"x" * MIB))
    form = {**basic("ada:secret word"), "Content-Type": kind}
    assert f"<dd>{MIB} bytes" in guarded.get("/cgi-bin/form.py", "POST", form, body).text


@pytest.mark.parametrize(
    "headers",
    [{}, basic("ada:wrong"), basic("eve:secret word"), basic("bob:"), basic(":"), basic("ada"), basic("ad\xe4:x"),
     {"Authorization": "Basic !"}, {"Authorization": "Bearer ada"}, {"Remote-User": "ada"}],
    ids=["nothing", "wrong", "unknown", "digest", "name", "colon", "not-ascii", "not-base64", "bearer", "posed"],
)  # fmt: skip
def test_the_authorizer_refuses(guarded, headers):
    start = len(guarded.accesses.text)
    answer = guarded.get("/cgi-bin/environment.sh", headers=headers)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Members", charset="UTF-8"'
    assert "A name and a password are needed here." in answer.text
    guarded.wait_for_access(r'^127\.0\.0\.1 - - \[.*"GET /cgi-bin/environment\.sh HTTP/1\.1" 401 ', start=start)
    assert "<th>REMOTE_USER" not in guarded.get("/open/environment.sh", headers=headers).text


# nginx in front of the manager: the configuration that is in examples/.


def test_the_nginx_example(tmp_path):
    support.need("nginx", "php-cgi")
    with short_directory() as directory:
        port = web_servers.free_port()
        # As it stands, but for the place of what is made at run time, and the port.
        here = tmp_path / "examples"
        shutil.copytree(EXAMPLES, here, symlinks=True)
        for name in ("nginx.conf", "pools.toml"):
            text = (here / "nginx" / name).read_text()
            assert "/tmp/guestbook/" in text
            text = text.replace("/tmp/guestbook", str(directory)).replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            # The user who runs this may be root, and nginx's worker then is not.
            text = text.replace("daemon off;", "daemon off; user root;" if os.geteuid() == 0 else "daemon off;")
            # The command changes to that directory first.
            text = text.replace('app = "', f'chdir = "{here / "wsgi"}"\napp = "')
            (here / "nginx" / name).write_text(text)
        command = ["nginx", "-p", str(here), "-c", "nginx/nginx.conf", "-e", "stderr"]
        arguments = ["--config", str(here / "nginx/pools.toml")]
        with running_pool(*arguments), web_servers.started(command, port, tmp_path / "log"):
            _check_nginx_example(port)
        assert "[error]" not in (tmp_path / "log").read_text(), (tmp_path / "log").read_text()


def _check_nginx_example(port):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=support.PATIENCE)
    with contextlib.closing(client):
        client.request("POST", "/", b"name=Ada&words=Hello", FORM)
        answer = client.getresponse()
        answer.read()
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        assert b"<b>Ada</b>: Hello" in ask(client, "GET", "/")[1]
        assert ask(client, "GET", "/nothing")[0].status == 404
        assert b"Hello, stranger!" in ask(client, "GET", "/index.php")[1]
        assert ask(client, "GET", "/nothing.php")[0].status == 404
        assert ask(client, "GET", "/style.css")[0].headers["Content-Type"] == "text/css"
        status = json.loads(ask(client, "GET", "/status?json&full")[1])
        assert (status["pool"], status["total processes"]) == ("guestbook", 4)
        # The page may show how things were a moment ago.
        page = "/status?json&full"
        support.wait_until(lambda: "" if b'"/nothing"' in (text := ask(client, "GET", page)[1]) else text)


def test_examples_are_all_run_here():
    found = {path.parent.name for path in EXAMPLES.glob("*/*") if path.is_file() and path.parent.name != "__pycache__"}
    assert found >= {"authorizer", "c", "flup", "nginx", "perl-fast", "php", "wsgi"}
    for name in ("flup/hello.fcgi", "perl-fast/hello.fcgi"):
        assert os.access(EXAMPLES / name, os.X_OK), name
