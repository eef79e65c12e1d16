"""HUP: what is changed, what stays, and that nobody's request is lost."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests import misbehaviour, support
from tests.reload_support import Load, Neighbours, clients_of, descriptors_at, request, serve, tcp_sockets, workers_of

__all__ = ["serve"]


def workers(served):
    """The pids of the front workers, once there are as many as said."""
    found: list[int] = []

    def trouble():
        found[:] = workers_of(served.master)
        return "" if len(found) == served.workers else str(found)

    support.wait_until(trouble)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    """The inodes of the sockets that listen on a port."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port:
            found.append(fields[9])
    return found


# What a reload changes, and what not.


def test_a_changed_setting_is_picked_up(serve):
    served = serve()
    before = workers(served)
    assert served.ask()[2] == "first"
    served.word = "second"
    served.reload()
    assert served.ask()[2] == "second"
    for pid in before:
        misbehaviour.wait_until_gone(pid)
    served.server.wait_for_log(rf"^gateway: reloaded, 1 worker, pid {served.server.pid}$")
    assert len(re.findall("listening on", served.errors.text)) == 1


def test_a_mistake_leaves_all_as_it_was_and_is_told(serve):
    served = serve()
    before = workers(served)
    served.file.write_text(served.file.read_text() + "\n[[routes]]\npath = '/x/'\ncgi = 'nowhere'\n")
    start = served.signal(signal.SIGHUP)
    told = served.errors.wait_for(r"error not reloaded, all stays as it was: (.*)$", start=start)[1]
    assert "nowhere" in told
    assert served.ask()[2] == "first"
    assert workers(served) == before
    served.word = "second"
    served.reload()
    assert served.ask()[2] == "second"


def test_a_file_that_is_no_toml_leaves_all_as_it_was(serve):
    served = serve()
    served.file.write_text("[server")
    start = served.signal(signal.SIGHUP)
    served.errors.wait_for("error not reloaded, all stays as it was: .*gateway.toml", start=start)
    assert served.ask()[2] == "first"


def test_an_address_that_is_in_use_leaves_all_as_it_was(serve):
    served = serve()
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        in_use = other.getsockname()[1]
        served.listen = ["127.0.0.1:0", f"127.0.0.1:{port}", f"127.0.0.1:{in_use}"]
        served.write()
        start = served.signal(signal.SIGHUP)
        served.errors.wait_for(rf"not reloaded, .*127\.0\.0\.1:{in_use}: port {in_use} is in use", start=start)
    assert not listening(port)
    assert served.ask()[2] == "first"


def test_a_pool_that_does_not_start_leaves_all_as_it_was(serve, tmp_path):
    served = serve(has_pool=True)
    pid = served.ask("/app/?x")[1]
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "status"))
        other.listen()
        served.pool = f'status_listen = "unix:{tmp_path}/status"'
        served.write()
        start = served.signal(signal.SIGHUP)
        served.errors.wait_for(r"not reloaded, all stays as it was: pools\.app\.status_listen = .* in use", start=start)
    assert served.ask("/app/?x")[1:] == [pid, "-"] or served.ask("/app/?x")[2] == "-"


def test_the_number_of_workers_changes(serve):
    served = serve()
    for served.workers in (3, 1):
        served.reload()
        assert served.ask()[2] == "first"
        misbehaviour.wait_for(lambda: len(workers_of(served.master)) == served.workers)
        misbehaviour.wait_for(lambda: len(support.children(served.master)) == 2 * served.workers)


def test_the_files_of_log_and_pid_change(serve, tmp_path):
    served = serve()
    old_file, served.pid_file = served.pid_file, tmp_path / "other.pid"
    served.more = f'error_log = "{tmp_path}/error.log"'
    served.write()
    os.kill(served.server.pid, signal.SIGHUP)
    log = tmp_path / "error.log"
    misbehaviour.wait_for(lambda: log.exists() and "gateway: reloaded" in log.read_text())
    assert served.pid_file.read_text() == f"{served.server.pid}\n"
    assert not old_file.exists()
    assert "reloaded" not in served.errors.text


# Listeners.


def test_a_listener_is_added_and_removed(serve, tmp_path):
    served = serve()
    port = free_port()
    served.listen = ["127.0.0.1:0", f"127.0.0.1:{port}", f"unix:{tmp_path}/socket"]
    served.reload()
    first, served.server.port = served.server.port, port
    assert served.ask()[2] == "first"
    served.server.port = first
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        client.sendall(request("/cgi-bin/echo?x", "Connection: close\r\n"))
        assert b"first" in support.receive_all(client)
    served.listen = ["127.0.0.1:0"]
    start = len(served.errors.text)
    served.reload()
    served.errors.wait_for(rf"no longer listening on http://127\.0\.0\.1:{port}/", start=start)
    misbehaviour.wait_for(lambda: not listening(port))
    assert not (tmp_path / "socket").exists()
    assert served.ask()[2] == "first"


def test_who_waits_in_the_queue_of_a_listener_that_stays_is_served_by_the_new_workers(serve):
    served = serve()
    (old,) = workers(served)
    os.kill(old, signal.SIGSTOP)
    try:
        with served.server.socket() as client:
            client.sendall(request("/cgi-bin/echo?x", "Connection: close\r\n"))
            served.word = "second"
            served.reload()
            assert b"second" in support.receive_all(client)
    finally:
        os.kill(old, signal.SIGCONT)
    misbehaviour.wait_until_gone(old)


def test_who_waits_in_the_queue_of_a_listener_that_goes_is_served_by_the_old_workers(serve):
    port = free_port()
    served = serve(listen=["127.0.0.1:0", f"127.0.0.1:{port}"])
    (old,) = workers(served)
    os.kill(old, signal.SIGSTOP)
    clients = [socket.create_connection(("127.0.0.1", port), support.PATIENCE) for _ in range(5)]
    try:
        for client in clients:
            client.sendall(request("/cgi-bin/echo?x"))
        served.listen, served.word = ["127.0.0.1:0"], "second"
        served.reload()
    finally:
        os.kill(old, signal.SIGCONT)
    for client in clients:
        got = support.receive_all(client)
        assert b"first" in got
        assert b"\r\nConnection: close\r\n" in got
        client.close()
    misbehaviour.wait_until_gone(old)
    assert not listening(port)


# Connections.


def test_what_is_under_way_is_answered_and_an_idle_connection_has_one_request_more(serve, gate):
    served = serve()
    (old,) = workers(served)
    with served.server.socket() as kept, served.server.socket() as silent:
        kept.sendall(request("/cgi-bin/echo?1"))
        assert b"first" in misbehaviour.read_response(kept)
        held, _ = served.hold()
        served.word = "second"
        served.reload()
        kept.sendall(request("/cgi-bin/echo?2"))
        got = support.receive_all(kept)
        assert b"first" in got
        assert b"\r\nConnection: close\r\n" in got
        # Who asks nothing is let go.
        assert support.receive_all(silent) == b""
        assert served.ask()[2] == "second"
        assert not misbehaviour.has_ended(old)
        gate.open()
        assert b"let go" in support.receive_all(held)
        held.close()
    misbehaviour.wait_until_gone(old)


def test_a_connection_that_was_promised_more_before_the_drain_has_one_request_more(serve, gate):
    """Its answer began before, and said nothing of an end."""
    served = serve()
    misbehaviour.program(
        served.directory / "cgi" / "slow",
        f"#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nbegun\\n'\nread line <{gate.path}\necho ended\n",
    )
    with served.server.socket() as client:
        client.sendall(request("/cgi-bin/slow"))
        assert b"begun\n" in misbehaviour.read_until(client, b"begun\n\r\n")
        served.reload()
        gate.open()
        misbehaviour.read_until(client, b"0\r\n\r\n")
        client.sendall(request("/cgi-bin/echo?x"))
        assert b"\r\nConnection: close\r\n" in support.receive_all(client)


def test_pipelined_requests_are_answered_and_the_last_one_says_so(serve, gate):
    served = serve()
    held, _ = served.hold()
    held.sendall(b"".join(request(f"/cgi-bin/echo?{number}") for number in range(3)))
    (old,) = workers(served)
    # They are in the worker, not on their way.
    misbehaviour.wait_for(lambda: all(queue == 0 for queue in receive_queues(served.server.port)))
    served.reload()
    gate.open()
    got = support.receive_all(held)
    held.close()
    assert len(re.findall(rb"HTTP/1\.1 200 OK", got)) == 4
    assert got.count(b"Connection: close") == 1
    assert re.search(rb"Connection: close\r\n[^\n]*\r\n\r\n2 ", got)
    misbehaviour.wait_until_gone(old)


def receive_queues(port):
    """How much each accepted connection of a port has that is not read."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and int(fields[1].split(":")[1], 16) == port:
            found.append(int(fields[4].split(":")[1], 16))
    return found


def test_the_drain_is_bounded(serve, gate):
    served = serve(more="stop_timeout = 1")
    held, pid = served.hold()
    (old,) = workers(served)
    served.reload()
    assert b"200" not in support.receive_all(held)
    held.close()
    misbehaviour.wait_until_gone(pid)
    misbehaviour.wait_until_gone(old)
    assert served.ask()[2] == "first"


# Pools.


def test_a_pool_that_is_not_changed_stays_and_one_that_is_is_replaced(serve):
    served = serve(has_pool=True)
    pids = {served.ask("/app/?x")[1] for _ in range(10)}
    served.word = "second"
    served.reload()
    assert {served.ask("/app/?x")[1] for _ in range(10)} <= pids | {served.ask("/app/?x")[1]}
    assert len(re.findall("pool app: 2 ×", served.errors.text)) == 1
    for served.pool in ('env = { WORD = "new" }', 'env = { WORD = "newer" }'):
        served.reload()
        assert served.ask("/app/?x")[2] == served.pool.split('"')[1]
    for pid in pids:
        misbehaviour.wait_until_gone(int(pid))
    assert len(re.findall("pool app: 2 ×", served.errors.text)) == 3
    # One manager is left.
    misbehaviour.wait_for(lambda: len(support.children(served.master)) == 3)


def test_a_pool_with_an_address_of_its_own_is_changed(serve):
    """Nobody is refused there, neither who comes through the front nor another web server, and the address stays."""
    served = serve(has_pool=True, pool="")
    path = served.sockets / "own"
    own = f'listen = "unix:{path}"\nlisten_mode = "0666"\nstatus_listen = "unix:{path}-status"\n'
    served.pool = own + 'env = { WORD = "first" }'
    served.reload()
    before = os.stat(path).st_ino
    load = Load(served.server.port)
    with Neighbours(str(path)) as others:
        for keep in (True, False):
            load.start("/app/", keep)
        for number in range(3):
            word = f"word{number}"
            served.pool = own + f'env = {{ WORD = "{word}" }}'
            served.reload()
            others.wait_for(word)
            misbehaviour.wait_for(lambda word=word: served.ask("/app/?x")[2] == word)
        load.end()
    assert not others.failures
    assert not load.failures
    assert os.stat(path).st_ino == before
    assert os.stat(path).st_mode & 0o777 == 0o666
    # One manager is left, with the worker and its spawner.
    misbehaviour.wait_for(lambda: len(support.children(served.master)) == 3)
    # What the socket is like may change, too; and it goes when nobody has it any more.
    served.pool = f'listen = "unix:{path}"\n'
    served.reload()
    assert os.stat(path).st_mode & 0o777 == 0o660
    misbehaviour.wait_for(lambda: not (served.sockets / "own-status").exists())
    served.pool = ""
    served.reload()
    misbehaviour.wait_for(lambda: not path.exists())
    assert served.ask("/app/?x")[2] == "-"


def test_a_change_that_comes_to_nothing_leaves_the_address(serve, tmp_path):
    served = serve(has_pool=True, pool="")
    own = f'listen = "unix:{served.sockets}/own"\n'
    served.pool = own
    served.reload()
    pid = served.ask("/app/?x")[1]
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "status"))
        other.listen()
        served.pool = own + f'status_listen = "unix:{tmp_path}/status"\n'
        served.write()
        start = served.signal(signal.SIGHUP)
        served.errors.wait_for(r"not reloaded, all stays as it was: pools\.app\.status_listen = .* in use", start=start)
    assert (served.sockets / "own").exists()
    assert served.ask("/app/?x")[2] == "-"
    assert not misbehaviour.has_ended(int(pid))


def test_a_manager_that_is_killed_gets_the_same_socket_again(serve):
    served = serve(has_pool=True, pool="")
    path = served.sockets / "own"
    served.pool = f'listen = "unix:{path}"\n'
    served.reload()
    misbehaviour.wait_for(lambda: len(support.children(served.master)) == 3)
    before = os.stat(path).st_ino
    (manager,) = [pid for pid in support.children(served.master) if "fcgi_pool" in support.command(pid)]
    with socket.socket(socket.AF_UNIX) as waiting:
        os.kill(manager, signal.SIGKILL)
        misbehaviour.wait_until_gone(manager)
        waiting.connect(str(path))
    assert served.ask("/app/?x")[2] == "-"
    assert os.stat(path).st_ino == before


@pytest.fixture
def made_anew(serve):
    """A site whose pool has made the file of its socket anew, since it was removed, and the file's path."""
    served = serve(has_pool=True, pool="")
    path = served.sockets / "own"
    served.pool = f'listen = "unix:{path}"\n'
    served.reload()
    os.unlink(path)
    served.errors.wait_for("own was removed: it is made anew")
    misbehaviour.wait_for(path.exists)
    return served, path


def test_a_pool_that_has_made_its_file_anew_is_changed(made_anew):
    served, path = made_anew
    own = served.pool
    for word in ("second", "third"):
        served.pool = own + f'env = {{ WORD = "{word}" }}'
        served.reload()
        misbehaviour.wait_for(lambda word=word: served.ask("/app/?x")[2] == word)
    # One manager is left, with the worker and its spawner.
    misbehaviour.wait_for(lambda: len(support.children(served.master)) == 3)
    served.pool = ""
    served.reload()
    misbehaviour.wait_for(lambda: not path.exists())


def test_a_manager_that_is_killed_when_it_has_made_its_file_anew(made_anew):
    """The socket that it was lent is reached no more: the next one is lent another."""
    served, _ = made_anew
    assert served.ask("/app/?x")[2] == "-"
    (manager,) = [pid for pid in support.children(served.master) if "fcgi_pool" in support.command(pid)]
    os.kill(manager, signal.SIGKILL)
    misbehaviour.wait_until_gone(manager)
    misbehaviour.wait_for(lambda: "fcgi_pool" in "".join(map(support.command, support.children(served.master))))
    misbehaviour.wait_for(lambda: served.ask("/app/?x")[2:] == ["-"])


def test_a_pool_is_added_and_removed(serve):
    served = serve()
    served.has_pool = True
    served.reload()
    pid = served.ask("/app/?x")[1]
    served.has_pool = False
    served.reload()
    assert served.server.get("/app/?x").status == 404
    misbehaviour.wait_until_gone(int(pid))


# Signals that come together.


def test_reloads_that_come_together_are_done_one_after_the_other(serve):
    served = serve()
    for number in range(10):
        served.word = f"word-{number}"
        served.write()
        os.kill(served.master, signal.SIGHUP)
    misbehaviour.wait_for(lambda: served.ask()[2] == "word-9")


def test_a_reload_waits_while_too_many_generations_drain(serve, gate):
    served = serve()
    held = []
    for served.word in ("second", "third"):
        held.append(served.hold())
        served.reload()
    served.word = "fourth"
    served.write()
    start = served.signal(signal.SIGHUP)
    served.errors.wait_for("the reload waits for the processes of an earlier one to end", start=start)
    assert served.ask()[2] == "third"
    # Both wait at the gate; whoever it is that passes, one generation goes.
    gate.open()
    served.errors.wait_for("gateway: reloaded", start=start)
    assert served.ask()[2] == "fourth"
    gate.open()
    for client, _ in held:
        assert b"let go" in support.receive_all(client)
        client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_in_the_middle_of_a_reload(serve, number):
    served = serve(has_pool=True)
    served.pool = 'env = { WORD = "new" }'
    served.write()
    os.kill(served.server.pid, signal.SIGHUP)
    os.kill(served.server.pid, number)
    assert served.server.process.wait(support.PATIENCE) == 0


def test_nothing_survives_the_kill_of_a_master_that_has_two_generations(serve):
    served = serve(has_pool=True)
    held, _ = served.hold()
    served.reload()
    processes = support.descendants(served.master)
    served.server.expected_status = -signal.SIGKILL
    served.server.may_leave_processes = True  # and its files
    os.kill(served.master, signal.SIGKILL)
    for pid in processes:
        misbehaviour.wait_until_gone(pid)
    held.close()
    served.pid_file.unlink()


def test_a_terminal_that_is_closed_ends_the_server(tmp_path):
    """HUP means that, too; without its terminal nobody would know of the server."""
    (tmp_path / "cgi").mkdir()
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(support.ROOT)
        options = ["--cgi-dir", str(tmp_path / "cgi"), "--listen", "127.0.0.1:0"]
        os.execv(sys.executable, [sys.executable, "-m", "gateway", *options])
    got = b""
    while b"ready" not in got:
        assert select.select([terminal], [], [], support.PATIENCE)[0], got
        got += os.read(terminal, 4096)
    descriptor = os.pidfd_open(pid)
    os.close(terminal)
    assert select.select([descriptor], [], [], support.PATIENCE)[0]
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not support.members(pid)


# Under load.


@pytest.mark.slow
def test_reloads_under_load_lose_nothing(serve):
    served = serve(has_pool=True, workers=2)
    load = Load(served.server.port)
    for path in ("/cgi-bin/echo", "/app/"):
        for keep in (True, False):
            load.start(path, keep)
    for number in range(20):
        served.word = f"word-{number}"
        # The pool is changed at times, too.
        served.pool = f'env = {{ WORD = "{number // 5}" }}'
        count = load.count
        served.reload()
        load.wait_for(count + 50)
    load.wait_for(3000)
    load.end()
    assert not load.failures
    misbehaviour.wait_for(lambda: len(support.children(served.master)) == 5)


def test_clients_are_told_apart(serve):
    """What the long form of this decides by: whose connection is whose."""
    served = serve()
    (worker,) = workers(served)
    with served.server.socket() as client:
        client.sendall(request("/cgi-bin/echo?x"))
        misbehaviour.read_response(client)
        assert client.getsockname()[1] in clients_of(worker)
        assert descriptors_at(worker)
        assert tcp_sockets()


def test_a_reload_reads_the_file_of_that_name_where_the_directory_was_replaced(tmp_path):
    release, spool = tmp_path / "release", tmp_path / "spool"
    spool.mkdir()
    for directory, word in ((release, "first"), (tmp_path / "next", "second")):
        directory.mkdir()
        (directory / "index.html").write_text(word)
        text = '[server]\nlisten = ["127.0.0.1:0"]\nworkers = 1\n[[routes]]\npath = "/"\nroot = "."\n'
        (directory / "gateway.toml").write_text(text)
    server = support.start_server(
        config=Path("gateway.toml"),
        temp_dir=spool,
        prefix=["sh", "-c", f'cd {release} && exec "$@"', "sh"],
        env={"PYTHONPATH": str(support.ROOT)},
    )
    try:
        assert server.get("/").text == "first"
        release.rename(tmp_path / "before")
        (tmp_path / "next").rename(release)
        start = len(server.errors.text)
        os.kill(server.pid, signal.SIGHUP)
        server.errors.wait_for(r"^gateway: reloaded|not reloaded", start=start)
        assert server.get("/").text == "second"
    finally:
        server.finish()
