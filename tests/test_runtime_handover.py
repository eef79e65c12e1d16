"""Connections that workers hand over to each other, so that no request waits for another while a worker is free.

Real workers on one socket, with one line, as a manager starts them. A request is held at a FIFO of its own, and each
answer is the pid of its worker.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_pool.handover import Handover, Line
from fcgi_pool.protocol import encode_params, encode_request
from tests.fcgi_peer import Application, Peer, directory_of_applications, served
from tests.pool_support import connect, read_reply, running_pool, send_request, variables
from tests.support import PATIENCE, descriptors, state, wait_until


class Held:
    """A request that a worker is at until it is released."""

    def __init__(self, app: Application, peer: Peer, name: str, method: str = "GET", body: bytes = b"") -> None:
        self.gate = app.directory / name
        os.mkfifo(self.gate)
        self.peer = peer
        self._writer = -1
        peer.send(method, body, QUERY_STRING=name)

    def wait(self) -> Held:
        """Wait until a worker is at it."""

        def trouble() -> str:
            try:
                self._writer = os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return f"nobody is at {self.gate}"
            return ""

        wait_until(trouble)
        return self

    def release(self) -> int:
        """Let it end; return the pid of its worker."""
        os.close(self._writer)
        return int(self.peer.receive().body)


class Workers:
    """Workers of one pool, with one line."""

    def __init__(self, app: Application, line: Line) -> None:
        self.app = app
        self.line = line

    def start(self, limit: int = 0, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker; `limit`: of its descriptors."""
        return self.app.start(
            "apps:named",
            environment={"FCGI_POOL_HANDOVER": self.line.environment, **environment},
            descriptors=self.line.filenos(),
            prefix=("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh") if limit else (),
        )

    def kept(self, count: int) -> list[Peer]:
        """Return so many connections on which something has been asked."""
        peers = [self.app.connect() for _ in range(count)]
        for peer in peers:
            ask(peer)
        return peers


def ask(peer: Peer, method: str = "GET") -> int:
    """Ask, and return the pid of the worker that answered."""
    return int(peer.ask(method, QUERY_STRING="").body)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Give the workers' socket, directory and line."""
    line = Line()
    try:
        with served(directory_of_applications(tmp_path)) as app:
            yield Workers(app, line)
    finally:
        line.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_does_not_wait_for_one_in_the_same_worker(workers: Workers, method: str) -> None:
    """Another takes the connection, also if it was not there when the first request began; nothing is closed."""
    first = workers.start()
    one, other, silent = *workers.kept(2), workers.app.connect()
    assert ask(one) == first.pid
    held = Held(workers.app, one, "one").wait()
    other.send(method, QUERY_STRING="")
    second = workers.start()
    assert int(other.receive().body) == second.pid
    assert ask(silent, method) == second.pid
    assert ask(other, method) == second.pid
    assert held.release() == first.pid
    assert ask(one) in (first.pid, second.pid)


@pytest.mark.parametrize("count", [2, 4])
def test_requests_that_come_together_are_served_at_once(workers: Workers, count: int) -> None:
    """All to one worker, which keeps their connections; as many workers are free."""
    first = workers.start()
    peers = workers.kept(count)
    # So that it finds them all when it looks.
    first.send_signal(signal.SIGSTOP)
    wait_until(lambda: "" if state(first.pid) == "T" else "it runs")
    all_held = [Held(workers.app, peer, f"gate{number}", "POST", b"x") for number, peer in enumerate(peers)]
    for _ in range(count - 1):
        workers.start()
    first.send_signal(signal.SIGCONT)
    for held in all_held:
        held.wait()
    assert len({held.release() for held in all_held}) == count


def test_a_worker_alone_takes_back_what_nobody_has_taken(workers: Workers) -> None:
    """More connections than workers, more than once round."""
    workers.start()
    peers = workers.kept(5)
    for _ in range(3):
        for peer in peers:
            peer.send("POST", QUERY_STRING="")
        for peer in peers:
            peer.receive()


def test_who_ends_takes_along_what_stands_in_the_line(workers: Workers) -> None:
    """It answers what has come, and closes."""
    worker = workers.start()
    one, other, idle = workers.kept(3)
    held = Held(workers.app, one, "one").wait()
    other.send("POST", QUERY_STRING="")
    worker.send_signal(signal.SIGTERM)
    assert held.release() == worker.pid
    assert int(other.receive().body) == worker.pid
    assert worker.wait(PATIENCE) == 0
    assert all(peer.is_closed() for peer in (one, other, idle))


def test_the_last_request_of_a_worker_holds_up_nobody(workers: Workers) -> None:
    """Who ends after so many requests leaves its connections to the one that follows."""
    first = workers.start(FCGI_POOL_MAX_REQUESTS="3")
    one, other = workers.kept(2)
    held = Held(workers.app, one, "one").wait()
    second = workers.start()
    assert ask(other, "POST") == second.pid
    assert held.release() == first.pid
    assert first.wait(PATIENCE) == 0


def test_a_request_of_which_a_part_was_read_stays(workers: Workers) -> None:
    """Whoever has its beginning serves it."""
    worker = workers.start()
    (one,) = workers.kept(1)
    half = workers.app.connect()
    request = encode_request(encode_params([(b"QUERY_STRING", b"")]), keep=True, ends=True)
    half.socket.sendall(request[:11])
    # Between two requests of the other, at the latest, it is looked at.
    assert ask(one) == ask(one) == worker.pid
    half.socket.sendall(request[11:])
    assert int(half.receive().body) == worker.pid


def test_a_request_of_which_a_part_was_read_is_served_before_the_end(workers: Workers) -> None:
    """A worker that is to end waits for the rest."""
    worker = workers.start()
    (one,) = workers.kept(1)
    half = workers.app.connect()
    request = encode_request(encode_params([(b"QUERY_STRING", b"")]), keep=True, ends=True)
    half.socket.sendall(request[:20])
    ask(one)
    held = Held(workers.app, one, "one").wait()
    worker.send_signal(signal.SIGTERM)
    half.socket.sendall(request[20:30])
    held.release()
    half.socket.sendall(request[30:])
    assert int(half.receive().body) == worker.pid
    assert one.is_closed()
    assert worker.wait(PATIENCE) == 0


def test_there_is_always_a_descriptor_for_who_is_taken(workers: Workers) -> None:
    """Workers with few of them close idle connections, but no request is lost."""
    for _ in range(2):
        workers.start(limit=24)
    both = [Held(workers.app, workers.app.connect(), f"gate{number}").wait() for number in range(2)]
    pids = {held.release() for held in both}
    for number in range(100):
        assert ask(workers.app.connect(), "POST" if number % 2 else "GET") in pids


def test_a_line_that_is_full_takes_no_more() -> None:
    """And what stands in it stays in order, open, and known to be used or not."""
    line = Line()
    worker = Handover.from_environment("{}:{}".format(*map(os.dup, line.filenos())))
    ours, others = socket.socketpair()
    before = descriptors(os.getpid())
    try:
        given = 0
        while worker.give(others.fileno(), given % 2 == 0):
            given += 1
        assert given > 100
        for number in range(given):
            taken = worker.maybe_take()
            assert taken
            connected, is_fresh = taken
            with connected:
                assert is_fresh == (number % 2 == 0)
                ours.sendall(b"x")
                assert connected.recv(2) == b"x"
        assert worker.maybe_take() is None
    finally:
        worker.close()
        line.close()
        ours.close()
        others.close()
    assert descriptors(os.getpid()) < before


def test_a_manager_gives_its_workers_a_line(workers: Workers) -> None:
    """Of two workers each serves whatever comes while the other is busy."""
    app = workers.app
    os.mkfifo(app.directory / "one")
    with running_pool("--children", "2", "--chdir", str(app.directory), "--app", "apps:named") as pool:
        pool.wait_for_workers(2)
        clients = [connect(pool.socket) for _ in range(6)]
        for client in clients:
            send_request(client, variables(), keep=True)
            read_reply(client)
        for held in clients:
            send_request(held, variables(uri="/?one"), keep=True)
            writer = os.open(app.directory / "one", os.O_WRONLY)
            others = [client for client in clients if client is not held]
            for client in others:
                send_request(client, variables(method="POST"), keep=True)
            answers = {read_reply(client).body for client in others}
            os.close(writer)
            assert len(answers) == 1
            assert read_reply(held).body not in answers
        for client in clients:
            client.close()


def test_who_stands_in_the_line_is_reason_to_start_a_worker(workers: Workers) -> None:
    """Where all are busy, as for a connection that nobody has accepted."""
    app = workers.app
    os.mkfifo(app.directory / "one")
    more = ("--pm", "ondemand", "--children", "2", "--set", "max_spawn_rate=1")
    one, other = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with running_pool(*more, "--chdir", str(app.directory), "--app", "apps:named") as pool, one, other:
        for client in (one, other):
            client.settimeout(PATIENCE)
            client.connect(pool.socket)
            send_request(client, variables(), keep=True)
            read_reply(client)
        send_request(one, variables(uri="/?one"), keep=True)
        writer = os.open(app.directory / "one", os.O_WRONLY)
        send_request(other, variables(method="POST"), keep=True)
        answer = read_reply(other)
        os.close(writer)
        assert answer.end
        assert read_reply(one).body != answer.body
