"""Ways out of a root, and ways to a program's source: each tried on files, CGI, PHP and a FastCGI application."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import support
from tests.misbehaviour import program
from tests.pool_load import front

# What nobody may see: of a file outside every root, of a hidden file, of a program's text.
SECRET, SOURCE = b"7he-s3cret", b"7he-s0urce"
CGI = f"""#!/bin/sh
# {SOURCE.decode()}
printf 'Content-Type: text/plain\\n\\nran %s|%s|%s' "$SCRIPT_FILENAME" "$PATH_INFO" "$PATH_TRANSLATED"
"""
PAGE = f"""<?php # {SOURCE.decode()}
header('Content-Type: text/plain');
echo 'ran ', $_SERVER['SCRIPT_FILENAME'], '|', $_SERVER['PATH_INFO'] ?? '', '|';
"""
OUTSIDE = f"<?php echo '{SECRET.decode()}', ' {SOURCE.decode()}';"
APP = """
def application(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [f"ran {environ['SCRIPT_NAME']}|{environ['PATH_INFO']}|".encode('latin-1')]
"""
MOUNTS = ("/", "/cgi-bin/", "/php/", "/app/", "/files/")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Everything below one directory, as it often is: the programs below the root of the files, secrets beside it."""
    support.need("php-cgi")
    base = tmp_path_factory.mktemp("traversal")
    root = base / "root"
    for where in (base, root, root / "cgi-bin", root / "php"):
        where.mkdir(exist_ok=True)
        (where / ".hidden").write_bytes(SECRET)
    for name in ("outside", "outside.php", "outside.html"):
        (base / name).write_text(OUTSIDE)
    program(base / "outside.sh", CGI.replace("ran", SECRET.decode()))
    (root / "index.html").write_text("index")
    (root / "open.txt").write_text("open")
    (root / "sub").mkdir()
    (root / "sub" / "deep.txt").write_text("deep")
    program(root / "cgi-bin" / "run", CGI)
    program(root / "cgi-bin" / "run.sh", CGI)
    (root / "cgi-bin" / "data.txt").write_bytes(SOURCE)
    (root / "php" / "page.php").write_text(PAGE)
    (root / "php" / "picture.jpg").write_text("<?php echo 'ran as php';")
    (base / "app.py").write_text(APP)
    (base / "gateway.toml").write_text(f"""
[server]
listen = ["127.0.0.1:0"]
workers = 1
script_timeout = 10

[[routes]]
path = "/"
root = "{root}"
listing = true

[[routes]]
path = "/files/"
root = "{root}"
try_files = ["$path", "$path.html", "=404"]

[[routes]]
path = "/cgi-bin/"
cgi = "{root}/cgi-bin"

[[routes]]
path = "/php/"
root = "{root}/php"
fastcgi = "pool:php"
extensions = [".php"]

[[routes]]
path = "/app/"
fastcgi = "pool:app"

[pools.php]
command = ["php-cgi"]
max_children = 1

[pools.app]
app = "app:application"
chdir = "{base}"
max_children = 1
""")
    with front(config=base / "gateway.toml") as server:
        server.base = base
        yield server


def check(server, target):
    """Ask for `target` and check that nothing was given that is nobody's to have."""
    with server.socket() as client:
        client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = support.receive_all(client)
    head, _, body = got.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 (200|301|400|403|404|405) ", head), (target, head)
    assert SECRET not in got, (target, got)
    assert SOURCE not in got, (target, got)
    assert b"root:x:" not in got, (target, got)
    location = re.search(rb"(?i)\r\nlocation: *(.*)", head)
    # A client would take what follows two slashes for a host.
    assert not location or re.match(rb"/(?![/\\])", location[1]), (target, location[1])
    if b"ran " in body:
        # What a program was told to be is one, and no path that it was told leads upward.
        told = body.partition(b"ran ")[2]
        root = bytes(server.base / "root")
        assert not re.search(rb"/\.\.(?=[/|]|\Z)", told), (target, body)
        programs = (b"/cgi-bin/run", b"/cgi-bin/run.sh", b"/php/page.php")
        assert told.split(b"|")[0] in {b"/app", *(root + name for name in programs)}, (target, body)
    return head, body


UP = [
    b"..", b"%2e%2e", b"%2E.", b".%2e", b"..;", b"%252e%252e", b"%c0%ae%c0%ae", b"%u002e%u002e", b"%%32%65%%32%65",
    b"....", b"..%00", b"%2e%2e%00", b"..%0a", b"..%5c", b"..\\", b".%00.", b"..%20", b".%09.",
]  # fmt: skip
SLASH = [b"/", b"//", b"%2f", b"%2F", b"%5c", b"\\", b"%252f", b"%c0%af", b"/./", b"/%2e/", b";/"]
AIMS = [b"outside", b"outside.php", b"outside.html", b"outside.sh", b".hidden", b"etc/passwd"]


@pytest.mark.parametrize("mount", MOUNTS)
def test_no_way_leads_out_of_a_root(server, mount):
    for up, slash, aim in itertools.product(UP, SLASH, AIMS):
        for depth in (1, 2, 9) if aim == b"etc/passwd" else (1, 2):
            check(server, mount.encode() + (up + slash) * depth + aim)
    for up, slash in itertools.product(UP, SLASH):
        check(server, mount.encode() + b"run" + slash + up + slash + up + slash + b"outside.sh")
        check(server, mount.encode() + b"page.php" + slash + up + slash + up + slash + b"outside.php")
        check(server, mount.encode() + b"sub" + slash + (up + slash) * 2 + b"outside")


SPELLINGS = [
    b"%s", b"./%s", b"%s/", b"%s/.", b"%s%%00", b"%s%%00.txt", b"%s%%20", b"%s.", b"%s~", b"%s%%0a", b"%s%%0a.txt",
    b"%s::$DATA", b"%s%%3f", b"%s%%23", b"%s;.txt", b"%s%%2f", b"%s%%5c", b"%s/x.txt", b"%s/x.jpg", b"%s%%2fx.txt",
    b"%s.txt", b"%s.html", b"%s.bak", b"x/../%s", b"x%%2f..%%2f%s", b".//%s", b"%%2e/%s", b"%%2f%s", b"%s?x=.txt",
    b"%s%%3fx",
]  # fmt: skip
PREFIXES = [
    b"/cgi-bin/", b"/cgi-bin//", b"//cgi-bin/", b"/cgi-bin%2f", b"/cgi-bin%5c", b"/CGI-BIN/", b"/cgi%2dbin/",
    b"/%63gi-bin/", b"/cgi-bin/./", b"/./cgi-bin/", b"/x/../cgi-bin/", b"/files/cgi-bin/", b"/files/../cgi-bin/",
    b"/files//cgi-bin/",
    b"/files/%63gi-bin/", b"/files/./cgi-bin/", b"/files/cgi-bin%2f", b"/%2e/cgi-bin/", b"/cgi-bin;/", b"/cgi-bin%00/",
    b"/php/", b"/php//", b"//php/", b"/php%2f", b"/%70hp/", b"/files/php/", b"/files/%70hp/", b"/files//php/", b"/PHP/",
    b"/php;/", b"/app/../php/", b"/php/../cgi-bin/", b"/cgi-bin/../php/", b"/cgi-bin/run/../../php/", b"/php%252f",
    b"/cgi-bin%252f",
]  # fmt: skip
NAMES = [
    b"run", b"run.sh", b"data.txt", b"page.php", b"page.PHP", b"page%2ephp", b"page.ph%70", b"r%75n", b"page.php5",
    b".hidden", b"%2ehidden", b"picture.jpg/page.php", b"picture.jpg/.php", b"picture.jpg%00.php",
    b"picture.jpg%0a.php",
]  # fmt: skip


def test_no_source_is_shown_and_nothing_is_run_that_is_no_program(server):
    for prefix, name, spelling in itertools.product(PREFIXES, NAMES, SPELLINGS):
        _, body = check(server, prefix + spelling % name)
        assert b"ran as php" not in body or b"<?php" in body, (prefix, name, spelling)


def test_ranges_and_conditions_show_no_more(server):
    fields = [b"Range: bytes=0-999", b"Range: bytes=-9", b"If-None-Match: *", b"Accept-Encoding: gzip", b"If-Range: x"]
    for prefix, name, field in itertools.product(PREFIXES, NAMES, fields):
        got = server.exchange(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n\r\n" % (prefix + name, field))
        assert SECRET not in got
        assert SOURCE not in got


MORE = [*(mount.encode() for mount in MOUNTS), b".", b"%", b"%2", b"?", b"*", b"@", b":"]
PIECES = st.sampled_from([*UP, *SLASH, *AIMS, *NAMES, *MORE])


@given(st.lists(PIECES, min_size=1, max_size=9).map(b"".join))
def test_any_mixture(server, path):
    check(server, b"/" + path.lstrip(b"/") if not path.startswith(b"//") else path)
