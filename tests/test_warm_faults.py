"""What cannot be run warm is run cold, and whatever dies, hangs or refuses, the server answers and leaves nothing."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess

import pytest

from tests import misbehaviour, support
from tests.warm_support import FINE, PERL, PYTHON, interpreters, waiting

SAYS = f"#!{PYTHON}\nprint('X: y\\n\\nfine')\n"


@pytest.fixture
def directory(tmp_path):
    support.need_file(PYTHON)
    misbehaviour.program(tmp_path / "cgi" / "says", SAYS)
    misbehaviour.program(tmp_path / "cgi" / "perl", f'#!{PERL}\nprint "X: y\\n\\nfine\\n";\n')
    misbehaviour.program(tmp_path / "cgi" / "shell", FINE)
    return tmp_path / "cgi"


def fine(server, path="/cgi-bin/says"):
    answer = server.get(path)
    assert (answer.status, answer.body) == (200, b"fine\n"), server.errors.text


def ready(server, path="/cgi-bin/says"):
    """Ask, and wait until a child waits for the next request; return the interpreter's pid."""
    support.wait_until(lambda: "" if is_warm(server, path) else "no interpreter")
    (pid,) = interpreters(server)
    return pid


def is_warm(server, path):
    """After a death it takes a second or two until the next one is started, and requests that ask for it."""
    fine(server, path)
    return len(interpreters(server)) == 1 and waiting(server)


# What is not run warm.


def test_a_program_of_another_kind_is_started_cold_and_the_reason_told_once(serve, directory):
    server = serve("--warm", cgi_dir=directory)
    for _ in range(5):
        fine(server, "/cgi-bin/shell")
    fine(server)
    server.wait_for_log(r"notice .*shell is started cold: sh is neither Python nor Perl$")
    assert server.errors.text.count("is started cold") == 1


REFUSED = {
    "#!/bin/sh": "sh is neither Python nor Perl",
    f"#!{PYTHON} -c pass": "the flag -c pass in its first line",
    f"#!{PYTHON} -i": "the flag -i in its first line",
    "#!/usr/bin/env -i /usr/bin/python3": "its first line asks env for more than an interpreter",
    "#!/usr/bin/env no-such-python": "no-such-python is not in PATH",
    "print('no first line')": "it is no script of Python or Perl: its first line does not begin with #!",
    f"#!{PYTHON}\r": "its first line has no proper end",
    f"#!{PERL} -n": "the flag -n in its first line",
    "#!/no/such/python3": "/no/such/python3: No such file or directory",
}


@pytest.mark.parametrize("line", REFUSED)
def test_required_it_is_refused_with_the_reason(serve, directory, line):
    server = serve("--warm", "require", cgi_dir=directory)
    misbehaviour.program(directory / "other", f"{line}\nprint('X: y\\n')\n")
    for _ in range(2):
        answer = server.get("/cgi-bin/other")
        assert answer.status == 500
        server.wait_for_log(
            rf"error \[{answer.headers['x-request-id']}\] 500 .*/other cannot be run warm \(--warm require\): "
            + re.escape(REFUSED[line])
        )
    fine(server)


# Interpreters that do not come up.


BROKEN = {
    "exits": "import os\nos._exit(3) if not os.environ.get('QUERY_STRING') else None",
    "raises": "import os\nif not os.environ.get('QUERY_STRING'): raise SystemExit('broken here')",
    "is killed": "import os\nos.kill(os.getpid(), 9) if not os.environ.get('QUERY_STRING') else None",
    "hangs": "import os, signal\nsignal.pause() if 'QUERY_STRING' not in os.environ else None",
}


@pytest.fixture
def break_it(directory, tmp_path):
    """Make a script whose interpreter does not start without a request: a line of a .pth file is executed."""

    def break_it(way):
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
        (packages,) = (tmp_path / "venv" / "lib").glob("python3.*/site-packages")
        (packages / "own.pth").write_text(f"import sys; exec({BROKEN[way]!r})\n")
        misbehaviour.program(directory / "broken", SAYS.replace(PYTHON, f"{tmp_path}/venv/bin/python3"))

    return break_it


@pytest.mark.parametrize("way", BROKEN)
def test_an_interpreter_that_does_not_start_costs_no_request(serve, directory, break_it, way):
    break_it(way)
    server = serve("--warm", cgi_dir=directory)
    for _ in range(4):
        fine(server, "/cgi-bin/broken?x")
    fine(server)
    if way != "hangs":
        said = ": .*broken here" if way == "raises" else ""
        server.wait_for_log(
            rf"broken is started cold: the warm .*/venv/bin/python3: it ended before it was ready{said}$"
        )


def test_required_an_interpreter_that_does_not_start_is_an_error(serve, directory, break_it):
    break_it("exits")
    server = serve("--warm", "require", cgi_dir=directory)
    assert server.get("/cgi-bin/broken?x").status == 500
    server.wait_for_log(r"broken cannot be run warm .*it ended before it was ready")
    fine(server)


# Deaths.


@pytest.mark.parametrize("path", ["/cgi-bin/says", "/cgi-bin/perl"])
def test_a_killed_interpreter_is_replaced(serve, directory, path):
    server = serve("--warm", cgi_dir=directory)
    for _ in range(2):
        pid = ready(server, path)
        os.kill(pid, signal.SIGKILL)
        for _ in range(3):
            fine(server, path)
        misbehaviour.wait_until_gone(pid)
        misbehaviour.wait_for(lambda pid=pid: pid not in interpreters(server))
        fine(server, path)
    ready(server, path)


def test_a_request_outlives_its_interpreter(serve, directory, tmp_path):
    gate = misbehaviour.Gate(tmp_path / "gate")
    misbehaviour.program(
        directory / "gated",
        f"#!{PYTHON}\nprint('X: y\\n\\nbegun', flush=True)\nopen('{gate.path}').readline()\nprint('ended')\n",
    )
    server = serve("--warm", "require", cgi_dir=directory)
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/gated HTTP/1.0\r\n\r\n")
        assert misbehaviour.read_until(sock, b"begun\n")
        (pid,) = interpreters(server)
        os.kill(pid, signal.SIGKILL)
        misbehaviour.wait_until_gone(pid)
        gate.open()
        assert support.receive_all(sock) == b"ended\n"
    server.wait_for_access(r"gated .* exit=0 outcome=ok")
    gate.close()


def test_killed_children_that_wait_are_replaced(serve, directory):
    server = serve("--warm", "require", cgi_dir=directory)
    for _ in range(5):
        ready(server)
        for pid in waiting(server):
            os.kill(pid, signal.SIGKILL)
            misbehaviour.wait_until_gone(pid)
        for _ in range(3):
            fine(server)


def test_a_killed_spawner_takes_all_with_it_and_is_replaced(serve, directory):
    server = serve("--warm", cgi_dir=directory)
    pid = ready(server)
    gone = {pid, *waiting(server)}
    (spawner,) = server.spawners()
    os.kill(spawner, signal.SIGKILL)
    for each in gone:
        misbehaviour.wait_until_gone(each)
    support.wait_until(lambda: "" if server.get("/cgi-bin/says").status == 200 else "not yet")
    ready(server)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_server_that_dies(serve, directory, number):
    server = serve("--warm", cgi_dir=directory)
    ready(server)
    processes = server.processes()
    assert len(processes) >= 4
    server.expected_status = -signal.SIGKILL if number == signal.SIGKILL else 0
    os.kill(server.pid, number)
    for pid in processes:
        misbehaviour.wait_until_gone(pid)
    server.process.wait(support.PATIENCE)


@pytest.mark.parametrize("path", ["/cgi-bin/says", "/cgi-bin/perl"])
def test_a_stopped_interpreter_holds_no_request(serve, directory, path):
    server = serve("--warm", cgi_dir=directory)
    pid = ready(server, path)
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(8):
            fine(server, path)
    finally:
        os.kill(pid, signal.SIGCONT)
    ready(server, path)


def test_a_client_that_leaves_while_its_request_waits(serve, directory):
    """It waits for a child of an interpreter that does nothing."""
    server = serve("--warm", "require", cgi_dir=directory)
    pid = ready(server)
    os.kill(pid, signal.SIGSTOP)
    for child in waiting(server):
        os.kill(child, signal.SIGKILL)
        misbehaviour.wait_until_gone(child)
    sock = server.socket()
    sock.sendall(b"GET /cgi-bin/says?gone HTTP/1.1\r\nHost: x\r\n\r\n")
    # Another program's answer: the first request has reached the spawner before it.
    assert server.get("/cgi-bin/shell").status == 500
    misbehaviour.leave(sock)
    server.wait_for_access(r'"GET /cgi-bin/says\?gone HTTP/1\.1" 499 ')
    os.kill(pid, signal.SIGCONT)
    fine(server)


def test_an_interpreter_that_cannot_fork_holds_no_request(serve, directory):
    """No room in its table of descriptors, so that no child can be had."""
    server = serve("--warm", cgi_dir=directory)
    pid = ready(server)
    restore = misbehaviour.limit([pid], resource.RLIMIT_NOFILE, 3)
    for _ in range(6):
        fine(server)
    restore()
    ready(server)


def test_many_at_once_find_their_children(serve, directory):
    server = serve("--warm", "require", cgi_dir=directory)
    socks = [server.socket() for _ in range(60)]
    for n, sock in enumerate(socks):
        name = ("says", "perl")[n % 2]
        sock.sendall(f"GET /cgi-bin/{name} HTTP/1.0\r\n\r\n".encode())
    for sock in socks:
        assert support.receive_all(sock).endswith(b"\r\n\r\nfine\n")
        sock.close()
