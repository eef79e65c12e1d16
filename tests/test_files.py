"""Files, as clients get them: ``--static`` and what is behind it, through the front door."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import html.parser
import http.client
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

import pytest

from gateway.files.store import SMALL
from tests import misbehaviour, support
from tests.real_client import GIB, Memory, Stream, large_file
from tests.test_cgi_output import Said

MIB = 1 << 20
FLAT = 24 * MIB
DIGITS = b"0123456789"
LARGE = os.urandom(3 * MIB + 17)
OLD = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SECRET = b"nobody is to see this"
SOURCE = b"#!/bin/sh\necho Content-Type: text/plain; echo; echo run\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree with all that a server of files must tell apart; links lead to a neighbour of it."""
    above = tmp_path_factory.mktemp("above")
    root = above / "root"
    for name in ("folder", "empty", "sub/.git", ".well-known", "cgi-bin", "rooted"):
        (root / name).mkdir(parents=True)
    files = {
        "digits.txt": DIGITS, "large.bin": LARGE, "empty.txt": b"", "folder/index.html": b"<p>index",
        "folder/page.html": b"<p>page", ".htpasswd": SECRET, "sub/.git/config": SECRET, "sub/file": b"sub",
        ".well-known/proof": b"proof", ".well-known/.hidden": SECRET, "a b&c.txt": b"odd", "back\\slash": b"back",
        "new\nline.txt": b"newline", "fresh.css": b"p{}" * 100, "stale.css": b"p{}", "index.php": SOURCE,
        "page.php": SOURCE, "upper.PHP": SOURCE,
    }  # fmt: skip
    for name, content in files.items():
        (root / name).write_bytes(content)
    for end in (".gz", ".br", ".zst"):
        (root / f"fresh.css{end}").write_bytes(gzip.compress(b"p{}" * 100) if end == ".gz" else end.encode() * 3)
    (root / "stale.css.gz").write_bytes(b"stale")
    (root / "cgi-bin" / "run").write_bytes(SOURCE)
    (root / "cgi-bin" / "run").chmod(0o755)
    (above / "secret").write_bytes(SECRET)
    (above / "outside").mkdir()
    (above / "outside" / "file").write_bytes(b"outside")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    for name, target in {
        "link.txt": "digits.txt", "out": "../outside", "loop": "loop", "dangling": "absent", "device": "/dev/zero",
        "programs": "cgi-bin", "program.txt": "cgi-bin/run", "page.txt": "page.php", "fifo-link": "fifo",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    for folder, _, names in os.walk(root):
        for name in names:
            if os.path.isfile(path := os.path.join(folder, name)):
                os.utime(path, (OLD, OLD))
    os.utime(root / "stale.css", (OLD + 2, OLD + 2))
    return root


@pytest.fixture(scope="module")
def shared(tree, tmp_path_factory):
    options = ("--static", str(tree), "--static", f"/list/={tree}", "--listing")
    with misbehaviour.shared_server(tree / "cgi-bin", tmp_path_factory.mktemp("spool"), *options) as server:
        yield server


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


def request(target, *fields, method="GET", close=True):
    lines = [f"{method} {target} HTTP/1.1", "Host: a.example", *fields, *(["Connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def ask(server, target, *fields, method="GET"):
    return Said(server.exchange(request(target, *fields, method=method)))


# Whole.


def test_a_file_is_sent_with_all_that_is_known_of_it(server, tree):
    for _ in range(2):  # read, and kept
        got = ask(server, "/digits.txt")
        assert (got.status, got.body, got.one("content-length")) == (200, DIGITS, "10")
        assert got.one("content-type") == "text/plain; charset=utf-8"
        assert (got.one("accept-ranges"), got.one("last-modified")) == ("bytes", DATE)
        found = (tree / "digits.txt").stat()
        assert got.one("etag") == f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'
        assert got.one("vary") is None


@pytest.mark.parametrize("name", ["digits.txt", "large.bin", "empty.txt", "fresh.css", "folder/", "list/", "absent"])
@pytest.mark.parametrize("field", ["X: y", "If-None-Match: *", 'If-Match: "x"', "Accept-Encoding: gzip"])
def test_head_is_the_head_of_get(server, name, field):
    got, head = (ask(server, f"/{name}", field, method=method) for method in ("GET", "HEAD"))
    assert head.rest == b""
    varying = {"date", "x-request-id"}
    if got.status in {200, 206, 304}:
        assert [pair for pair in head.fields if pair[0] not in varying] == [
            pair for pair in got.fields if pair[0] not in varying
        ]
    assert head.status == got.status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("target", ["/digits.txt", "/folder/", "/absent"])
def test_files_can_only_be_read(server, method, target):
    got = ask(server, target, method=method)
    assert (got.status, got.one("allow")) == (405, "GET, HEAD")


def test_a_body_that_nobody_asked_for_ends_the_connection(server):
    raw = server.exchange(request("/digits.txt", "Content-Length: 5", close=False) + b"hello")
    assert Said(raw).body == DIGITS
    assert Said(raw).one("connection") == "close"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_pipelined_requests_are_answered_in_order(server, version):
    keep = "Connection: keep-alive" if version == "1.0" else "X: y"
    one = request("/digits.txt", keep, close=False) + request("/large.bin", keep, close=False)
    two = request("/empty.txt", keep, close=False) + request("/large.bin", "Range: bytes=-3", keep)
    raw = server.exchange((one + one + two).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    bodies = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        bodies.append(rest[:length])
        raw = rest[length:]
    assert bodies == [DIGITS, LARGE, DIGITS, LARGE, b"", LARGE[-3:]]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("reader", ["h11", "httptools"])
def test_every_loop_and_reader_sends_the_same(serve, tree, loop, reader):
    server = serve("--static", str(tree), "--loop", loop, "--http", reader)
    raw = server.exchange(
        request("/large.bin", close=False) + request("/digits.txt", close=False) + request("/large.bin")
    )
    assert raw.count(LARGE) == 2
    assert raw.endswith(LARGE)
    assert DIGITS in raw.partition(LARGE)[2]


def test_over_tls_and_a_unix_socket(serve, tree, certificate, tmp_path):
    cert, key = certificate
    server = serve("--static", str(tree), "--tls-cert", str(cert), "--tls-key", str(key))
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False
    with server.socket() as plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(request("/large.bin", "Range: bytes=1-,0-0") + b"")
        assert LARGE in support.receive_all(client)
    path = tmp_path / "sock"
    serve("--static", str(tree), listen=f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(support.PATIENCE)
        client.connect(str(path))
        client.sendall(request("/large.bin"))
        assert Said(support.receive_all(client)).body == LARGE


# Conditions and ranges. What they mean is in test_file_rules; that they are asked, here.


@pytest.mark.parametrize("name", ["digits.txt", "large.bin", "folder/"])
def test_conditions(server, name):
    got = ask(server, f"/{name}")
    tag, date = got.one("etag"), got.one("last-modified")
    for field in (
        f"If-None-Match: {tag}",
        f'If-None-Match: "x"\r\nIf-None-Match: W/{tag}',
        f"If-Modified-Since: {date}",
    ):
        for method in ("GET", "HEAD"):
            same = ask(server, f"/{name}", field, "Range: bytes=0-1", method=method)
            assert (same.status, same.rest, same.one("etag")) == (304, b"", tag)
            assert same.one("last-modified") == date
            # RFC 9110 section 8.6: none, or that of the file
            assert same.one("content-length") is None
            assert same.one("content-type") is None
    for field in ('If-Match: "x"', "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT", f"If-Match: W/{tag}"):
        assert ask(server, f"/{name}", field).status == 412
    assert ask(server, f"/{name}", f"If-Match: {tag}", 'If-None-Match: "x"').body == got.body


def test_a_304_leaves_the_connection_whole(server):
    again = request("/digits.txt", "If-None-Match: *", close=False)
    raw = server.exchange(again + again + request("/digits.txt"))
    assert [line[9:12] for line in re.findall(rb"HTTP/1\.1 \d{3}", raw)] == [b"304", b"304", b"200"]
    assert raw.endswith(b"\r\n\r\n" + DIGITS)


@pytest.mark.parametrize(
    ("wanted", "status", "body", "told"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, DIGITS, "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=4-2", 200, DIGITS, None),
        ("lines=1-2", 200, DIGITS, None),
        ("bytes=0-1,10-", 206, b"01", "bytes 0-1/10"),
        ("bytes=" + "0-," * 100, 200, DIGITS, None),
    ],
)
def test_ranges(server, wanted, status, body, told):
    got = ask(server, "/digits.txt", f"Range: {wanted}")
    assert (got.status, got.body, got.one("content-range")) == (status, body, told)


@pytest.mark.parametrize(("name", "content"), [("digits.txt", DIGITS), ("large.bin", LARGE)])
def test_several_ranges(server, name, content):
    got = ask(server, f"/{name}", "Range: bytes=7-8, 0-1,-1")
    assert got.status == 206
    assert got.one("content-range") is None
    boundary = re.fullmatch(r"multipart/byteranges; boundary=(\w+)", got.one("content-type"))[1]
    parts = got.body.split(b"\r\n--" + boundary.encode())
    assert (parts[0], parts[-1]) == (b"", b"--\r\n")
    size = len(content)
    expected = [(7, 9), (0, 2), (size - 1, size)] if name != "digits.txt" else [(0, 2), (7, 10)]
    assert len(parts) == len(expected) + 2
    for part, (begin, end) in zip(parts[1:-1], expected, strict=True):
        head, _, body = part.partition(b"\r\n\r\n")
        assert body == content[begin:end]
        assert f"Content-Range: bytes {begin}-{end - 1}/{size}".encode() in head
        assert b"Content-Type: " in head


def test_ranges_that_overlap_are_sent_once(server):
    got = ask(server, "/large.bin", "Range: bytes=" + ",".join(["0-"] * 60))
    assert (got.status, got.body) == (206, LARGE)


def test_a_range_of_what_has_changed_is_the_whole(server):
    tag = ask(server, "/digits.txt").one("etag")
    for field, body in (
        (tag, b"23"), (DATE, b"23"), ('"x"', DIGITS), (f"W/{tag}", DIGITS), ("Sun, 06 Nov 1994 08:49:38 GMT", DIGITS),
    ):  # fmt: skip
        assert ask(server, "/digits.txt", "Range: bytes=2-3", f"If-Range: {field}").body == body


def test_curl_resumes_a_download(server, tree, tmp_path):
    support.need("curl")
    url = f"http://{server.host}:{server.port}/large.bin"
    target = tmp_path / "got"
    target.write_bytes(LARGE[: len(LARGE) // 3])
    subprocess.run(["curl", "-sSf", "-C", "-", "-o", target, url], check=True)
    assert target.read_bytes() == LARGE
    server.wait_for_access(rf'" 206 {len(LARGE) - len(LARGE) // 3} ')


# Codings.


@pytest.mark.parametrize(
    ("accepted", "coding", "body"),
    [
        ("gzip", "gzip", gzip.compress),
        ("gzip, br", "br", b".br" * 3),
        ("gzip, br, zstd", "zstd", b".zst" * 3),
        ("zstd;q=0.1, br;q=0.2", "br", b".br" * 3),
        ("gzip;q=0", None, b"p{}" * 100),
        ("identity", None, b"p{}" * 100),
    ],
)
def test_neighbours(server, accepted, coding, body):
    got = ask(server, "/fresh.css", f"Accept-Encoding: {accepted}")
    assert (got.status, got.one("content-encoding"), got.one("vary")) == (200, coding, "Accept-Encoding")
    assert got.one("content-type") == "text/css; charset=utf-8"
    assert (gzip.decompress(got.body) == b"p{}" * 100) if body is gzip.compress else (got.body == body)
    plain = ask(server, "/fresh.css")
    assert plain.one("vary") == "Accept-Encoding"
    assert (plain.one("etag") != got.one("etag")) == bool(coding)
    same = ask(server, "/fresh.css", f"Accept-Encoding: {accepted}", f"If-None-Match: {got.one('etag')}")
    assert (same.status, same.one("vary")) == (304, "Accept-Encoding")
    part = ask(server, "/fresh.css", f"Accept-Encoding: {accepted}", "Range: bytes=0-2")
    assert (part.status, part.body, part.one("content-encoding")) == (206, got.body[:3], coding)


def test_a_neighbour_older_than_the_file_is_forgotten_there(server):
    got = ask(server, "/stale.css", "Accept-Encoding: gzip")
    assert (got.body, got.one("content-encoding"), got.one("vary")) == (b"p{}", None, None)


# Paths: TRAPS of what is outside, hidden, or no file.


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/%64igits.txt", 200, DIGITS),
        ("/./folder/../digits.txt", 200, DIGITS),
        ("//digits.txt", 200, DIGITS),
        ("/folder//page.html", 200, b"<p>page"),
        ("/digits.txt?query=%00", 200, DIGITS),
        ("/a%20b&c.txt", 200, b"odd"),
        ("/back%5cslash", 200, b"back"),
        ("/new%0aline.txt", 200, b"newline"),
        ("/link.txt", 200, DIGITS),
        ("/out/file", 200, b"outside"),
        ("/.well-known/proof", 200, b"proof"),
        ("/cgi-bin/run", 200, b"run\n"),
        ("/folder/", 200, b"<p>index"),
        ("/folder/.", 200, b"<p>index"),
        ("/folder/page.html/..", 200, b"<p>index"),
        ("/../secret", 400, None),
        ("/%2e%2e/secret", 400, None),
        ("/folder/../../secret", 400, None),
        ("/folder/%2e%2e/%2e%2e/secret", 400, None),
        ("/..%2fsecret", 400, None),
        ("/folder/..%2f..%2fsecret", 400, None),
        ("/%252e%252e/secret", 404, None),
        ("/..%5csecret", 404, None),
        ("/folder%2fpage.html", 404, None),
        ("/%2fetc/passwd", 404, None),
        ("/digits.txt%00", 400, None),
        ("/digits.txt%00.html", 400, None),
        ("/digits.txt/", 404, None),
        ("/digits.txt/x", 404, None),
        ("/digits.txt%0a", 404, None),
        ("/digits.txt%20", 404, None),
        ("/digits.txt.", 404, None),
        ("/DIGITS.TXT", 404, None),
        ("/.htpasswd", 404, None),
        ("/%2ehtpasswd", 404, None),
        ("/sub/.git/config", 404, None),
        ("/sub/.git/", 404, None),
        ("/.well-known/.hidden", 404, None),
        ("/fifo", 404, None),
        ("/fifo-link", 404, None),
        ("/socket", 404, None),
        ("/device", 404, None),
        ("/loop", 404, None),
        ("/dangling", 404, None),
        ("/" + "a" * 300, 404, None),
        ("/" + "a/" * 3000, 404, None),
        ("/absent", 404, None),
        ("/empty/index.html", 404, None),
        # Below a directory of programs, however it is called, by the mount at / and by the one at /list/.
        ("/cgi-bin%2frun", 404, None),
        ("/list/cgi-bin/run", 404, None),
        ("/list/cgi-bin/", 404, None),
        ("/list/cgi-bin", 404, None),
        ("/list/CGI-BIN/run", 404, None),
        ("/programs/run", 404, None),
        ("/list/programs/", 404, None),
        ("/program.txt", 404, None),
        ("/list/program.txt", 404, None),
    ],
)
def test_paths(server, target, status, body):
    for field in ("X: y", "Range: bytes=0-9999", "If-None-Match: *", "Accept-Encoding: gzip"):
        got = ask(server, target, field)
        assert SECRET not in got.raw
        assert SOURCE not in got.raw
        assert b"root:" not in got.raw
        if field == "X: y":
            assert got.status == status, got.raw
            assert body is None or got.body == body


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/folder", "/folder/"),
        ("/folder?a=b//c", "/folder/?a=b//c"),
        ("//folder", "/folder/"),
        ("///empty//.//../empty", "/empty/"),
        ("/list/out", "/list/out/"),
        ("/list", "/list/"),
        ("/folder%0d%0aX:y/../folder", "/folder/"),
    ],
)
def test_a_directory_is_asked_for_with_a_slash(server, target, location):
    got = ask(server, target)
    assert (got.status, got.one("location"), got.body) == (301, location, b"")


def test_links_are_the_administrators_to_refuse(serve, tree):
    server = serve("--static", str(tree), "--listing", "--no-follow-links")
    for target in ("/link.txt", "/out/file", "/out/", "/out", "/loop", "/program.txt", "/fifo-link"):
        assert ask(server, target).status == 404, target
    assert ask(server, "/digits.txt").body == DIGITS
    assert b"link.txt" not in ask(server, "/").body
    # The root itself may be reached by one: the administrator wrote it.
    linked = tree.parent / "linked"
    linked.symlink_to(tree)
    server = serve("--static", str(linked), "--no-follow-links")
    assert ask(server, "/digits.txt").body == DIGITS
    assert ask(server, "/link.txt").status == 404


def test_no_source_of_a_sites_program_is_shown(serve, tree):
    server = serve(
        "--static", f"/files/={tree}", "--php", str(tree), "--php-server", f"unix:{tree}/socket", "--listing"
    )
    for target in ("page.php", "upper.PHP", "page.txt", "page%2ephp", "index.php", "page.php/", "page.php%20"):
        for prefix in ("/files/", "/"):
            for field in ("X: y", "Range: bytes=0-9", "If-None-Match: *"):
                got = ask(server, prefix + target, field)
                assert SOURCE[:9] not in got.raw
                assert got.status in {404, 502, 503}, (prefix, target, got.raw)
    shown = ask(server, "/files/").body
    assert b"digits.txt" in shown
    assert b"page" not in shown


def told(*options):
    """What the command says, and its exit status."""
    arguments = [sys.executable, "-m", "gateway", *options, "--check"]
    done = subprocess.run(arguments, cwd=support.ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_mounts_are_checked(tree):
    for options, words in (
        (("--static", "/x/=absent"), r"--static /x/=absent: the directory 'absent' does not exist"),
        (("--static", f"x y={tree}"), r"--static x y=.*: the directory .* does not exist"),
        (("--static", str(tree), "--static", f"/={tree}"), r".*--static.*: / is given twice"),
        (("--listing", "--cgi-dir", f"{tree}/cgi-bin"), r"--listing: goes with --static"),
        (
            ("--cgi-dir", f"{tree}/cgi-bin", "--static", f"/x/={tree}/programs"),
            r"--static .* holds the programs of --cgi-dir; name another directory",
        ),
    ):
        status, text = told(*options)
        assert status == 2
        assert re.match(f"gateway: {words}", text), text
        assert text.count("\n") == 1
    status, text = told("--static", f"/files={tree}", "--listing")
    assert status == 0
    assert f"static   /files/ -> {tree}, with listings\n" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_403_and_logged(serve, tmp_path):
    support.script(tmp_path / "closed.txt", "x", 0o000)
    server = serve("--static", str(tmp_path))
    assert ask(server, "/closed.txt").status == 403
    server.wait_for_log(r"closed\.txt cannot be read by the server's user: chmod \+r")


# Listings.


class Links(html.parser.HTMLParser):
    """The links of a page: (target, text)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "b", "img"}
        self.inside = tag == "a"
        if self.inside:
            assert [name for name, _ in attrs] == ["href"]
            self.found.append([dict(attrs)["href"], ""])

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.found[-1][1] += data


ODD = [
    b"<b>bold.txt", b"<script>alert(1)<", b'a"onclick="b', b"it's", b"new\nline", b"tab\t", b"\xff\xfe.bin", b"\x7f",
    b"&amp;.txt", b"#hash", b"?query", b"%41", b"a:b", b"javascript:alert(1)", b"\xc3\xbc.txt", b" space ", b"~",
    b"back\\slash", b"\x1b[31m", b"\xe2\x80\xae.txt", b"=", b"+plus",
]  # fmt: skip


def test_a_listing_shows_every_name_and_each_leads_there(serve, tmp_path):
    for number, name in enumerate(ODD):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(b"%d" % number)
    odd = os.fsencode(tmp_path) + b"/<i>\xff dir"
    os.mkdir(odd)
    with open(odd + b"/x", "wb") as file:
        file.write(b"inside")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / ".hidden").write_bytes(b"x")
    server = serve("--static", str(tmp_path), "--listing")
    got = ask(server, "/")
    assert got.one("content-type") == "text/html; charset=utf-8"
    links = Links(got.body.decode()).found
    assert len(links) == len(ODD) + 1
    bodies = set()
    for target, _ in links[1:]:
        whole = urllib.parse.urljoin("http://x/", target)
        assert whole.startswith("http://x/")
        bodies.add(ask(server, whole.removeprefix("http://x")).body)
    assert bodies == {b"%d" % number for number in range(len(ODD))}
    folder = urllib.parse.urljoin("http://x/", links[0][0]).removeprefix("http://x")
    inner = ask(server, folder)
    assert b"<i>" not in inner.body
    up, below = Links(inner.body.decode()).found
    assert up == ["../", ".."]
    assert ask(server, folder + below[0].removeprefix("./")).body == b"inside"


def test_nothing_is_listed_unless_it_is_asked_for(serve, tree):
    server = serve("--static", str(tree))
    got = ask(server, "/empty/")
    assert got.status == 404
    assert ask(server, "/folder/").body == b"<p>index"


def test_a_long_listing_ends(serve, tmp_path):
    for number in range(2100):
        (tmp_path / f"{number}").touch()
    server = serve("--static", str(tmp_path), "--listing")
    got = ask(server, "/").body
    assert got.count(b"<li>") == 2000
    assert b"There are more" in got


# Change.


def test_a_change_is_seen(serve, tmp_path):
    file = tmp_path / "file.txt"
    file.write_bytes(b"one")
    os.utime(file, (OLD, OLD))
    server = serve("--static", str(tmp_path))
    before = ask(server, "/file.txt")
    # Of the same size, with the same date: only the inode, or its own time of change, is another.
    (tmp_path / "other").write_bytes(b"two")
    os.utime(tmp_path / "other", (OLD, OLD))
    os.replace(tmp_path / "other", file)
    misbehaviour.wait_for(lambda: ask(server, "/file.txt").body == b"two")
    got = ask(server, "/file.txt", f"If-None-Match: {before.one('etag')}")
    assert got.status == 200
    file.unlink()
    misbehaviour.wait_for(lambda: ask(server, "/file.txt").status == 404)


def test_a_large_file_that_changes_is_never_under_the_tag_of_another(serve, tmp_path):
    file = tmp_path / "large"
    server = serve("--static", str(tmp_path))
    tags = {}
    for number in range(20):
        content = bytes([number]) * (SMALL + 1 + number)
        (tmp_path / "next").write_bytes(content)
        os.replace(tmp_path / "next", file)
        got = ask(server, "/large")
        assert got.body == content
        assert tags.setdefault(got.one("etag"), content) == content


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_file_that_is_cut_while_it_is_sent_is_not_made_up(serve, tmp_path, certificate, encrypted):
    file = tmp_path / "tree" / "file"
    file.parent.mkdir()
    file.write_bytes(b"x" * (64 * MIB))
    cert, key = certificate
    server = serve(
        "--static", str(file.parent), *(("--tls-cert", str(cert), "--tls-key", str(key)) if encrypted else ())
    )
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.settimeout(support.PATIENCE)
    client.connect((server.host, server.port))
    if encrypted:
        context = ssl.create_default_context(cafile=str(cert))
        context.check_hostname = False
        client = context.wrap_socket(client, server_hostname="localhost")
    with client:
        client.sendall(request("/file", close=False))
        got = client.recv(4096)
        os.truncate(file, 1000)
        size = len(got)
        with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
            while piece := client.recv(1 << 20):
                size += len(piece)
        assert b"Content-Length: %d\r\n" % (64 * MIB) in got
        assert size < 64 * MIB
    server.wait_for_log(r"500 .*/file became shorter while it was sent")
    server.wait_for_access(r"outcome=failed")


# Large, slow, gone.


@pytest.mark.slow
def test_a_gibibyte_in_little_memory(serve, tmp_path):
    checksum = large_file(tmp_path / "gibibyte")
    server = serve("--static", str(tmp_path))
    memory = Memory(server.workers())
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    connection.request("GET", "/gibibyte")
    with connection.getresponse() as got:
        assert hashlib.file_digest(got, "sha256").hexdigest() == checksum
    connection.request("GET", "/gibibyte", headers={"Range": f"bytes={GIB - 2**16}-"})
    with connection.getresponse() as got:
        assert int.from_bytes(got.read(8), "big") == GIB // 2**16
        got.read()
    connection.close()
    assert memory.growth() < FLAT
    server.wait_for_access(rf'" 200 {GIB} .* outcome=ok')


def test_what_the_disk_has_and_memory_has_not(serve, tmp_path):
    for name, content in (("large", LARGE), ("small", DIGITS)):
        with (tmp_path / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    server = serve("--static", str(tmp_path))
    assert ask(server, "/large").body == LARGE
    assert ask(server, "/small").body == DIGITS


def test_a_file_system_that_is_memory(serve):
    """It knows no RWF_NOWAIT."""
    support.need_file("/dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        for name, content in (("large", LARGE), ("small", DIGITS)):
            (Path(root) / name).write_bytes(content)
        server = serve("--static", root)
        assert ask(server, "/large").body == LARGE
        assert ask(server, "/small").body == DIGITS


def slow_client(server):
    """A client that has room for little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(support.PATIENCE)
    client.connect((server.host, server.port))
    return client


def test_a_client_that_takes_nothing_is_left_at_the_deadline(serve, tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(GIB)
    server = serve("--static", str(tmp_path), "--send-timeout", "1")
    with slow_client(server) as client:
        client.sendall(request("/file", close=False))
        server.wait_for_access(r'"GET /file HTTP/1.1" 200 .* outcome=timeout')


def test_slow_clients_share_a_descriptor_and_hold_up_nobody(serve, tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(GIB)
    (tmp_path / "small").write_bytes(DIGITS)
    server = serve("--static", str(tmp_path))
    (worker,) = server.workers()
    memory = Memory([worker])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(slow_client(server)) for _ in range(20)]
        for client in clients:
            client.sendall(request("/file", close=False))
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        assert support.links(worker).count(str(tmp_path / "file")) == 1
        assert ask(server, "/small").body == DIGITS
        for client in clients[:10]:
            misbehaviour.vanish(client)
        assert ask(server, "/small").body == DIGITS
    assert memory.growth() < FLAT
    misbehaviour.wait_for(lambda: server.accesses.text.count("outcome=client-gone") == 20)
    misbehaviour.wait_for(lambda: str(tmp_path / "file") not in support.links(worker))


def test_a_slow_reader_gets_all_of_it(serve, tree):
    server = serve("--static", str(tree))
    with slow_client(server) as client:
        client.sendall(request("/large.bin", "Range: bytes=0-,1-1", close=False) + request("/digits.txt"))
        got = b""
        while piece := client.recv(3000):
            got += piece
    head, _, rest = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 206")
    assert rest.startswith(LARGE)
    assert rest.endswith(DIGITS)


def test_the_drain_waits_for_a_download(serve, tree):
    server = serve("--static", str(tree))
    with Stream(slow_client(server), "/large.bin") as stream:
        stream.until(b"\r\n\r\n")
        server.process.send_signal(support.signal.SIGQUIT)
        assert stream.rest() == LARGE
    assert server.process.wait(support.PATIENCE) == 0
    server.stopped = True


def test_descriptors_of_files_are_reserved_before_a_connection_is_accepted(serve, tmp_path):
    for number in range(40):
        with (tmp_path / str(number)).open("wb") as file:
            file.truncate(64 * MIB)
    support.need("prlimit")
    server = serve("--static", str(tmp_path), prefix=["prlimit", "--nofile=100:100"])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(slow_client(server)) for _ in range(40)]
        for number, client in enumerate(clients):
            client.sendall(request(f"/{number}", close=False))
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
            misbehaviour.vanish(client)
    misbehaviour.wait_for(lambda: server.accesses.text.count(" outcome=") == 40)
    assert " 503 " not in server.accesses.text
    assert " 404 " not in server.accesses.text


def test_no_descriptor_is_no_404(serve, tree):
    server = serve("--static", str(tree), "--loop", "asyncio")
    (worker,) = server.workers()
    with server.socket() as client:
        client.sendall(request("/digits.txt", close=False))
        misbehaviour.read_response(client)
        restore = misbehaviour.limit([worker], resource.RLIMIT_NOFILE, misbehaviour.highest_descriptor(worker) + 1)
        try:
            client.sendall(request("/large.bin", close=False))
            got = Said(misbehaviour.read_response(client))
        finally:
            restore()
        assert (got.status, got.one("retry-after")) == (503, "1")
        client.sendall(request("/large.bin", close=False))
        assert misbehaviour.read_response(client).endswith(LARGE)
