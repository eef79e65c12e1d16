"""The server's processes: signals, deaths, replacements, and that nothing survives."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket

import pytest

from tests import misbehaviour, support

FINE = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nfine\\n'\n"
WAITS = """#!/bin/sh
trap 'echo >asked-$$; exit 0' TERM
echo "running $$" >&2
exec 2>/dev/null
sleep 600
"""
DEAF = """#!/bin/sh
trap '' TERM
echo "running $$" >&2
sleep 600
sleep 600
"""
# Answers when it is let go.
GATED = """#!/bin/sh
echo "running $$" >&2
printf 'Content-Type: text/plain\\n\\nbegun\\n'
read line <{gate}
echo ended
"""


@pytest.fixture
def directory(tmp_path, gate):
    for name, text in [("fine", FINE), ("waits", WAITS), ("deaf", DEAF), ("gated", GATED.format(gate=gate.path))]:
        misbehaviour.program(tmp_path / "cgi" / name, text)
    return tmp_path / "cgi"


@pytest.fixture
def start(serve, directory):
    def start(*options, **more):
        return serve("--kill-timeout", "1", *options, cgi_dir=directory, **more)

    return start


def run(server, program):
    """Ask for a program that waits; the connection and the program's pid once it runs."""
    known = re.findall(rf"{program}\[\d+\]: running (\d+)", server.errors.text)
    sock = server.socket()
    sock.sendall(f"GET /cgi-bin/{program} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    pids: list[str] = []

    def runs():
        pids[:] = [
            pid for pid in re.findall(rf"{program}\[\d+\]: running (\d+)", server.errors.text) if pid not in known
        ]
        return pids

    misbehaviour.wait_for(runs)
    return sock, int(pids[0])


def wait_for_a_closed_door(server):
    """Wait until nobody new is let in: the server drains."""

    def is_closed():
        try:
            server.socket().close()
        except ConnectionRefusedError:
            return True
        return False

    misbehaviour.wait_for(is_closed)


def fine(server):
    answer = server.get("/cgi-bin/fine")
    assert (answer.status, answer.body) == (200, b"fine\n")


def all_gone(pids):
    for pid in pids:
        misbehaviour.wait_until_gone(pid)


# Who there is.


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_workers_as_said_each_with_a_spawner(start, workers):
    server = start(workers=workers)
    server.wait_for_log(rf"ready, {workers} workers?, pid {server.pid}\b")
    fine(server)
    # A worker and its spawner each; the master may keep a helper or two.
    assert 2 * workers <= len(server.processes()) <= 2 * workers + 2


def test_the_pid_file_is_the_masters_and_goes_with_it(start, tmp_path):
    path = tmp_path / "gateway.pid"
    server = start("--pid-file", str(path))
    assert path.read_text() == f"{server.pid}\n"
    server.stop()
    assert not path.exists()


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_stop_at_once_and_end_the_programs(start, directory, number):
    server = start(workers=2)
    waiting, pid = run(server, "waits")
    deaf, deaf_pid = run(server, "deaf")
    idle = server.socket()
    processes = server.processes()
    os.kill(server.pid, number)
    for sock in (waiting, deaf, idle):
        assert b"200" not in support.receive_all(sock)
        sock.close()
    assert server.process.wait(support.PATIENCE) == 0
    all_gone([pid, deaf_pid, *processes])
    # Asked first.
    assert (directory / f"asked-{pid}").exists()


def test_int_from_a_terminal_reaches_all_processes_at_once(start):
    # A terminal sends INT to the whole foreground group.
    server = start(workers=2)
    sock, pid = run(server, "waits")
    processes = server.processes()
    os.killpg(server.pid, signal.SIGINT)
    support.receive_all(sock)
    sock.close()
    assert server.process.wait(support.PATIENCE) == 0
    all_gone([pid, *processes])
    assert "Traceback" not in server.errors.text
    assert "KeyboardInterrupt" not in server.errors.text


def test_a_second_term_kills(start):
    server = start("--kill-timeout", "600")
    sock, pid = run(server, "deaf")
    processes = server.processes()
    os.kill(server.pid, signal.SIGTERM)
    assert support.receive_all(sock) == b""
    sock.close()
    # The program does not listen; the first TERM waits for it.
    assert not misbehaviour.has_ended(server.pid)
    assert not misbehaviour.has_ended(pid)
    os.kill(server.pid, signal.SIGTERM)
    server.process.wait(support.PATIENCE)
    all_gone([pid, *processes])


def test_quit_drains(start, gate):
    server = start("--stop-timeout", "600", workers=2)
    running = [run(server, "gated") for _ in range(3)]
    idle = server.socket()
    kept = server.socket()
    kept.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\n\r\n")
    got = b""
    while b"fine\n" not in got:
        got += kept.recv(65536)
    os.kill(server.pid, signal.SIGQUIT)
    # Connections without a request end now; nobody new is let in; who has begun is served to the end.
    assert support.receive_all(idle) == b""
    assert b"HTTP/1.1" not in support.receive_all(kept)
    wait_for_a_closed_door(server)
    for _ in running:
        gate.open()
    for sock, _ in running:
        got = support.receive_all(sock)
        assert got.startswith(b"HTTP/1.1 200 OK")
        assert b"ended" in got
        assert got.endswith(b"0\r\n\r\n")
        sock.close()
    idle.close()
    kept.close()
    assert server.process.wait(support.PATIENCE) == 0
    assert len(re.findall(r"/cgi-bin/gated .*outcome=ok", server.accesses.text)) == 3


def test_quit_lets_an_upload_end(start, directory):
    misbehaviour.program(directory / "echo", "#!/bin/sh\nprintf 'X: y\\n\\n'\nexec cat\n")
    server = start()
    with server.socket() as sock:
        sock.sendall(b"POST /cgi-bin/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            got += sock.recv(65536)
        assert b"100 Continue" in got
        os.kill(server.pid, signal.SIGQUIT)
        wait_for_a_closed_door(server)
        sock.sendall(b"0123456789")
        assert b"0123456789" in support.receive_all(sock)
    assert server.process.wait(support.PATIENCE) == 0


def test_quit_has_a_bound(start):
    server = start("--stop-timeout", "1")
    sock, pid = run(server, "waits")
    os.kill(server.pid, signal.SIGQUIT)
    assert b"200" not in support.receive_all(sock)
    sock.close()
    server.process.wait(support.PATIENCE)
    all_gone([pid])


def test_term_after_quit_stops_at_once(start):
    server = start("--stop-timeout", "600")
    sock, pid = run(server, "waits")
    os.kill(server.pid, signal.SIGQUIT)
    wait_for_a_closed_door(server)
    os.kill(server.pid, signal.SIGTERM)
    support.receive_all(sock)
    sock.close()
    assert server.process.wait(support.PATIENCE) == 0
    all_gone([pid])


def test_the_socket_file_goes_with_the_server_and_a_stale_one_is_replaced(start, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = start("--listen", f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /cgi-bin/fine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"fine\n" in support.receive_all(sock)
    server.stop()
    assert not path.exists()


# Dying.


def test_a_killed_worker_is_replaced_and_only_its_requests_are_lost(start, gate):
    server = start(workers=2)
    # Connections until both workers have one.
    held = {}
    socks = []
    for _ in range(200):
        sock, pid = run(server, "gated")
        socks.append(sock)
        # program -> spawner -> worker or master; the spawner's identity stands for its worker's.
        held.setdefault(misbehaviour.parent_of(pid), (sock, pid))
        if len(held) == 2:
            break
    assert len(held) == 2
    (doomed_spawner, (lost, lost_pid)), (_, (kept, _)) = held.items()
    before = server.workers()
    doomed = dict(zip(server.spawners(), server.workers(), strict=True))[doomed_spawner]
    os.kill(doomed, signal.SIGKILL)
    assert b"ended" not in support.receive_all(lost)
    # Its program is ended with it.
    misbehaviour.wait_until_gone(lost_pid)
    misbehaviour.wait_until_gone(doomed_spawner)
    server.wait_for_log(rf"\b{doomed}\b.*SIGKILL|SIGKILL.*\b{doomed}\b")
    misbehaviour.wait_for(lambda: len(server.workers()) == 2 and doomed not in server.workers())
    assert len(set(server.workers()) & set(before)) == 1
    for _ in range(20):
        fine(server)
    for _ in socks:
        # Those that are being ended may take a turn before they are.
        gate.open()
        gate.open()
    assert b"ended" in misbehaviour.read_until(kept, b"0\r\n\r\n")
    for sock in socks:
        sock.close()


def test_a_killed_spawner_is_replaced(start):
    server = start()
    sock, pid = run(server, "waits")
    spawner = misbehaviour.parent_of(pid)
    assert spawner in server.processes()
    os.kill(spawner, signal.SIGKILL)
    assert re.match(rb"HTTP/1\.1 50[023] ", sock.recv(65536))
    sock.close()
    misbehaviour.wait_until_gone(pid)
    for _ in range(10):
        fine(server)
    assert spawner not in server.processes()


def test_a_spawner_killed_in_mid_response_truncates(start, gate):
    server = start()
    sock, pid = run(server, "gated")
    got = b""
    while b"begun\n" not in got:
        got += sock.recv(65536)
    os.kill(misbehaviour.parent_of(pid), signal.SIGKILL)
    misbehaviour.wait_until_gone(pid)
    assert not (got + support.receive_all(sock)).endswith(b"0\r\n\r\n")
    sock.close()
    fine(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_meant_for_the_master_but_sent_to_all_leaves_the_server_whole(start, number):
    # `pkill -USR1 -f gateway` hits every process; only TERM and INT may end one, and then it is replaced.
    server = start()
    fine(server)
    for pid in server.processes():
        # A spawner may have followed its worker already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    misbehaviour.wait_for(lambda: is_fine(server))
    fine(server)
    assert "Traceback" not in server.errors.text


def is_fine(server):
    try:
        return server.get("/cgi-bin/fine").status == 200
    except OSError:
        return False


def test_a_crash_loop_is_slowed_and_never_given_up(start):
    server = start()
    killed = set()
    for _ in range(6):
        found = []

        def is_there(found=found):
            # The spawner, just forked, holds the listening socket for a moment, too.
            found[:] = set(server.workers()) - killed
            return len(found) == 1

        misbehaviour.wait_for(is_there)
        (worker,) = found
        killed.add(worker)
        os.kill(worker, signal.SIGKILL)
        misbehaviour.wait_until_gone(worker)
    misbehaviour.wait_for(lambda: is_fine(server))
    assert len(re.findall("SIGKILL", server.errors.text)) >= 6


@pytest.mark.parametrize("program", ["waits", "deaf", "gated"])
def test_nothing_survives_the_kill_of_the_master(start, program):
    server = start(workers=2)
    sock, pid = run(server, program)
    idle = server.socket()
    processes = server.processes()
    assert len(processes) >= 5
    server.expected_status = -signal.SIGKILL
    os.kill(server.pid, signal.SIGKILL)
    all_gone([*processes, pid])
    assert not support.receive_all(sock).endswith(b"0\r\n\r\n")
    sock.close()
    idle.close()
    assert server.process.wait(support.PATIENCE) == -signal.SIGKILL
    # The port is free for the next one.
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", server.port))
        sock.listen()


def test_nothing_survives_when_master_and_worker_are_killed(start):
    server = start()
    sock, pid = run(server, "deaf")
    processes = server.processes()
    server.expected_status = -signal.SIGKILL
    for victim in [server.pid, *server.workers()]:
        os.kill(victim, signal.SIGKILL)
    all_gone([*processes, pid])
    sock.close()


# Logs.


def test_usr1_reopens_both_logs_in_every_process(start, tmp_path, directory):
    misbehaviour.program(directory / "says", "#!/bin/sh\necho \"said $QUERY_STRING\" >&2\nprintf 'X: y\\n\\n'\n")
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    server = start("--error-log", str(error), workers=2, access_log=str(access), wait=False)
    misbehaviour.wait_for(lambda: error.exists() and "ready, 2 workers" in error.read_text())
    server.port = int(re.search(r"listening on http://127\.0\.0\.1:(\d+)/", error.read_text())[1])
    ask_everyone(server, "before")
    misbehaviour.wait_for(lambda: access.read_text().count("before") == 30)
    access.rename(tmp_path / "access.old")
    error.rename(tmp_path / "error.old")
    os.kill(server.pid, signal.SIGUSR1)
    # Every process has let go of the old files.
    misbehaviour.wait_for(lambda: not [pid for pid in [server.pid, *server.processes()] if holds(pid, ".old")])
    ask_everyone(server, "after")
    misbehaviour.wait_for(lambda: access.read_text().count("after") == 30)
    misbehaviour.wait_for(lambda: error.read_text().count("said after") == 30)
    old = (tmp_path / "access.old").read_text()
    assert old.count("before") == 30
    assert "after" not in old
    assert "before" not in access.read_text()
    assert (tmp_path / "error.old").read_text().count("said before") == 30


def ask_everyone(server, word):
    socks = [server.socket() for _ in range(30)]
    for sock in socks:
        sock.sendall(f"GET /cgi-bin/says?{word} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    for sock in socks:
        assert support.receive_all(sock).startswith(b"HTTP/1.1 200 ")
        sock.close()


def holds(pid, ending):
    try:
        return [entry for entry in os.scandir(f"/proc/{pid}/fd") if os.readlink(entry.path).endswith(ending)]
    except OSError:
        return []


def test_usr1_when_the_log_cannot_be_opened_keeps_the_old_one(start, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    access = folder / "access.log"
    server = start(access_log=str(access))
    fine(server)
    folder.rename(tmp_path / "moved")
    os.kill(server.pid, signal.SIGUSR1)
    server.wait_for_log(r"not reopened")
    fine(server)
    misbehaviour.wait_for(lambda: (tmp_path / "moved" / "access.log").read_text().count("/cgi-bin/fine") == 2)


def test_standard_descriptors_may_be_closed(start):
    # Started by something that gives none: a program's own must not be confused with them.
    server = start(prefix=["sh", "-c", 'exec "$@" <&-', "sh"])
    for body in (b"", b"x" * 100, b"x" * 1_000_000):
        answer = server.get("/cgi-bin/fine", method="POST", body=body)
        assert (answer.status, answer.body) == (200, b"fine\n")
