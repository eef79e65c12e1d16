"""Programs that others wrote, and the ones of ``cgi-bin/``: what the client gets is the same warm and cold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests import support
from tests.real_client import multipart
from tests.warm_support import PYTHON, pair_of, see

# Of the moment, or of the one process.
PASSING = re.compile(rb"\d\d:\d\d:\d\d|\b\d+\.\d+ ?(?:s|seconds)\b|took <span[^>]*>[^<]*</span>")
GITWEB = "/usr/share/gitweb/gitweb.cgi"


def same(pair, path, **more):
    """Ask cold, and warm several times; return the cold answer."""
    cold = see(pair.cold, path, **more)
    for _ in range(4):
        warm = see(pair.warm, path, **more)
        assert PASSING.sub(b"", warm.body) == PASSING.sub(b"", cold.body)
        assert fields(warm) == fields(cold)
        assert (warm.first, warm.errors, warm.end) == (cold.first, cold.errors, cold.end)
    return cold


def fields(seen):
    return [(name, PASSING.sub(b"", value.encode())) for name, value in seen.headers]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    support.need("git")
    root = tmp_path_factory.mktemp("repositories")
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    subprocess.run(["git", "init", "-q", "--bare", root / "project.git"], check=True, env=environment)
    stream = (
        "commit refs/heads/master\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 12\nFirst things\n"
        "M 100644 inline things.txt\ndata 15\nthings & <more>\n"
    )
    import_it = ["git", "-C", root / "project.git", "fast-import", "--quiet"]
    subprocess.run(import_it, input=stream.encode(), check=True, env=environment)
    head = ["git", "-C", root / "project.git", "symbolic-ref", "HEAD", "refs/heads/master"]
    subprocess.run(head, check=True, env=environment)
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory, repositories):
    support.need("perl")
    directory = tmp_path_factory.mktemp("cgi")
    shutil.copytree(support.ROOT / "cgi-bin", directory, dirs_exist_ok=True)
    options = ("--env", f"HOME={repositories}", "--env", f"GITWEB_CONFIG={directory}/gitweb.conf")
    with pair_of(directory, tmp_path_factory.mktemp("spool"), *options) as pair:
        (directory / "gitweb.conf").write_text(f"our $projectroot = '{repositories}';\n")
        yield pair


def test_hello(pair):
    assert "Hello, World!" in same(pair, "/cgi-bin/hello.pl").text
    form = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": "visits=6"}
    assert "visit number 7." in same(pair, "/cgi-bin/hello.pl", method="POST", body=b"name=A+%22", headers=form).text


def test_form(pair):
    same(pair, "/cgi-bin/form.py")
    kind, body = multipart(("remark", None, b"1 < 2"), ("file", "a é.bin", bytes(range(256)) * 1000))
    seen = same(pair, "/cgi-bin/form.py", method="POST", body=body, headers={"Content-Type": kind})
    assert "256000 bytes" in seen.text
    assert same(pair, "/cgi-bin/form.py", method="POST", body=b"x").status == 415


UPLOAD = """
import cgi, hashlib, html
form = cgi.FieldStorage()
print("Content-Type: text/html\\n")
for name in sorted(form):
    field = form[name]
    print(html.escape(name), html.escape(field.filename or ""), hashlib.sha256(
        field.file.read() if field.filename else field.value.encode()).hexdigest())
"""


def test_an_upload_through_the_module_cgi(pair):
    if subprocess.run([PYTHON, "-Wignore", "-c", "import cgi"], capture_output=True, check=False).returncode:
        pytest.skip("this Python has no module cgi")
    path = pair.write(f"#!{PYTHON} -Wignore\n{UPLOAD}", "upload.py")
    kind, body = multipart(("remark", None, b"1 < 2"), ("file", "a.bin", bytes(range(256)) * 1000))
    seen = same(pair, path, method="POST", body=body, headers={"Content-Type": kind})
    assert "file a.bin " in seen.text
    same(pair, f"{path}?a=1&b=2")


@pytest.mark.parametrize("query", ["", "?p=project.git;a=summary", "?p=project.git;a=log", "?p=project.git;a=tree",
    "?p=project.git;a=blob_plain;f=things.txt;hb=HEAD", "?p=nothing.git;a=log", "?p=project.git;a=rss"])  # fmt: skip
def test_gitweb(pair, query):
    support.need_perl("CGI")
    support.need_file(GITWEB)
    target = pair.directory / "gitweb.cgi"
    if not target.exists():
        shutil.copy(GITWEB, target)
    seen = same(pair, f"/cgi-bin/gitweb.cgi{query}")
    assert seen.status == (404 if "nothing" in query else 200)


HGWEB = """#!/usr/bin/python3
from mercurial import demandimport; demandimport.enable()
from mercurial.hgweb import hgweb, wsgicgi
application = hgweb(b"{}")
wsgicgi.launch(application)
"""


@pytest.mark.parametrize("page", ["", "/log", "/rev/tip", "/raw-file/tip/things.txt", "/graph", "/help", "/nothing",
    "?cmd=capabilities", "?cmd=heads"])  # fmt: skip
def test_mercurial(pair, tmp_path_factory, page):
    support.need("hg")
    script = pair.directory / "hgweb.cgi"
    if not script.exists():
        root = tmp_path_factory.mktemp("hg")
        environment = {"PATH": os.environ["PATH"], "HOME": str(root), "HGRCPATH": "", "HGPLAIN": "1"}
        subprocess.run(["/usr/bin/hg", "init", root / "project"], check=True, env=environment)
        (root / "project" / "things.txt").write_text("things & <more>\n")
        add = ["/usr/bin/hg", "-R", root / "project", "commit", "-A", "-m", "First", "-u", "Ada", "-d", "0 0", "-q"]
        subprocess.run(add, check=True, env=environment)
        support.script(script, HGWEB.format(root / "project"))
    seen = same(pair, f"/cgi-bin/hgweb.cgi{page}")
    assert seen.status == (400 if page == "/nothing" else 200)


def test_awstats(tmp_path, tmp_path_factory):
    support.need_file("/usr/lib/cgi-bin/awstats.pl")
    statistics = tmp_path / "stats"
    statistics.mkdir()
    line = '10.0.0.1 - - [02/Nov/2026:10:00:0{0} +0000] "GET /page/{0} HTTP/1.1" 200 100 "-" "Browser/1"\n'
    # No two as often: perl's hashes have another order in each process, and so what is equal in rank.
    (statistics / "access.log").write_text("".join(line.format(number) * (9 - number) for number in range(9)))
    example = support.ROOT / "examples" / "awstats" / "cgi-bin"
    subprocess.run(
        [example / "awstats.pl", "-config=gateway", "-update"],
        env={"AWSTATS_DIR": str(statistics), "PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
    )
    directory = tmp_path / "cgi"
    shutil.copytree(example, directory, symlinks=True)
    with pair_of(directory, tmp_path_factory.mktemp("spool"), "--env", f"AWSTATS_DIR={statistics}") as pair:
        for more in ("", "&output=urldetail", "&output=nosuch", "&month=13"):
            page = same(pair, f"/cgi-bin/awstats.pl?config=gateway&year=2026&month=11{more}")
            assert page.body
        assert "/page/3" in same(pair, "/cgi-bin/awstats.pl?config=gateway&year=2026&month=11").text
