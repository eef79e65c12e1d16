"""A PHP site: php-fpm runs its pages, the server sends its files."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import misbehaviour, support
from tests.real_client import GIB, Memory, large_file, multipart
from tests.test_cgi_output import Said

MIB = 1 << 20
FLAT = 64 * MIB
NAMES = ["php-fpm", *(f"php-fpm{version}" for version in ("8.2", "8.3", "8.4", "8.5", "8.1", "7.4"))]

CONFIGURATION = """[global]
error_log = {home}/fpm.log
daemonize = no

[site]
listen = {socket}
pm = static
pm.max_children = 4
php_admin_value[memory_limit] = 32M
php_admin_value[post_max_size] = 2G
php_admin_value[upload_max_filesize] = 64M
php_admin_value[upload_tmp_dir] = {home}
php_admin_value[sys_temp_dir] = {home}
php_admin_value[session.save_path] = {home}
php_admin_flag[log_errors] = on
php_admin_flag[display_errors] = off
php_admin_value[output_buffering] = 0
"""

SECRET = "<?php /* the source, for nobody's eyes */ "
PAGES = {
    "index.php": SECRET + 'header("Content-Type: text/plain"); echo "index of the root";',
    "vars.php": SECRET
    + """header("Content-Type: text/plain");
foreach (["SCRIPT_NAME", "SCRIPT_FILENAME", "PATH_INFO", "PHP_SELF", "QUERY_STRING", "REQUEST_URI", "REQUEST_METHOD",
    "DOCUMENT_ROOT", "CONTENT_LENGTH", "HTTP_PROXY"] as $name) {
    echo "$name=", urlencode($_SERVER[$name] ?? "-"), "\n";
}
""",
    "form.php": SECRET
    + """header("Content-Type: text/plain");
ksort($_POST); foreach ($_POST as $name => $value) { echo "$name=$value\n"; }
foreach ($_FILES as $name => $file) {
    echo "$name: $file[name] $file[size] $file[error] ", hash_file("sha256", $file["tmp_name"]), "\n";
}
""",
    "count.php": SECRET
    + """session_start(); header("Content-Type: text/plain");
$_SESSION["count"] = ($_SESSION["count"] ?? 0) + 1; setcookie("second", "a b"); echo $_SESSION["count"]; """,
    "long.php": SECRET
    + """header("Content-Type: text/plain");
for ($i = 0; $i < 60; $i++) { header("X-$i: " . str_repeat("v", 1000)); } echo "long"; """,
    "lines.php": SECRET
    + """header("Content-Type: text/plain"); while (ob_get_level()) { ob_end_clean(); }
$gate = fopen($_GET["gate"], "r"); for ($i = 0; $i < 5; $i++) { echo "line $i\n"; flush(); fgets($gate); } """,
    "fatal.php": SECRET + 'header("Content-Type: text/plain"); error_log("a warning"); no_such_function();',
    "late.php": SECRET + 'header("Content-Type: text/plain"); echo "begun"; flush(); no_such_function();',
    "dies.php": SECRET + 'exec("kill -9 " . getmypid());',
    "status.php": SECRET + 'http_response_code((int) $_GET["code"]); header("X-Own: 1"); echo "a body";',
    "go.php": SECRET + 'header("Location: " . $_GET["to"]);',
    "sum.php": SECRET
    + """header("Content-Type: text/plain");
$sum = hash_init("sha256"); $size = hash_update_stream($sum, fopen("php://input", "r"));
echo hash_final($sum), " $size $_SERVER[CONTENT_LENGTH]"; """,
    "down.php": SECRET + 'header("Content-Type: application/octet-stream"); readfile($_GET["file"]);',
    "upper.PHP": SECRET + 'echo "upper";',
    "folder/index.php": SECRET
    + 'header("Content-Type: text/plain"); echo "index of a folder ", $_SERVER["PATH_INFO"] ?? "-";',
    "plain/index.html": "<title>plain</title>",
    "empty/file.txt": "",
    "text.txt": "0123456789",
    "a.jpg": SECRET + "no picture",
    "with space.php": SECRET + 'header("Content-Type: text/plain"); echo "spaced ", $_SERVER["SCRIPT_NAME"];',
    ".env": "SECRET=1",
    ".git/config": "secret",
    "folder/.htpasswd": "secret",
    "..php": SECRET,
}  # fmt: skip


@dataclass
class Site:
    """The directory, and the server's own options for it."""

    root: Path
    home: Path
    options: tuple[str, ...]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A php-fpm of our own, and a site for it."""
    program = next(filter(None, (shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") for name in NAMES)), None)
    support.need(program or "php-fpm")
    root = tmp_path_factory.mktemp("site")
    for name, text in PAGES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    os.mkfifo(root / "fifo.php")
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    configuration = home / "fpm.conf"
    configuration.write_text(CONFIGURATION.format(home=home, socket=home / "fpm.sock"))
    command = [program, "--nodaemonize", "-n", "--fpm-config", str(configuration)]
    if os.geteuid() == 0:
        command.append("--allow-to-run-as-root")
    with (home / "output").open("wb") as output:
        fpm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        support.wait_until(lambda: "" if _answers(home / "fpm.sock") else (home / "output").read_text())
        yield Site(root, home, ("--php", str(root), "--php-server", f"unix:{home / 'fpm.sock'}", "--connections", "4"))
    finally:
        fpm.terminate()
        fpm.wait(support.PATIENCE)
        shutil.rmtree(home)
    support.wait_until(lambda: f"left: {found}" if (found := support.members(fpm.pid)) else "")


def _answers(path):
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(str(path)) == 0


@pytest.fixture(scope="module")
def shared(site, tmp_path_factory):
    server = support.start_server(*site.options, temp_dir=tmp_path_factory.mktemp("spool"))
    try:
        yield server
        server.finish()
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


def ask(server, target, *fields, method="GET"):
    """Send a target as it is, which no polite client would."""
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a.example", *fields, "Connection: close", "", ""])
    return Said(server.exchange(head.encode("latin-1")))


def variables(answer):
    """What vars.php says."""
    pairs = (line.split("=", 1) for line in answer.body.decode().splitlines())
    return {name: urllib.parse.unquote_plus(value) for name, value in pairs}


# Pages.


def test_what_a_page_is_told(server, site):
    got = variables(ask(server, "/vars.php?a=b&c", "Proxy: evil"))
    assert got == {
        "SCRIPT_NAME": "/vars.php",
        "SCRIPT_FILENAME": f"{site.root}/vars.php",
        "PATH_INFO": "-",
        "PHP_SELF": "/vars.php",
        "QUERY_STRING": "a=b&c",
        "REQUEST_URI": "/vars.php?a=b&c",
        "REQUEST_METHOD": "GET",
        "DOCUMENT_ROOT": str(site.root),
        "CONTENT_LENGTH": "-",
        "HTTP_PROXY": "-",
    }


@pytest.mark.parametrize(
    ("path", "info"),
    [
        ("/vars.php/", "/"),
        ("/vars.php/x/y", "/x/y"),
        ("/vars.php/x%20y/", "/x y/"),
        ("/vars.php/a%2Fb", "/a/b"),
        ("/vars.php/%2526", "/%26"),
        ("/vars.php/x.php/y.php", "/x.php/y.php"),
        # The path of CVE-2019-11043.
        ("/vars.php/PHP%0Ais_the_shittest_lang.php?QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ", "/PHP\nis_the_shittest_lang.php"),
        ("/vars.php/%0a", "/\n"),
    ],
)
def test_path_info(server, site, path, info):
    got = variables(ask(server, path))
    assert got["PATH_INFO"] == info
    assert got["SCRIPT_NAME"] == "/vars.php"
    assert got["SCRIPT_FILENAME"] == f"{site.root}/vars.php"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/", b"index of the root"),
        ("/?q", b"index of the root"),
        ("/folder/", b"index of a folder -"),
        ("/folder/index.php/x", b"index of a folder /x"),
        ("/with%20space.php", b"spaced /with space.php"),
        ("/plain/", b"<title>plain</title>"),
        ("/plain/../folder/./", b"index of a folder -"),
        ("/%66older/", b"index of a folder -"),
    ],
)
def test_index_pages_and_names(server, target, body):
    got = ask(server, target)
    assert (got.status, got.body) == (200, body)


@pytest.mark.parametrize(
    ("target", "location"),
    [("/folder", "/folder/"), ("/folder?a=b", "/folder/?a=b"), ("//folder", "/folder/"), ("/plain", "/plain/")],
)
def test_a_directory_is_shown_with_its_slash(server, target, location):
    got = ask(server, target)
    assert (got.status, got.one("location")) == (301, location)


def test_a_site_below_a_prefix(serve, site):
    server = serve("--php", f"/blog/={site.root}", *site.options[2:])
    got = variables(ask(server, "/blog/vars.php/x"))
    assert (got["SCRIPT_NAME"], got["PATH_INFO"], got["PHP_SELF"]) == ("/blog/vars.php", "/x", "/blog/vars.php/x")
    assert got["DOCUMENT_ROOT"] == str(site.root)
    assert ask(server, "/blog/folder").one("location") == "/blog/folder/"
    assert ask(server, "/blog").status in {200, 301}
    assert ask(server, "/vars.php").status == 404


def test_a_form_with_a_file(server):
    content = bytes(range(256)) * 20_000
    parts = [("who", None, "gr\u00fc\u00dfe".encode()), ("file", "a \u00fc.bin", content), ("b", None, b"2")]
    kind, body = multipart(*parts)
    got = server.get("/form.php", "POST", {"Content-Type": kind}, body)
    told = f"file: a \u00fc.bin {len(content)} 0 {hashlib.sha256(content).hexdigest()}"
    assert got.text.splitlines() == ["b=2", "who=gr\u00fc\u00dfe", told]
    got = server.get("/form.php", "POST", {"Content-Type": "application/x-www-form-urlencoded"}, b"x=1+2&y=%26")
    assert got.text.splitlines() == ["x=1 2", "y=&"]


def test_a_chunked_form(server):
    with server.socket() as client:
        client.sendall(
            b"POST /form.php HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\n3\r\nx=1\r\n4\r\n&y=2\r\n0\r\n\r\n"
        )
        assert Said(support.receive_all(client)).body == b"x=1\ny=2\n"


def test_a_session_and_its_cookies(server):
    first = ask(server, "/count.php")
    cookies = first.all("set-cookie")
    assert first.body == b"1"
    assert [cookie.split("=")[0] for cookie in cookies] == ["PHPSESSID", "second"]
    session = cookies[0].split(";")[0]
    for count in (b"2", b"3"):
        assert ask(server, "/count.php", "Cookie: other=1", f"Cookie: {session}").body == count
    assert ask(server, "/count.php").body == b"1"


def test_a_header_of_60_kib(server):
    got = ask(server, "/long.php")
    assert (got.status, got.body) == (200, b"long")
    assert [got.one(f"x-{number}") for number in range(60)] == ["v" * 1000] * 60


@pytest.mark.parametrize("code", [201, 204, 304, 404, 418, 500])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_pages_own_status(server, code, method):
    with server.socket() as client:
        one = f"{method} /status.php?code={code} HTTP/1.1\r\nHost: x\r\n"
        client.sendall(f"{one}\r\n{one}Connection: close\r\n\r\n".encode())
        raw = support.receive_all(client)
    assert raw.count(b"HTTP/1.1 %d " % code) == 2
    assert raw.count(b"\r\nX-Own: 1\r\n") == 2
    assert raw.count(b"a body") == (0 if method == "HEAD" or code in {204, 304} else 2)


def test_redirects(server):
    got = ask(server, "/go.php?to=https://example.org/x")
    assert (got.status, got.one("location")) == (302, "https://example.org/x")
    # PHP writes a status with it: so it is the client's to follow.
    got = ask(server, "/go.php?to=/folder/")
    assert (got.status, got.one("location")) == (302, "/folder/")


def test_lines_come_as_they_are_written(server, site):
    gate = misbehaviour.Gate(site.home / "gate")
    try:
        with server.socket() as client:
            client.sendall(f"GET /lines.php?gate={gate.path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            got = misbehaviour.read_until(client, b"line 0\n")
            for number in range(1, 5):
                gate.open()
                got += misbehaviour.read_until(client, b"line %d\n" % number)
            gate.open()
            assert support.receive_all(client) == b""
    finally:
        gate.close()
        gate.path.unlink()


def test_what_php_complains_of_is_in_the_error_log(server):
    got = ask(server, "/fatal.php")
    assert got.status == 500
    assert b"no_such_function" not in got.raw
    request_id = re.escape(got.one("x-request-id"))
    server.wait_for_log(rf"^\S+ script \[{request_id}\] fatal\.php\[-\]: .*a warning\b")
    server.wait_for_log(rf"^\S+ script \[{request_id}\] fatal\.php\[-\]: .*Fatal error: .*no_such_function\(\)")
    server.wait_for_access(r'"GET /fatal\.php HTTP/1\.1" 500 .* exit=\d+ outcome=ok')


def test_an_error_after_the_first_words(server):
    got = ask(server, "/late.php")
    assert (got.status, got.body) == (200, b"begun")
    server.wait_for_log(r" late\.php\[-\]: .*Fatal error: ")
    server.wait_for_access(r'"GET /late\.php HTTP/1\.1" 200 .* exit=\d+ outcome=ok')


def test_a_process_that_dies_is_502_and_the_next_is_served(server):
    """A form is sent once."""
    for _ in range(3):
        got = server.get("/dies.php", "POST", body=b"x")
        assert got.status == 502
        assert got.headers["X-Request-Id"] in server.wait_for_log(r"^.* 502 .*dies\.php .* gave no answer.*$")[0]
        server.errors.text = ""
        assert ask(server, "/vars.php").status == 200


def test_many_at_once(server):
    clients = [server.socket() for _ in range(60)]
    for number, client in enumerate(clients):
        line = f"GET /vars.php/{number} HTTP/1.1\r\nHost: x\r\n"
        client.sendall(f"{line}\r\n{line}Connection: close\r\n\r\n".encode())
    for number, client in enumerate(clients):
        with client:
            assert support.receive_all(client).count(b"PATH_INFO=%%2F%d\n" % number) == 2


# What is not there, and what is not shown.


@pytest.mark.parametrize(
    "target",
    [
        "/nothing.php", "/nothing.php/x", "/nothing", "/folder/nothing.php", "/vars.php%00", "/vars.php%00.txt",
        "/a.jpg/x.php", "/a.jpg/", "/a.jpg%2fx.php", "/text.txt/x.php", "/text.txt/vars.php", "/a.jpg%0a.php",
        "/.env", "/.git/config", "/.git/", "/folder/.htpasswd", "/..php", "/%2eenv", "/%2egit/config", "/.%67it/config",
        "/folder%2findex.php", "/folder%2f..%2fvars.php", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/../../../etc/passwd", "/folder/../../../etc/passwd", "/folder/%2e%2e%2f%2e%2e%2fetc/passwd", "/..%5c..%5cetc",
        "/vars%2ephp%20", "/vars.php%20", "/vars.php.", "/vars.php~", "/vars%252ephp", "/fifo.php", "/fifo.php/x",
        "/empty/", "/vars.php%0a", "/vars.php%3f", "/vars.php::$DATA", "/etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_file_of_the_site(server, target):
    got = ask(server, target)
    assert got.status in {400, 404}, got.raw
    assert b"root:" not in got.raw
    assert b"<?php" not in got.raw
    assert b"No input file" not in got.raw
    assert b"File not found" not in got.raw


# But for those that wait, or end their process.
SHOWN = [name for name in PAGES if name.lower().endswith(".php") and name not in {"lines.php", "dies.php"}]


@pytest.mark.parametrize("name", [*SHOWN, "fifo.php"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_no_source_is_ever_shown(server, name, method):
    for target in (name, name + "/", name + "/x.txt", name.replace(".", "%2e"), name.replace("php", "%70hp")):
        got = ask(server, "/" + target.replace(" ", "%20"), "Range: bytes=0-9", method=method)
        assert b"<?php" not in got.raw
        assert b"for nobody" not in got.raw


def test_an_extension_in_capitals_is_php_all_the_same(server):
    got = ask(server, "/upper.PHP")
    assert b"<?php" not in got.raw
    assert got.status in {200, 403, 404}


def test_links_are_followed_unless_told_otherwise(serve, site, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "there.php").symlink_to(site.root / "index.php")
    (root / "there.txt").symlink_to(site.root / "text.txt")
    (root / "loop.php").symlink_to(root / "loop.php")
    (root / "folder").symlink_to(site.root / "folder")
    for option, status in (("--follow-links", 200), ("--no-follow-links", 404)):
        server = serve("--php", str(root), *site.options[2:], option)
        for target in ("/there.php", "/there.txt", "/folder/"):
            assert ask(server, target).status == status
        assert ask(server, "/loop.php").status == 404


# Files.


def test_a_file_is_sent_whole_in_part_or_not_at_all(server):
    got = ask(server, "/text.txt")
    assert (got.status, got.body, got.one("content-length")) == (200, b"0123456789", "10")
    assert got.one("content-type").startswith("text/plain")
    tag, modified = got.one("etag"), got.one("last-modified")
    assert re.fullmatch(r'"[^"]+"', tag)
    for field in (f"If-None-Match: {tag}", f'If-None-Match: "x", W/{tag}', "If-None-Match: *"):
        got = ask(server, "/text.txt", field, "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT")
        assert (got.status, got.rest, got.one("etag")) == (304, b"", tag)
    assert ask(server, "/text.txt", f"If-Modified-Since: {modified}").status == 304
    for field in (
        'If-None-Match: "x"',
        "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
        "If-Modified-Since: x",
        "If-Modified-Since: 99999999999999999999 Feb 99:99:99 - 10000",
    ):
        assert ask(server, "/text.txt", field).status == 200
    assert ask(server, "/text.txt", 'If-None-Match: "x"', f"If-Modified-Since: {modified}").status == 200


@pytest.mark.parametrize(
    ("wanted", "status", "body", "told"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,1-4", 206, b"01234", "bytes 0-4/10"),
        ("bytes=x", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=1_0-2", 200, b"0123456789", None),
    ],
)
def test_ranges(server, wanted, status, body, told):
    got = ask(server, "/text.txt", f"Range: {wanted}")
    assert (got.status, got.body, got.one("content-range")) == (status, body, told)


def test_a_range_of_what_has_changed_is_the_whole(server):
    tag = ask(server, "/text.txt").one("etag")
    assert ask(server, "/text.txt", "Range: bytes=2-3", f"If-Range: {tag}").body == b"23"
    assert ask(server, "/text.txt", "Range: bytes=2-3", 'If-Range: "x"').body == b"0123456789"


def test_head_of_a_file_and_of_an_empty_one(server):
    with server.socket() as client:
        for path, length in (("/text.txt", 10), ("/empty/file.txt", 0)):
            client.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = misbehaviour.read_until(client, b"\r\n\r\n")
            assert b"\r\nContent-Length: %d\r\n" % length in got
    assert ask(server, "/empty/file.txt").body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_file_can_only_be_read(server, method):
    got = ask(server, "/text.txt", method=method)
    assert (got.status, got.one("allow")) == (405, "GET, HEAD")


# Large.


@pytest.fixture(scope="module")
def gibibyte(site):
    path = site.root / "gibibyte.bin"
    yield path, large_file(path)
    path.unlink()


@pytest.mark.slow
def test_upload_of_a_gibibyte(server, gibibyte):
    path, checksum = gibibyte
    memory = Memory(server.workers())
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    with path.open("rb") as content:
        fields = {"Content-Length": str(GIB), "Content-Type": "application/octet-stream"}
        connection.request("POST", "/sum.php", content, fields)
        got = connection.getresponse()
        assert got.read().decode().split() == [checksum, str(GIB), str(GIB)]
    connection.close()
    assert memory.growth() < FLAT


@pytest.mark.slow
@pytest.mark.parametrize("target", ["/down.php?file=gibibyte.bin", "/gibibyte.bin"], ids=["page", "file"])
def test_download_of_a_gibibyte(server, gibibyte, target):
    _, checksum = gibibyte
    memory = Memory(server.workers())
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    connection.request("GET", target)
    with connection.getresponse() as got:
        assert got.status == 200
        assert hashlib.file_digest(got, "sha256").hexdigest() == checksum
    connection.close()
    assert memory.growth() < FLAT
    server.wait_for_access(rf'" 200 {GIB} .* outcome=ok')
