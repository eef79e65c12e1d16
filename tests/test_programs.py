"""The programs of ``cgi-bin/`` and ``examples/``, run as their readers will run them."""

from __future__ import annotations

import hashlib
import html
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import support
from tests.real_client import Ending, Gate, Stream, copy_of, multipart

EXAMPLES = support.ROOT / "examples"
PROGRAMS = ["environment.sh", "clock.sh", "redirect.sh", "form.py", "hello.pl"]


@pytest.fixture
def programs(tmp_path):
    return copy_of("cgi-bin", tmp_path)


def text(answer) -> str:
    return answer.body.decode()


# What is there and what is not.


def test_every_program_answers_and_logs_nothing(serve, programs, tmp_path):
    support.need("perl")
    server = serve(cgi_dir=programs)
    for name in PROGRAMS:
        answer = server.get(f"/cgi-bin/{name}")
        assert answer.status == 200, name
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert text(answer).startswith("<!DOCTYPE html>\n<html lang"), name
        assert text(answer).rstrip().endswith("</html>"), name
        server.wait_for_access(rf'"GET /cgi-bin/{re.escape(name)} HTTP/1.1" 200 .* exit=0 outcome=ok')


@pytest.mark.parametrize("name", ["mandelbrot.c", "Makefile", ".gitignore"])
def test_a_source_is_not_shown(serve, programs, name):
    answer = serve(cgi_dir=programs).get(f"/cgi-bin/{name}")
    assert answer.status == 403
    assert b"QUERY_STRING" not in answer.body
    assert b"mandelbrot:" not in answer.body


def test_no_program_is_missing_here():
    files = {path.name for path in (support.ROOT / "cgi-bin").iterdir() if os.access(path, os.X_OK) and path.is_file()}
    assert files - {"mandelbrot"} == set(PROGRAMS)


# environment.sh


def test_environment_is_shown_escaped(serve, programs):
    server = serve(cgi_dir=programs)
    shown = text(server.get("/cgi-bin/environment.sh/a%3Cb%26c%0ad?q=%3C&x=1", headers={"X-Odd": "<script>"}))
    assert "<tr><th>PATH_INFO<td>/a&lt;b&amp;c<br>d\n" in shown
    assert "<tr><th>QUERY_STRING<td>q=%3C&amp;x=1\n" in shown
    assert "<tr><th>HTTP_X_ODD<td>&lt;script&gt;\n" in shown
    assert f"<tr><th>PWD<td>{html.escape(str(programs))}\n" in shown
    assert "<tr><th>SCRIPT_NAME<td>/cgi-bin/environment.sh\n" in shown


def test_environment_hides_secrets(serve, programs):
    server = serve("--env", "DATABASE=of PASSWORD\nLINE-TWO=x", cgi_dir=programs)
    credentials = {"Cookie": "session=SESSION", "Authorization": "Basic CREDENTIALS"}
    shown = text(server.get("/cgi-bin/environment.sh", headers=credentials))
    assert "<th>HTTP_COOKIE<td><i>hidden</i>" in shown
    assert "<th>HTTP_AUTHORIZATION<td><i>hidden</i>" in shown
    assert "<th>DATABASE<td><i>hidden: not a variable of CGI</i>" in shown
    for secret in ("SESSION=", "=SESSION", "CREDENTIALS", "PASSWORD", "LINE-TWO"):
        assert secret not in shown


# clock.sh


def test_clock_ticks_until_the_client_goes(serve, programs):
    server = serve(cgi_dir=programs)
    page = text(server.get("/cgi-bin/clock.sh"))
    assert 'EventSource("clock.sh/events")' in page
    with Stream(server.socket(), "/cgi-bin/clock.sh/events") as clock:
        head = clock.until(b"\r\n\r\n").lower()
        assert b"content-type: text/event-stream\r\n" in head
        for _ in range(2):
            assert re.fullmatch(rb"data: .*\d\d:\d\d:\d\d.*\n\n", clock.until(b"\n\n"))
    server.wait_for_access(r'"GET /cgi-bin/clock.sh/events HTTP/1.0" 499 .* outcome=client-gone')
    assert server.get("/cgi-bin/clock.sh/nothing").status == 404


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_events_arrive_one_by_one_as_they_are_written(serve, tmp_path, http, version):
    """Each event is written only after the one before has reached the client: nothing may wait for more."""
    gates = [Gate(tmp_path / f"gate{number}") for number in range(3)]
    (tmp_path / "cgi").mkdir()
    support.script(
        tmp_path / "cgi" / "events",
        "#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\n'\n"
        + "".join(f"read go < {gate.path}\nprintf 'data: {n}\\n\\n'\n" for n, gate in enumerate(gates)),
    )
    server = serve("--http", http, cgi_dir=tmp_path / "cgi")
    with server.socket() as client:
        client.settimeout(60)
        client.sendall(f"GET /cgi-bin/events {version}\r\nHost: a.example\r\nConnection: close\r\n\r\n".encode())
        received = b""
        # The header too: it comes before the first event is written.
        while b"\r\n\r\n" not in received:
            received += client.recv(4096)
        assert b"data:" not in received
        for number, gate in enumerate(gates):
            gate.open()
            while f"data: {number}\n\n".encode() not in received:
                piece = client.recv(4096)
                assert piece, received
                received += piece
            assert f"data: {number + 1}".encode() not in received
        while piece := client.recv(4096):
            received += piece
    for gate in gates:
        gate.close()
    body = received.partition(b"\r\n\r\n")[2]
    if version == "HTTP/1.1":
        assert b"transfer-encoding: chunked" in received.lower()
        assert body.endswith(b"0\r\n\r\n")
    else:
        assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_an_event_stream_ends_with_its_client(serve, tmp_path):
    support.script(
        tmp_path / "events",
        "#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\ndata: %s\\n\\n' $$\n"
        # Silent from now on: only the server can end it.
        "exec sleep 600\n",
    )
    server = serve(cgi_dir=tmp_path)
    with Stream(server.socket(), "/cgi-bin/events") as events:
        events.until(b"data: ")
        ending = Ending(int(events.until(b"\n")))
    ending.wait()
    server.wait_for_access(r" 499 .* exit=(SIG)?TERM outcome=client-gone")


# redirect.sh


def test_client_redirects(serve, programs):
    server = serve(cgi_dir=programs)
    answer = server.get("/cgi-bin/redirect.sh/client", headers={"Host": "a.example:81"})
    assert answer.status == 302
    assert answer.headers["Location"] == "http://a.example:81/cgi-bin/environment.sh"
    answer = server.get("/cgi-bin/redirect.sh/see-other")
    assert (answer.status, answer.reason) == (303, "See Other")
    assert answer.headers["Location"] == "/cgi-bin/environment.sh"


def test_local_redirect(serve, programs):
    answer = serve(cgi_dir=programs).get("/cgi-bin/redirect.sh/local?mine")
    assert answer.status == 200
    assert "Location" not in answer.headers
    assert "<tr><th>QUERY_STRING<td>from=redirect\n" in text(answer)
    assert "<tr><th>SCRIPT_NAME<td>/cgi-bin/environment.sh\n" in text(answer)


# hello.pl


def test_hello(serve, programs):
    support.need("perl")
    server = serve(cgi_dir=programs)
    assert "Hello, World!" in text(server.get("/cgi-bin/hello.pl"))
    assert "Hello, &lt;J &amp; é&gt;!" in text(server.get("/cgi-bin/hello.pl?name=%3CJ+%26+%C3%A9%3E"))
    answer = server.get(
        "/cgi-bin/hello.pl",
        method="POST",
        body=b"colour=green&name=A+%22B%22",
        headers={"Content-Type": "application/x-www-form-urlencoded", "Cookie": "x=y; visits=6"},
    )
    assert "Hello, A &quot;B&quot;!" in text(answer)
    assert "visit number 7." in text(answer)
    assert answer.headers["Set-Cookie"] == "visits=7; HttpOnly; SameSite=Lax"


# form.py


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain",
        b"\r\n",
        b"\r\n--\r\n------bounds-471\r\n------bounds-4711x\r\n\r",
        bytes(range(256)) * 1000,
        b"x" * (64 * 1024 - 1) + b"\r\n" + b"y" * (64 * 1024 + 1) + b"\r",
    ],
    ids=["empty", "plain", "line-end", "like-a-boundary", "binary", "long-lines"],
)
def test_form_tells_of_the_file(serve, programs, content):
    server = serve(cgi_dir=programs)
    kind, body = multipart(("remark", None, b"1 < 2"), ("file", "a <b> é.bin", content), ("more", "second", b"2"))
    answer = server.get("/cgi-bin/form.py", method="POST", body=body, headers={"Content-Type": kind})
    assert answer.status == 200
    shown = text(answer)
    assert "<dt>remark\n<dd>1 &lt; 2\n" in shown
    digest = hashlib.sha256(content).hexdigest()
    told = f"<dd>a &lt;b&gt; é.bin (application/octet-stream)\n<dd>{len(content)} bytes\n<dd><code>{digest}</code>\n"
    assert f"<dt>file\n{told}<dt>more\n<dd>second" in shown


def test_form_sent_by_curl_chunked(serve, programs, tmp_path):
    support.need("curl")
    server = serve(cgi_dir=programs)
    content = os.urandom(300_000)
    (tmp_path / "upload.bin").write_bytes(content)
    url = f"http://127.0.0.1:{server.port}/cgi-bin/form.py"
    shown = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-H", "Transfer-Encoding: chunked", "-F", "file=@upload.bin", url],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "<dd>upload.bin (application/octet-stream)\n<dd>300000 bytes\n" in shown
    assert hashlib.sha256(content).hexdigest() in shown


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=B", b"", 400),
        ("multipart/form-data; boundary=B", b"--B\r\n", 400),
        ("multipart/form-data; boundary=B", b"--B\r\nContent-Disposition: form-data; name=x\r\n\r\nno end", 400),
        ("multipart/form-data; boundary=B", b"--B\r\nX: " + b"x" * 20_000, 400),
    ],
)
def test_form_refuses_what_is_none(serve, programs, kind, body, status):
    server = serve(cgi_dir=programs)
    answer = server.get("/cgi-bin/form.py", method="POST", body=body, headers={"Content-Type": kind})
    assert answer.status == status


def test_form_runs_on_every_python_that_is_here(programs):
    """Without the server: the program is for older and newer versions than the server is."""
    kind, body = multipart(("file", "é.bin", b"12\r\n"))
    found = [path for minor in range(8, 16) if (path := shutil.which(f"python3.{minor}"))]
    for python in [sys.executable, *found]:
        if subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
            continue  # a name that leads to nothing, as version managers leave them
        done = subprocess.run(
            [python, "-W", "error", str(programs / "form.py")],
            env={"REQUEST_METHOD": "POST", "CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(body))},
            input=body,
            capture_output=True,
            check=True,
        )
        assert hashlib.sha256(b"12\r\n").hexdigest().encode() in done.stdout, python
        assert "<dd>é.bin (application".encode() in done.stdout, python
        assert done.stderr == b"", python


# C


def test_mandelbrot_is_a_picture(serve, programs):
    support.need("cc", "make")
    subprocess.run(["make", "-s", "-C", str(programs), "CFLAGS=-O2 -Wall -Wextra -Werror"], check=True)
    server = serve(cgi_dir=programs)
    answer = server.get("/cgi-bin/mandelbrot")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "image/bmp"
    assert answer.body[:2] == b"BM"
    assert len(answer.body) == 54 + 480 * 320 * 3 == int.from_bytes(answer.body[2:6], "little")
    detail = server.get("/cgi-bin/mandelbrot?x=-0.75&y=0.1&width=0.05").body
    assert len(detail) == len(answer.body)
    assert detail != answer.body
    for nonsense in ("x=1e999", "x=nan", "x=", "x=1x", "&&&", "xx=1", "width=-inf"):
        assert server.get(f"/cgi-bin/mandelbrot?{nonsense}").body == answer.body
    assert server.get("/cgi-bin/mandelbrot", method="HEAD").body == b""


C_PROGRAM = r"""
/* Answers with the request body turned round, after a header; binary in, binary out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *length = getenv("CONTENT_LENGTH");
    size_t size = length ? (size_t)atol(length) : 0, got;
    char *body = malloc(size + 1);
    const char *name = strrchr(argv[0], '/');

    if (argc != 1 || !body)
        return 3;
    got = fread(body, 1, size + 1, stdin);
    if (got != size || !feof(stdin)) {
        fprintf(stderr, "expected %zu bytes and the end, got %zu\n", size, got);
        return 4;
    }
    if (strncmp(name ? name + 1 : argv[0], "nph-", 4) == 0)
        printf("HTTP/1.1 299 From the program\r\nX-Raw: \xe9\r\nConnection: close\r\n\r\n");
    else
        printf("Content-Type: application/octet-stream\nX-Length: %zu\n\n", size);
    while (got)
        putchar(body[--got]);
    return fflush(stdout) == 0 ? 0 : 5;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A directory with a program in C, as reverse and as nph-reverse."""
    support.need("cc")
    directory = tmp_path_factory.mktemp("compiled")
    source = directory / "reverse.c"
    source.write_text(C_PROGRAM)
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", directory / "reverse", source], check=True)
    os.link(directory / "reverse", directory / "nph-reverse")
    return directory


BINARY = bytes(range(256)) * 16


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("size", [0, 1, len(BINARY), 1_000_000])
def test_c_program_takes_and_gives_any_bytes(serve, compiled, http, size):
    server = serve("--http", http, cgi_dir=compiled)
    body = (BINARY * (size // len(BINARY) + 1))[:size]
    answer = server.get("/cgi-bin/reverse", method="POST", body=body)
    assert answer.status == 200
    assert answer.headers["X-Length"] == str(size)
    assert answer.body == body[::-1]


def test_c_program_nph_writes_to_the_client_itself(serve, compiled):
    server = serve(cgi_dir=compiled)
    head = b"POST /cgi-bin/nph-reverse HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % len(BINARY)
    answer = server.exchange(head + BINARY)
    assert answer == b"HTTP/1.1 299 From the program\r\nX-Raw: \xe9\r\nConnection: close\r\n\r\n" + BINARY[::-1]
    server.wait_for_access(r'"POST /cgi-bin/nph-reverse HTTP/1.1" 299 .* exit=0 outcome=ok')


def test_c_program_nph_is_followed_by_the_end(serve, compiled):
    """Whatever else was asked for on that connection: the program's bytes are the last ones."""
    server = serve(cgi_dir=compiled)
    two = b"GET /cgi-bin/nph-reverse HTTP/1.1\r\nHost: a.example\r\n\r\n" * 2
    answer = server.exchange(two)
    assert answer.count(b"299 From the program") == 1


# examples/


def test_send_file(serve):
    support.need_file("/usr/share/gitweb/static/gitweb.css")
    server = serve("--cgi-dir", f"/={EXAMPLES / 'gitweb/cgi-bin'}")
    answer = server.get("/gitweb-files/gitweb.css")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/css")
    with open("/usr/share/gitweb/static/gitweb.css", "rb") as file:
        assert answer.body == file.read()
    assert server.get("/gitweb-files/git-logo.png").body.startswith(b"\x89PNG\r\n")
    for path in ("", "/", "/nothing.css", "/.css", "/a%20b.css", "/gitweb.cgi"):
        assert server.get(f"/gitweb-files{path}").status == 404, path
    for path in ("/..%2fgitweb.cgi", "/%2e%2e%2fgitweb.css", "/../gitweb.cgi"):
        assert server.get(f"/gitweb-files{path}").status in (400, 404), path


@pytest.fixture
def repositories(tmp_path):
    """A directory with one repository in it, project.git, with a commit and a file."""
    support.need("git")
    root = tmp_path / "repositories"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "LC_ALL": "C",
    }
    subprocess.run(["git", "init", "-q", "--bare", root / "project.git"], check=True, env=environment)
    (root / "project.git" / "description").write_text("A project that is shown\n")
    stream = (
        "commit refs/heads/master\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 12\nFirst things\n"
        "M 100644 inline things.txt\ndata 15\nthings & <more>\n"
    )
    subprocess.run(
        ["git", "-C", root / "project.git", "fast-import", "--quiet"],
        input=stream.encode(),
        check=True,
        env=environment,
    )
    subprocess.run(
        ["git", "-C", root / "project.git", "symbolic-ref", "HEAD", "refs/heads/master"], check=True, env=environment
    )
    return root


def test_cgit(serve, repositories):
    support.need_file("/usr/lib/cgit/cgit.cgi")
    server = serve("--cgi-dir", f"/={EXAMPLES / 'cgit/cgi-bin'}", "--env", f"GIT_PROJECT_ROOT={repositories}")
    index = server.get("/cgit/")
    assert index.status == 200
    assert index.headers["Content-Type"].lower() == "text/html; charset=utf-8"
    assert "A project that is shown" in text(index)
    (link,) = set(re.findall(r"href='(/cgit/project\.git/)'", text(index)))
    assert "First things" in text(server.get(link))
    assert "things &amp; &lt;more&gt;" in text(server.get(f"{link}tree/things.txt"))
    plain = server.get(f"{link}plain/things.txt")
    assert (plain.status, plain.body) == (200, b"things & <more>")
    assert server.get("/cgit/nothing.git/").status == 404
    (sheet,) = re.findall(r"rel='stylesheet' type='text/css' href='([^']*)'", text(index))
    assert server.get(sheet).headers["Content-Type"] == "text/css"


def test_gitweb(serve, repositories):
    support.need_perl("CGI")
    support.need_file("/usr/share/gitweb/gitweb.cgi")
    server = serve("--cgi-dir", f"/={EXAMPLES / 'gitweb/cgi-bin'}", "--env", f"GIT_PROJECT_ROOT={repositories}")
    index = server.get("/gitweb")
    assert index.status == 200
    assert "A project that is shown" in text(index)
    (summary,) = set(re.findall(r'href="(/gitweb\?p=project\.git;a=summary)"', text(index)))
    assert "First things" in text(server.get(summary))
    assert "things" in text(server.get("/gitweb?p=project.git;a=tree"))
    plain = server.get("/gitweb?p=project.git;a=blob_plain;f=things.txt;hb=HEAD")
    assert plain.body == b"things & <more>"
    assert server.get("/gitweb?p=nothing.git;a=summary").status == 404
    (sheet,) = re.findall(r'rel="stylesheet" type="text/css" href="([^"]*)"', text(index))
    assert server.get(sheet).headers["Content-Type"] == "text/css"


def test_awstats_of_our_own_access_log(serve, programs, tmp_path):
    """The recipe of the README as it stands: requests, the update from the log, the page."""
    support.need_file("/usr/lib/cgi-bin/awstats.pl")
    statistics = tmp_path / "stats"
    statistics.mkdir()
    example = EXAMPLES / "awstats/cgi-bin"
    server = serve(
        "--cgi-dir", f"/={example}", "--env", f"AWSTATS_DIR={statistics}",
        cgi_dir=programs, access_log=str(statistics / "access.log"),
    )  # fmt: skip
    for number in range(7):
        answer = server.get(
            "/cgi-bin/redirect.sh", headers={"User-Agent": f"Browser/{number}", "Referer": "http://b.example/"}
        )
        assert answer.status == 200
    assert server.get("/cgi-bin/no-such-thing").status == 404
    # Lines gather for a moment before they are written; the last one is behind all others.
    wait_for_line(statistics / "access.log", '"GET /cgi-bin/no-such-thing HTTP/1.1" 404')
    update = subprocess.run(
        [example / "awstats.pl", "-config=gateway", "-update"],
        env={"AWSTATS_DIR": str(statistics), "PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Found 0 corrupted records" in update.stdout
    assert "Found 8 new qualified records" in update.stdout
    page = server.get("/awstats.pl?config=gateway")
    assert page.status == 200
    assert "Statistics for" in text(page)
    assert "/cgi-bin/redirect.sh" in text(page)
    answer = server.get("/awstats-icon/other/button.gif")
    assert answer.status == 200
    assert answer.body.startswith(b"GIF8")
    assert server.get("/awstats.gateway.conf").status == 403


def wait_for_line(path, line):
    """Wait until a log has a line: tail tells of it, and ends with its closed pipe."""
    with subprocess.Popen(["tail", "-n", "+1", "-F", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tail:
        assert tail.stdout
        for found in tail.stdout:
            if line.encode() in found:
                break
        tail.terminate()


def test_the_directory_that_debian_installs(serve):
    support.need_perl("CGI")
    support.need_file("/usr/lib/cgi-bin/gitweb.cgi")
    server = serve(cgi_dir="/usr/lib/cgi-bin")
    answer = server.get("/cgi-bin/gitweb.cgi")
    # Its repositories need not be there; that it ran and answered in its own way is what counts.
    assert answer.status in (200, 404)
    assert b"gitweb" in answer.body


def test_examples_are_all_run_here():
    programs = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/cgi-bin/*") if path.suffix != ".conf"}
    assert programs == {
        "awstats/cgi-bin/awstats-icon",
        "awstats/cgi-bin/awstats.pl",
        "cgit/cgi-bin/cgit",
        "cgit/cgi-bin/cgit-files",
        "git/cgi-bin/git",  # test_git.py
        "gitweb/cgi-bin/gitweb",
        "gitweb/cgi-bin/gitweb-files",
    }
    for name in programs - {"awstats/cgi-bin/awstats.pl"}:
        assert os.access(EXAMPLES / name, os.X_OK), name
