"""USR2: a new program takes over, or the old one goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests import misbehaviour, support
from tests.reload_support import Load, Neighbours, request, serve, workers_of
from tests.test_reload import free_port

__all__ = ["serve"]


@pytest.fixture
def code(tmp_path):
    """A directory that the program is found in, as `gateway`; and what starts a server from there."""
    directory = tmp_path / "code"
    directory.mkdir()
    (directory / "gateway").symlink_to(support.ROOT / "gateway")
    # Not from the directory that it is started in.
    return directory, {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(directory)}


def become(directory: Path, text: str) -> None:
    """Have another program there from now on."""
    (directory / "gateway").unlink()
    (directory / "gateway").mkdir()
    (directory / "gateway" / "__init__.py").write_text("")
    (directory / "gateway" / "__main__.py").write_text(text)


def test_the_new_program_takes_over(serve, gate, tmp_path):
    served = serve(listen=["127.0.0.1:0", f"unix:{tmp_path}/socket"], has_pool=True, workers=2)
    old = served.master
    assert served.ask("/app/?x")[2] == "-"
    with served.server.socket() as kept:
        kept.sendall(request("/cgi-bin/echo?1"))
        misbehaviour.read_response(kept)
        held, _ = served.hold()
        served.word = "second"
        served.write()
        start = served.signal(signal.SIGUSR2)
        new = int(served.errors.wait_for(r"upgrade: pid (\d+) serves", start=start)[1])
        assert served.master == new
        served.errors.wait_for(rf"^gateway: ready, 2 workers, pid {new}$")
        # Both serve: the old what it has, the new all else.
        kept.sendall(request("/cgi-bin/echo?2"))
        got = support.receive_all(kept)
        assert b"first" in got
        assert b"\r\nConnection: close\r\n" in got
        assert served.ask()[2] == "second"
        assert not misbehaviour.has_ended(old)
        gate.open()
        assert b"let go" in support.receive_all(held)
        held.close()
    assert served.server.process.wait(support.PATIENCE) == 0
    assert served.master == new
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        client.sendall(request("/app/?x", "Connection: close\r\n"))
        assert b" 200 OK" in support.receive_all(client)
    # And again, with a listener less.
    served.listen = served.listen[:1]
    served.write()
    served.upgrade()
    assert not (tmp_path / "socket").exists()
    assert served.ask()[2] == "second"
    # What the masters before had for their pools is away.
    assert len(list(served.sockets.iterdir())) == 1


def test_who_waits_in_the_queue_is_served_by_the_new_program(serve):
    served = serve()
    (worker,) = [pid for pid in support.children(served.master) if pid in workers_of(served.master)]
    os.kill(worker, signal.SIGSTOP)
    try:
        with served.server.socket() as client:
            client.sendall(request("/cgi-bin/echo?x", "Connection: close\r\n"))
            served.signal(signal.SIGUSR2)
            assert b" 200 OK" in support.receive_all(client)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert served.server.process.wait(support.PATIENCE) == 0


@pytest.mark.parametrize("text", ["raise SystemExit('broken')\n", "syntax error\n", "import nowhere\n"])
def test_new_code_that_is_broken_leaves_the_old_serving(serve, code, text):
    directory, environment = code
    served = serve(env=environment)
    old = served.master
    become(directory, text)
    start = served.signal(signal.SIGUSR2)
    served.errors.wait_for(
        r"error upgrade failed: the new program \(pid \d+\) ended before it was ready, exit status 1; this one goes on",
        start=start,
    )
    # The new program's, not ours.
    served.errors.text = served.errors.text.replace("Traceback", "")
    assert served.master == old
    assert served.ask()[2] == "first"
    # Its workers are those of before, and it takes a reload.
    served.word = "second"
    served.reload()
    assert served.ask()[2] == "second"


def test_an_interpreter_that_was_removed_leaves_the_old_serving(serve, tmp_path):
    interpreter = tmp_path / "python"
    interpreter.symlink_to(sys.executable)
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    served = serve(prefix=["sh", "-c", f"shift; exec {interpreter} \"$@\"", "sh"], env=environment)
    interpreter.unlink()
    start = served.signal(signal.SIGUSR2)
    served.errors.wait_for(f"upgrade failed: there is no {interpreter} any more; this program goes on", start=start)
    assert served.ask()[2] == "first"


def test_a_configuration_that_is_wrong_leaves_the_old_serving(serve, tmp_path):
    served = serve(listen=["127.0.0.1:0", f"unix:{tmp_path}/socket"])
    served.more = "nonsense = 1"
    served.write()
    start = served.signal(signal.SIGUSR2)
    served.errors.wait_for("upgrade failed: .* exit status 2", start=start)
    assert "nonsense" in served.errors.text
    assert (tmp_path / "socket").exists()
    assert served.ask()[2] == "first"


def test_a_new_program_whose_pool_does_not_start_leaves_the_old_serving(serve, tmp_path):
    served = serve(listen=["127.0.0.1:0", f"unix:{tmp_path}/socket"], has_pool=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "status"))
        other.listen()
        served.pool = f'status_listen = "unix:{tmp_path}/status"'
        served.write()
        start = served.signal(signal.SIGUSR2)
        served.errors.wait_for("upgrade failed: .* exit status 1", start=start)
    assert (tmp_path / "socket").exists()
    assert served.ask("/app/?x")[2] == "-"


def test_a_new_program_that_is_killed_leaves_the_old_serving_and_a_reload_follows(serve, code, tmp_path):
    directory, environment = code
    served = serve(env=environment)
    os.mkfifo(tmp_path / "stuck")
    become(directory, f"print(open({str(tmp_path / 'stuck')!r}).read())\n")
    start = served.signal(signal.SIGUSR2)
    new = int(served.errors.wait_for(r"the new program is started, pid (\d+)", start=start)[1])
    served.word = "second"
    served.write()
    os.kill(served.master, signal.SIGHUP)
    os.kill(new, signal.SIGKILL)
    served.errors.wait_for("upgrade failed: .* killed by SIGKILL; this one goes on", start=start)
    served.errors.wait_for("^gateway: reloaded", start=start)
    assert served.ask()[2] == "second"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_a_new_program_that_is_not_ready_ends_with_the_old(serve, code, tmp_path, number):
    directory, environment = code
    served = serve(env=environment)
    os.mkfifo(tmp_path / "stuck")
    become(directory, f"print(open({str(tmp_path / 'stuck')!r}).read())\n")
    start = served.signal(signal.SIGUSR2)
    new = int(served.errors.wait_for(r"the new program is started, pid (\d+)", start=start)[1])
    if number == signal.SIGKILL:
        served.server.expected_status = -signal.SIGKILL
        served.server.may_leave_processes = True  # and its files
    os.kill(served.master, number)
    misbehaviour.wait_until_gone(new)
    served.server.process.wait(support.PATIENCE)
    if number == signal.SIGKILL:
        served.pid_file.unlink()


def test_the_old_program_takes_no_more_orders_but_to_stop(serve, gate):
    served = serve()
    old = served.master
    held, pid = served.hold()
    start = served.signal(signal.SIGUSR2)
    served.errors.wait_for("upgrade: pid .* serves", start=start)
    for number, words in [(signal.SIGHUP, "no reload: the server stops"), (signal.SIGUSR2, "no upgrade")]:
        os.kill(old, number)
        served.errors.wait_for(words, start=start)
    os.kill(old, signal.SIGTERM)
    assert b"200" not in support.receive_all(held)
    held.close()
    misbehaviour.wait_until_gone(pid)
    assert served.server.process.wait(support.PATIENCE) == 0
    assert served.ask()[2] == "first"


def test_a_port_of_its_own_choice_is_kept(serve):
    """Port 0 is a free one; the new program has the same."""
    served = serve(listen=["127.0.0.1:0", f"127.0.0.1:{free_port()}"])
    served.upgrade()
    assert served.ask()[2] == "first"
    assert len(set(re.findall(r"listening on (\S+)", served.errors.text))) == 2


@pytest.mark.slow
def test_upgrades_under_load_lose_nothing(serve):
    served = serve(has_pool=True, workers=2)
    load = Load(served.server.port)
    for path in ("/cgi-bin/echo", "/app/"):
        for keep in (True, False):
            load.start(path, keep)
    for number in range(3):
        count = load.count
        served.word = f"word-{number}"
        served.write()
        served.upgrade()
        served.reload()
        load.wait_for(count + 300)
    load.end()
    assert not load.failures


def test_a_pool_with_an_address_of_its_own_stays_reachable(serve):
    served = serve(has_pool=True, pool="")
    path = served.sockets / "own"
    own = f'listen = "unix:{path}"\nstatus_listen = "unix:{path}-status"\n'
    served.pool = own + 'env = { WORD = "first" }'
    served.reload()
    before = os.stat(path).st_ino
    load = Load(served.server.port)
    with Neighbours(str(path)) as others:
        for keep in (True, False):
            load.start("/app/", keep)
        for word in ("second", "third"):
            served.pool = own + f'env = {{ WORD = "{word}" }}'
            served.write()
            served.upgrade()
            others.wait_for(word)
            assert served.ask("/app/?x")[2] == word
        load.end()
    assert not others.failures
    assert not load.failures
    assert os.stat(path).st_ino == before


def test_a_new_program_that_fails_leaves_the_address_of_a_pool(serve, tmp_path):
    served = serve(has_pool=True, pool="")
    path = served.sockets / "own"
    served.pool = own = f'listen = "unix:{path}"\n'
    served.reload()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "status"))
        other.listen()
        served.pool = own + f'status_listen = "unix:{tmp_path}/status"\n'
        served.write()
        start = served.signal(signal.SIGUSR2)
        served.errors.wait_for("upgrade failed: .* exit status 1", start=start)
    assert path.exists()
    assert served.ask("/app/?x")[2] == "-"
