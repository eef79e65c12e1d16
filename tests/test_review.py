"""Chains of events that once went wrong: each test is one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from tests.support import PATIENCE, Server, receive_all, script, state, wait_until

Serve = Callable[..., Server]


def test_a_client_that_asks_and_never_reads_does_not_fill_memory(serve: Serve, tmp_path: Path) -> None:
    """Requests without end, answers untaken: the server stops reading them, and serves others."""
    server = serve("--send-timeout", "2", cgi_dir=tmp_path)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((server.host, server.port))
        client.settimeout(PATIENCE)
        requests = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
        sent = 0
        try:
            while sent < 2**30:
                sent += client.send(requests)
        except (ConnectionResetError, BrokenPipeError):
            pass  # the send deadline
    assert sent < 64 * 2**20
    assert server.get("/").status == 200


def test_a_program_without_end_is_ended_though_its_response_is_complete(serve: Serve, tmp_path: Path) -> None:
    """After the header of a HEAD nothing more is wanted; the program has its timeout from then on, and no longer."""
    script(tmp_path / "p", "#!/bin/sh\nprintf 'X: y\\n\\n'\nwhile :; do echo more; read x < wait; done\n")
    os.mkfifo(tmp_path / "wait")
    server = serve("--script-timeout", "1", cgi_dir=tmp_path)
    assert server.get("/cgi-bin/p", method="HEAD").status == 200
    server.wait_for_log("still running 1 s after its response")


def test_killing_worker_and_spawner_together_leaves_no_program(serve: Serve, tmp_path: Path) -> None:
    """The master ends what a killed spawner has left, even if the worker cannot."""
    script(tmp_path / "p", "#!/bin/sh\necho here $$ >&2\nexec sleep 1000\n")
    server = serve(cgi_dir=tmp_path)
    with server.socket() as client:
        client.sendall(b"GET /cgi-bin/p HTTP/1.1\r\nHost: x\r\n\r\n")
        pid = int(server.wait_for_log(r"here (\d+)")[1])
        workers, spawners = server.workers(), server.spawners()
        # Stopped, the spawner cannot end the program, nor itself, when its worker is gone.
        for spawner in spawners:
            os.kill(spawner, signal.SIGSTOP)
        for other in workers + spawners:
            with contextlib.suppress(ProcessLookupError):  # nor does it stay stopped for long
                os.kill(other, signal.SIGKILL)
        wait_until(lambda: "" if state(pid) in ("", "Z") else "still there")
    server.note_baseline()


def test_a_stop_right_after_a_killed_worker_waits_for_its_programs(serve: Serve, tmp_path: Path) -> None:
    """A spawner whose worker died still has programs to end when the master stops."""
    script(tmp_path / "p", "#!/bin/sh\ntrap '' TERM\necho here $$ >&2\nwhile :; do sleep 1; done\n")
    server = serve("--kill-timeout", "1", cgi_dir=tmp_path)
    with server.socket() as client:
        client.sendall(b"GET /cgi-bin/p HTTP/1.1\r\nHost: x\r\n\r\n")
        pid = int(server.wait_for_log(r"here (\d+)")[1])
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_log("worker 1 .* died")
        assert server.stop() == 0
        assert state(pid) in ("", "Z")


def test_a_client_that_left_is_noticed_though_it_sent_too_much(serve: Serve, tmp_path: Path) -> None:
    """A full pipeline is not read on; that the client has gone is seen all the same."""
    script(tmp_path / "p", "#!/bin/sh\necho here $$ >&2\nexec sleep 1000\n")
    server = serve(cgi_dir=tmp_path)
    with server.socket() as client:
        client.sendall(b"GET /cgi-bin/p HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_log(r"here (\d+)")
        # More than is read ahead, and little enough for the kernel to hold, so that the end can reach us.
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3_200)
    server.wait_for_access(r"/cgi-bin/p .* 499 .*outcome=client-gone")


def test_the_tail_of_a_large_response_survives_bytes_after_the_request(serve: Serve, tmp_path: Path) -> None:
    """Unread input makes the close linger; the response is sent first, however slowly it is taken."""
    script(tmp_path / "p", "#!/bin/sh\nprintf 'X: y\\nContent-Length: 8000000\\n\\n'\nexec head -c 8000000 /dev/zero\n")
    server = serve(cgi_dir=tmp_path)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((server.host, server.port))
        client.sendall(b"GET /cgi-bin/p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n\r\n")
        # The program has ended, so all of its output waits for us.
        wait_until(lambda: "" if not (set(server.processes()) - set(server.workers() + server.spawners())) else "runs")
        assert receive_all(client).partition(b"\r\n\r\n")[2] == bytes(8_000_000)


def test_explanations_have_the_stderr_always(serve: Serve, tmp_path: Path) -> None:
    """However the end of the program and that of its pipes are told, its last words are in the log."""
    script(tmp_path / "p", "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'cgi'\" >&2\nexit 1\n")
    server = serve(cgi_dir=tmp_path)
    for _ in range(40):
        assert server.get("/cgi-bin/p").status == 502
    wait_until(lambda: "" if server.errors.text.count(" error [") == 40 else "not all logged")
    server.stop()
    lines = [line for line in server.errors.text.splitlines() if " error [" in line]
    assert all("pip install legacy-cgi" in line for line in lines)
