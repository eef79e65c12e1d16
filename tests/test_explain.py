"""Every 5xx has an id, in its page and in the error log, and the log says in words what happened."""

from __future__ import annotations

import contextlib
import html
import os
import re
import subprocess

import pytest

from tests import misbehaviour

# Each: the program (None: made by the test), the status, what the log says in words.
CAUSES = {
    "missing interpreter": (
        "#!/usr/bin/python2\nprint('Content-Type: text/plain')\n",
        500,
        [r"interpreter /usr/bin/python2 named in line 1 does not exist"],
    ),
    "missing interpreter with an argument": (
        "#! /opt/perl/bin/perl -w\nprint 1;\n",
        500,
        [r"interpreter /opt/perl/bin/perl named in line 1 does not exist"],
    ),
    "env without the command": (
        "#!/usr/bin/env no-such-command-here\n",
        500,
        [r"interpreter no-such-command-here named in line 1 was not found", r"exit\b.* 127"],
    ),
    "CR LF": (
        "#!/bin/sh\r\necho hello\r\n",
        500,
        [r"line 1 ends with CR LF", r"'sh\\r'|'/bin/sh\\r'"],
    ),
    "CR LF after env": (
        "#!/usr/bin/env sh\r\necho hello\r\n",
        500,
        [r"line 1 ends with CR LF"],
    ),
    "no first line": (
        "echo 'Content-Type: text/plain'\necho\n",
        500,
        [r"#!", r"(?i)exec format error|line 1"],
    ),
    "empty": ("", 500, [r"empty"]),
    "a byte order mark": (
        b"\xef\xbb\xbf#!/bin/sh\necho\n",
        500,
        [r"byte order mark"],
    ),
    "interpreter is a directory": ("#!/usr\necho\n", 500, [r"/usr\b", r"(?i)directory|permission|not executable"]),
    "no cgi module": (
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'cgi'\" >&2\nexit 1\n",
        502,
        [r"No module named 'cgi'", r"removed in Python 3\.13", r"pip install legacy-cgi"],
    ),
    "no cgitb module": (
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'cgitb'\" >&2\nexit 1\n",
        502,
        [r"No module named 'cgitb'", r"removed in Python 3\.13", r"pip install legacy-cgi"],
    ),
    "another module": (
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'flask'\" >&2\nexit 1\n",
        502,
        [r"No module named 'flask'"],
    ),
    "a Perl module": (
        '#!/bin/sh\necho "Can\'t locate CGI.pm in @INC (you may need to install the CGI module)" >&2\nexit 2\n',
        502,
        [r"Can't locate CGI\.pm in @INC", r"exit\b.* 2\b"],
    ),
    "a signal": ("#!/bin/sh\nkill -SEGV $$\n", 502, [r"SIGSEGV"]),
    "another signal": ("#!/bin/sh\nprintf 'X: y\\n'\nkill -ABRT $$\n", 502, [r"SIGABRT"]),
    "an exit code": (
        "#!/bin/sh\necho one >&2\necho 'cannot open the database' >&2\nexit 3\n",
        502,
        [r"exit\b.* 3\b", r"cannot open the database"],
    ),
    "nothing at all": ("#!/bin/sh\n", 502, [r"exit status 0\b", r"header"]),
    "garbage": (
        "#!/bin/sh\nprintf '\\211PNG\\r\\n\\032\\n<script>alert(1)</script>'\n",
        502,
        [r"\\x89PNG"],
    ),
    "a page without a header": (
        "#!/bin/sh\necho '<html><title>Hello</title>'\n",
        502,
        [r"<html><title>Hello", r"(?i)colon|header"],
    ),
    "a traceback on stdout": (
        "#!/bin/sh\necho 'Traceback (most recent call last):'\necho '  File \"x\"'\nexit 1\n",
        502,
        [r"Traceback \(most recent call last\)"],
    ),
    "no colon": ("#!/bin/sh\nprintf 'A: b\\nthis is no field\\n\\n'\n", 502, [r"colon", r"this is no field"]),
    "too much header": (
        "#!/bin/sh\nprintf 'X: '\nhead -c 70000 /dev/zero | tr '\\0' a\nprintf '\\n\\n'\n",
        502,
        [r"65,?536|64 KiB"],
    ),
    "a carriage return in a field": ("#!/bin/sh\nprintf 'A: b\\rC: d\\n\\n'\n", 502, [r"\bCR\b|carriage return"]),
    "a NUL in a field": ("#!/bin/sh\nprintf 'A: b\\000C: d\\n\\n'\n", 502, [r"\bNUL\b"]),
    "a status that is none": ("#!/bin/sh\nprintf 'Status: fine\\n\\n'\n", 502, [r"Status", r"fine"]),
    "a redirect round and round": (
        "#!/bin/sh\nprintf 'Location: %s\\n\\n' \"$SCRIPT_NAME\"\n",
        502,
        [r"redirect"],
    ),
    "silence": ("#!/bin/sh\nexec sleep 600\n", 504, [r"(?i)silen|no header|nothing|wrote"]),
}

# Traces of our own failing in words meant for others.
OURS = re.compile(r"Traceback \(most recent|gateway/\w+\.py|asyncio|Exception in ")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("cgi")


@pytest.fixture(scope="module")
def shared(directory, tmp_path_factory):
    options = ("--script-timeout", "1", "--kill-timeout", "1")
    with (
        misbehaviour.shared_server(directory, tmp_path_factory.mktemp("spool"), *options) as plain,
        misbehaviour.shared_server(directory, tmp_path_factory.mktemp("spool"), *options, "--debug") as debugging,
    ):
        yield plain, debugging


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared[0])


@pytest.fixture
def debugging(shared):
    """A server that explains itself to the client, too."""
    yield from misbehaviour.lent(shared[1])


def explained(server, name, status):
    """Ask for the program `name`; the answer, and all that the log says under its id."""
    answer = server.get(f"/cgi-bin/{name}")
    assert answer.status == status
    ident = answer.headers["x-request-id"]
    server.wait_for_log(rf"error \[{re.escape(ident)}\] ")
    server.wait_for_access(rf" id={re.escape(ident)} ")
    said = [line for line in server.errors.text.splitlines() if f"[{ident}]" in line]
    return answer, "\n".join(line for line in said if " script [" not in line)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_is_told_in_words(server, debugging, directory, cause):
    text, status, words = CAUSES[cause]
    name = f"program-{list(CAUSES).index(cause)}"
    misbehaviour.program(directory / name, text)
    for one, debug in ((server, False), (debugging, True)):
        answer, log = explained(one, name, status)
        page = answer.body.decode()
        shown = html.unescape(page)
        assert answer.headers["x-request-id"] in page
        assert str(status) in page
        assert name in log
        for word in words:
            assert re.search(word, log), log
            assert bool(re.search(word, shown)) == debug, shown
        # Nothing of the program's is markup in our page, nor a control character in our log.
        assert "<script" not in page
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)
        # And nothing of ours is in the page.
        assert not OURS.search(page.replace("Traceback (most recent call last)", ""))
        assert not re.search(r"gateway/\w+\.py|Exception in ", one.errors.text)


def test_a_program_that_is_not_executable(server, directory):
    misbehaviour.program(directory / "plain", "#!/bin/sh\n").chmod(0o644)
    answer = server.get("/cgi-bin/plain")
    assert answer.status == 403
    assert b"chmod" not in answer.body
    server.wait_for_log(r"plain.* not executable: chmod \+x .*plain")


def test_a_program_that_is_not_executable_in_debug(debugging, directory):
    misbehaviour.program(directory / "plain", "#!/bin/sh\n").chmod(0o644)
    answer = debugging.get("/cgi-bin/plain")
    assert (answer.status, b"not executable: chmod +x" in answer.body) == (403, True)


def test_a_busy_program(debugging, directory):
    busy = misbehaviour.program(directory / "busy", "#!/bin/sh\nexit 0\n")
    with open(busy, "ab"):
        with contextlib.suppress(OSError):
            subprocess.run([busy], check=True)
            pytest.skip("this kernel starts programs that are being written")
        answer, log = explained(debugging, "busy", 500)
    assert re.search(r"(?i)open for writing|being written|text file busy", log)
    assert re.search(r"(?i)open for writing|being written|text file busy", answer.body.decode())


def test_the_last_lines_of_stderr_and_not_all_of_them(debugging, directory):
    misbehaviour.program(directory / "long", "#!/bin/sh\nseq 1 5000 | sed 's/^/line /' >&2\nexit 4\n")
    answer, log = explained(debugging, "long", 502)
    page = answer.body.decode()
    assert "line 5000" in page
    assert "line 1\n" not in page
    assert len(page) < 20_000
    assert "line 5000" in log


def test_what_stderr_says_is_no_markup(debugging, directory):
    misbehaviour.program(directory / "evil", "#!/bin/sh\necho '</pre><script>alert(1)</script>&amp;' >&2\nexit 1\n")
    answer, _ = explained(debugging, "evil", 502)
    assert b"<script" not in answer.body
    assert "</pre><script>alert(1)</script>&amp;" in html.unescape(answer.body.decode())


def test_a_truncated_response_is_explained_too(server, directory):
    misbehaviour.program(directory / "dies", "#!/bin/sh\nprintf 'X: y\\n\\nso far'\nkill -BUS $$\n")
    raw = server.exchange(b"GET /cgi-bin/dies HTTP/1.1\r\nHost: x\r\n\r\n")
    ident = re.search(rb"(?i)x-request-id: (\S+)", raw)[1].decode()
    assert re.search(r"SIGBUS", server.wait_for_log(rf"\[{ident}\] .*")[0])


def test_each_line_of_stderr_has_program_pid_and_id(server, directory):
    misbehaviour.program(directory / "says", "#!/bin/sh\necho one >&2\necho \"two $$\" >&2\nprintf 'X: y\\n\\n'\n")
    answer = server.get("/cgi-bin/says")
    ident = answer.headers["x-request-id"]
    match = server.wait_for_log(rf"^\S+ script \[{ident}\] says\[(\d+)\]: two (\d+)$")
    assert match[1] == match[2]
    server.wait_for_log(rf"^\S+ script \[{ident}\] says\[{match[1]}\]: one$")


def test_an_id_for_every_response_and_none_twice(server, directory):
    misbehaviour.program(directory / "fine", "#!/bin/sh\nprintf 'X: y\\n\\n'\n")
    ids = [server.get(path).headers["x-request-id"] for path in ["/cgi-bin/fine"] * 5 + ["/", "/cgi-bin/none", "/x"]]
    assert all(ids)
    assert len(set(ids)) == len(ids)


def test_a_program_whose_folder_cannot_be_entered(server, directory):
    misbehaviour.program(directory / "sub" / "fine", "#!/bin/sh\nprintf 'X: y\\n\\n'\n")
    assert server.get("/cgi-bin/sub/fine").status == 200
    os.chmod(directory / "sub", 0)
    try:
        status = server.get("/cgi-bin/sub/fine").status
    finally:
        os.chmod(directory / "sub", 0o755)
    # Root enters all the same.
    assert status in ({200} if os.geteuid() == 0 else {403, 404, 500})
