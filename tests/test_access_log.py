"""The access log: what each line says, and that nobody can forge one."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys

import pytest

from tests import misbehaviour, support

LINE = re.compile(
    r'(?P<client>\S+) - (?P<user>\S+) \[(?P<time>[^]]+)\] "(?P<method>\S+) (?P<target>\S+) (?P<protocol>\S+)" '
    r'(?P<status>\d{3}) (?P<bytes>\d+|-) "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)" '
    r"id=(?P<id>\S+) time=(?P<duration>\d+\.\d{4}) pid=(?P<pid>\d+|-) cpu=(?P<cpu>\d+\.\d+|-) "
    r"mem=(?P<memory>\d+K|-) exit=(?P<exit>\S+) outcome=(?P<outcome>\S+)"
)

FINE = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s' $$\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cgi")
    misbehaviour.program(directory / "fine", FINE)
    return directory


@pytest.fixture(scope="module")
def shared(directory, tmp_path_factory):
    with misbehaviour.shared_server(
        directory, tmp_path_factory.mktemp("spool"), "--script-timeout", "1", "--kill-timeout", "1"
    ) as server:
        yield server


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


def line_of(server, ident):
    """The one line with this id, taken apart."""
    server.wait_for_access(rf"id={re.escape(ident)} .*\n")
    lines = [line for line in server.accesses.text.split("\n") if f"id={ident} " in line]
    assert len(lines) == 1
    match = LINE.fullmatch(lines[0])
    assert match, lines[0]
    return match


def asked(server, path, **more):
    return line_of(server, server.get(path, **more).headers["x-request-id"])


def test_every_column_of_a_fine_request(server):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    answer = server.get("/cgi-bin/fine?a=b", headers={"Referer": "http://r.example/", "User-Agent": "Agent/1 (x)"})
    line = line_of(server, answer.headers["x-request-id"])
    assert line["client"] == "127.0.0.1"
    assert line["user"] == "-"
    moment = datetime.datetime.strptime(line["time"], "%d/%b/%Y:%H:%M:%S %z")
    assert before <= moment <= datetime.datetime.now(datetime.UTC)
    assert (line["method"], line["target"], line["protocol"]) == ("GET", "/cgi-bin/fine?a=b", "HTTP/1.1")
    assert (line["status"], line["bytes"]) == ("200", str(len(answer.body)))
    assert (line["referer"], line["agent"]) == ("http://r.example/", "Agent/1 (x)")
    assert line["pid"] == answer.body.decode()
    assert float(line["duration"]) > 0
    assert line["memory"] == "-" or int(line["memory"][:-1]) > 0
    assert (line["exit"], line["outcome"]) == ("0", "ok")


def test_cpu_time_and_memory_are_the_programs(server, directory):
    """As the kernel books them (times(2)): the process's own clock runs on where a hypervisor takes the CPU away."""
    misbehaviour.program(
        directory / "busy",
        f"#!{sys.executable} -IS\nimport os\nblock = b'x' * 50_000_000\nwhile sum(os.times()[:2]) < 0.3: pass\n"
        "print('Content-Type: text/plain\\n\\ndone')\n",
    )
    line = asked(server, "/cgi-bin/busy")
    assert float(line["cpu"]) >= 0.3
    assert int(line["memory"][:-1]) * 1024 >= 50_000_000
    line = asked(server, "/cgi-bin/fine")
    assert float(line["cpu"]) < 0.3
    # As small as that it cannot be told from what the process was before its exec.
    assert line["memory"] == "-"


@pytest.mark.parametrize(
    ("program", "status", "code", "outcome"),
    [
        ("printf 'X: y\\n\\nbody'; exit 3", 200, "3", "ok"),
        ("exit 3", 502, "3", "failed"),
        ("kill -SEGV $$", 502, "SIGSEGV", "failed"),
        ("printf 'Status: 404 Not Here\\n\\nbody'", 404, "0", "ok"),
        ("printf 'Status: 500 Mine\\n\\nbody'", 500, "0", "ok"),
        ("exec sleep 600", 504, "SIGTERM", "timeout"),
        ("trap '' TERM; sleep 600; sleep 600", 504, "SIGKILL", "timeout"),
    ],
)
def test_exit_and_outcome(server, directory, program, status, code, outcome):
    misbehaviour.program(directory / "program", f"#!/bin/sh\n{program}\n")
    line = asked(server, "/cgi-bin/program")
    assert (int(line["status"]), line["exit"], line["outcome"]) == (status, code, outcome)
    assert line["pid"].isdigit()


@pytest.mark.parametrize("path", ["/cgi-bin/nothing", "/elsewhere", "/cgi-bin/"])
def test_what_was_refused(server, path):
    line = asked(server, path)
    assert (line["status"], line["pid"], line["exit"], line["outcome"]) == ("404", "-", "-", "refused")


def test_what_was_no_request(server):
    assert server.exchange(b"GET / HTTP/1.1\r\nBad Header\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    server.wait_for_access(r" 400 .*outcome=refused\n")
    assert all(LINE.fullmatch(line) for line in server.accesses.text.splitlines())


def test_truncated(server, directory):
    misbehaviour.program(directory / "dies", "#!/bin/sh\nprintf 'X: y\\n\\nso far'\nkill -KILL $$\n")
    server.exchange(b"GET /cgi-bin/dies HTTP/1.1\r\nHost: x\r\n\r\n")
    match = server.wait_for_access(r"[^\n]*/cgi-bin/dies [^\n]*(?=\n)")
    line = LINE.fullmatch(match[0])
    assert (line["status"], line["bytes"], line["exit"], line["outcome"]) == ("200", "6", "SIGKILL", "truncated")


def test_a_redirect_within_is_one_line(server, directory):
    misbehaviour.program(directory / "go", "#!/bin/sh\nprintf 'Location: /cgi-bin/fine\\n\\n'\n")
    line = asked(server, "/cgi-bin/go")
    assert (line["target"], line["status"]) == ("/cgi-bin/go", "200")


def test_bytes_are_those_of_the_body_that_was_sent(server, directory):
    misbehaviour.program(directory / "big", "#!/bin/sh\nprintf 'X: y\\n\\n'\nhead -c 1000000 /dev/zero\n")
    assert asked(server, "/cgi-bin/big")["bytes"] == "1000000"
    assert asked(server, "/cgi-bin/fine", method="HEAD")["bytes"] in {"-", "0"}


def test_nothing_that_is_sent_ends_a_line_or_a_field(server):
    raw = server.exchange(
        b'GET /cgi-bin/fine/%0a127.0.0.1?"x\\y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n'
        b'Referer: "quoted" \\ back\\slash\r\nUser-Agent: caf\xc3\xa9 \xff \x85 \xe2\x80\xa8 [31m\r\n\r\n'
    )
    if raw.startswith(b"HTTP/1.1 400"):  # a quote is no character of a target either
        raw = server.exchange(
            b"GET /cgi-bin/fine/%0a127.0.0.1?x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b'Referer: "quoted" \\ back\\slash\r\nUser-Agent: caf\xc3\xa9 \xff \x85 \xe2\x80\xa8 [31m\r\n\r\n'
        )
    ident = re.search(rb"(?i)x-request-id: (\S+)", raw)[1].decode()
    line = line_of(server, ident)
    assert line["referer"] == r"\"quoted\" \\ back\\slash"
    assert "\\xff" in line["agent"]
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line[0])


def test_control_characters_in_a_path_are_escaped_in_the_error_log(server, directory):
    misbehaviour.program(directory / "a\nb\x1b[31m", "#!/no/such/interpreter\n")
    answer = server.get("/cgi-bin/a%0Ab%1B[31m".replace("[", "%5B"))
    assert answer.status == 500
    server.wait_for_log(rf"error \[{answer.headers['x-request-id']}\] ")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", server.errors.text)
    assert not re.search(r"^b", server.errors.text, re.M)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_json(serve, directory, version):
    server = serve("--log-format", "json", cgi_dir=directory)
    raw = server.exchange(
        f"GET /cgi-bin/fine?a=b HTTP/{version}\r\nHost: x\r\nConnection: close\r\n".encode()
        + b'Referer: "q" \\\r\nUser-Agent: caf\xc3\xa9\xff\r\n\r\n'
    )
    ident = re.search(rb"(?i)x-request-id: (\S+)", raw)[1].decode()
    server.wait_for_access(rf'"{ident}".*\n')
    (record,) = [json.loads(line) for line in server.accesses.text.splitlines()]
    assert set(record) == {
        *("time", "client", "user", "method", "target", "protocol", "status", "bytes", "referer", "agent"),
        *("id", "duration", "pid", "cpu", "memory", "exit", "outcome"),
    }
    datetime.datetime.strptime(record["time"], "%Y-%m-%dT%H:%M:%S.%fZ")
    assert (record["client"], record["user"], record["method"]) == ("127.0.0.1", None, "GET")
    assert (record["target"], record["protocol"]) == ("/cgi-bin/fine?a=b", f"HTTP/{version}")
    assert (record["status"], record["referer"], record["id"]) == (200, '"q" \\', ident)
    assert record["agent"].startswith("caf\u00e9")
    assert record["pid"] == int(re.search(rb"\r\n\r\n(?:[0-9a-f]+\r\n)?(\d+)", raw)[1])
    assert record["bytes"] == len(str(record["pid"]))
    assert record["duration"] > 0
    assert record["memory"] is None or record["memory"] > 100_000
    assert (record["exit"], record["outcome"]) == ("0", "ok")


def test_json_of_what_ran_no_program(serve, directory):
    server = serve("--log-format", "json", cgi_dir=directory)
    server.get("/nothing")
    server.exchange(b"nonsense\r\n\r\n")
    server.wait_for_access(r'"status": 40[04][^\n]*\n[^\n]*"status": 40[04][^\n]*\n')
    for line in server.accesses.text.splitlines():
        record = json.loads(line)
        assert (record["pid"], record["cpu"], record["memory"], record["exit"]) == (None, None, None, None)
        assert record["outcome"] == "refused"


def test_a_path(serve, directory, tmp_path):
    path = tmp_path / "access.log"
    path.write_text("before\n")
    server = serve(access_log=str(path), cgi_dir=directory)
    ident = server.get("/cgi-bin/fine").headers["x-request-id"]
    misbehaviour.wait_for(lambda: ident in path.read_text())
    first, second = path.read_text().splitlines()
    assert first == "before"
    assert LINE.fullmatch(second)


def test_off(serve, directory, tmp_path):
    server = serve(access_log="off", cgi_dir=directory)
    assert server.get("/cgi-bin/fine").status == 200
    server.stop()
    assert "/cgi-bin/fine" not in server.accesses.text


def test_lines_of_several_workers_are_whole(serve, directory, tmp_path):
    path = tmp_path / "access.log"
    server = serve(access_log=str(path), workers=3, cgi_dir=directory)
    for _ in range(20):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(server.socket()) for _ in range(10)]
            for sock in socks:
                sock.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            for sock in socks:
                while sock.recv(65536):
                    pass
    misbehaviour.wait_for(lambda: path.read_text().count("\n") == 200)
    assert all(LINE.fullmatch(line) for line in path.read_text().splitlines())


def test_on_a_terminal_it_is_coloured(directory):
    """A person at a terminal sees columns and colours; started here directly, since it needs the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gateway", "--cgi-dir", str(directory), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=support.ROOT)
    os.close(theirs)
    try:
        seen = read_until(ours, r"listening on http://127\.0\.0\.1:(\d+)/[\s\S]*ready")
        port = int(re.search(r"127\.0\.0\.1:(\d+)/", seen)[1])
        with socket.create_connection(("127.0.0.1", port), support.PATIENCE) as sock:
            sock.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = misbehaviour.read_response(sock)
        ident = re.search(rb"(?i)x-request-id: (\S+)", answer)[1].decode()
        seen = read_until(ours, r"/cgi-bin/fine[^\n]*\n")
        line = next(line for line in seen.splitlines() if "/cgi-bin/fine" in line)
        assert "\x1b[32m200" in line
        assert ident in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(support.PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal, pattern):
    seen = ""
    while not re.search(pattern, seen):
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, seen
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen
