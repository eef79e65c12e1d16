"""What goes wrong in the hour of trouble. Each fault is lifted only when it has been seen to bite."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.misbehaviour import highest_descriptor, vanish, wait_for
from tests.reload_support import clients_of
from tests.soak_site import LATE, USER, Clients, Site
from tests.support import receive_all, state

_FILES = ("file", "file, new connection", "blob")


@dataclass(frozen=True)
class Fault:
    """Something that `strike` does to a site and takes back; `allowed`: what a request of each kind may come to."""

    name: str
    strike: Callable[[Site, Clients], None]
    allowed: dict[str, set[int]] = field(default_factory=dict)


# -- what there is not enough of


def no_descriptors(site: Site, clients: Clients) -> None:
    """EMFILE in both front workers: they stop accepting for a moment, and go on."""
    start = len(site.server.errors.text)
    with _limited({pid: highest_descriptor(pid) + 1 for pid in site.workers()}, "nofile"), _crowd(site):
        site.server.wait_for_log("Too many open files", LATE, start)
        clients.wait_for(20, "file")


@contextlib.contextmanager
def _limited(limits: dict[int, int], which: str) -> Iterator[None]:
    """Lower a soft limit of running processes for a while, as the user that they run as may (prlimit(2))."""

    def prlimit(pid: int, *arguments: str) -> str:
        command = ["prlimit", f"--pid={pid}", *arguments]
        return subprocess.run(command, user=USER, group=USER, check=True, capture_output=True, text=True).stdout.strip()

    before = {pid: prlimit(pid, f"--{which}", "--raw", "--noheadings", "--output=SOFT") for pid in limits}
    try:
        for pid, soft in limits.items():
            prlimit(pid, f"--{which}={soft}:")
        yield
    finally:
        for pid, old in before.items():
            prlimit(pid, f"--{which}={old}:")


@contextlib.contextmanager
def _crowd(site: Site) -> Iterator[None]:
    """Clients that come and say nothing: each holds a descriptor of a worker."""
    crowd = [site.server.socket() for _ in range(40)]
    try:
        yield
    finally:
        for one in crowd:
            one.close()


@contextlib.contextmanager
def _filled(directory: Path) -> Iterator[None]:
    """A file system without any room for a while."""
    filler = directory / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, bytes(4096))
        yield
    finally:
        os.close(descriptor)
        filler.unlink()


def no_space(site: Site, clients: Clients) -> None:
    """ENOSPC where bodies are stored: they are refused, whatever else is asked for is served."""
    with _filled(site.spool):
        with site.server.socket() as client:
            client.sendall(b"POST /cgi-bin/echo?n=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
            with contextlib.suppress(OSError):
                client.sendall(bytes(3_000_000))
            answer = receive_all(client)
            assert answer.startswith(b"HTTP/1.1 507 "), answer[:200]
        clients.wait_for(20, *_FILES)
        clients.wait_for(5, "cgi")
        clients.wait_for(5, "app")


def no_space_for_logs(site: Site, clients: Clients) -> None:
    """ENOSPC where the access log is: a log never stops the server."""
    with _filled(site.logs):
        clients.wait_for_all(2)
    # For the next time.
    os.truncate(site.logs / "access", 0)
    clients.wait_for(1, "file")
    wait_for(lambda: (site.logs / "access").stat().st_size, "the access log did not go on")


def no_processes(site: Site, clients: Clients) -> None:
    """EAGAIN for every new process of the programs' user: 503 until there are some again."""
    with _limited(dict.fromkeys(site.spawners(), 1), "nproc"):
        clients.wait_for_status(503)
        clients.wait_for(20, *_FILES)
        clients.wait_for(20, "app")


# -- what is killed


def _kill(pids: list[int]) -> None:
    victim = random.choice(pids)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: state(victim) in ("", "Z"), f"{victim} lives")


def front_worker_killed(site: Site, clients: Clients) -> None:
    """Its requests are lost, it comes back."""
    start = len(site.server.errors.text)
    _kill(site.workers())
    site.server.wait_for_log(r"worker \d+ \(pid \d+\) died: killed by SIGKILL", start=start)
    wait_for(lambda: len(site.workers()) == 2, "no worker came")


def spawner_killed(site: Site, clients: Clients) -> None:
    """Its programs are ended, and told so."""
    start = len(site.server.errors.text)
    _kill(site.spawners())
    site.server.wait_for_log(r"spawner \d+ \(pid \d+\) died: killed by SIGKILL", start=start)


def pool_worker_killed(site: Site, clients: Clients) -> None:
    """It loses what it was at."""
    before = site.pool_workers()
    _kill(before)
    wait_for(lambda: len(site.pool_workers()) == 3 and site.pool_workers() != before, "no worker came")


def manager_killed(site: Site, clients: Clients) -> None:
    """The whole pool goes, and comes back."""
    before = site.manager
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: site.manager not in (0, before), "no manager came")


def program_killed(site: Site, clients: Clients) -> None:
    """A CGI program that is killed is a 502, and nobody else's business."""
    with site.server.socket() as client:
        os.kill(_hanging(site, client), signal.SIGKILL)
        assert receive_all(client).startswith(b"HTTP/1.1 502 ")


# -- what is stopped


def _hanging(site: Site, client: socket.socket) -> int:
    """Ask for the program that hangs; return its pid once it does."""
    start = len(site.server.errors.text)
    client.sendall(f"GET /cgi-bin/hang?{site.fifo} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return int(site.server.wait_for_log(r"hangs in (\d+)", LATE, start)[1])


def program_stopped(site: Site, clients: Clients) -> None:
    """A CGI program that is stopped is a 504, and is ended."""
    with site.server.socket() as client:
        pid = _hanging(site, client)
        os.kill(pid, signal.SIGSTOP)
        assert receive_all(client).startswith(b"HTTP/1.1 504 ")
        wait_for(lambda: state(pid) == "", f"{pid} is left")


def pool_worker_stopped(site: Site, clients: Clients) -> None:
    """The manager ends it at the pool's own deadline, if it had a request; the others go on."""
    victim = random.choice(site.pool_workers())
    descriptor = os.pidfd_open(victim)
    os.kill(victim, signal.SIGSTOP)
    try:
        clients.wait_for(100, "app")
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        os.close(descriptor)


def front_worker_stopped(site: Site, clients: Clients) -> None:
    """Who comes is served by the other; who was there waits until it goes on."""
    victim = random.choice(site.workers())
    os.kill(victim, signal.SIGSTOP)
    try:
        for _ in range(50):
            assert site.server.get("/small").status == 200
    finally:
        os.kill(victim, signal.SIGCONT)


def spawner_stopped(site: Site, clients: Clients) -> None:
    """It is as one that was killed."""
    start = len(site.server.errors.text)
    os.kill(random.choice(site.spawners()), signal.SIGSTOP)
    site.server.wait_for_log(r"spawner \d+ \(pid \d+\) was stopped by a signal; it is killed", start=start)


# -- what is taken away, and what is wrong


def socket_removed(site: Site, clients: Clients) -> None:
    """The file of the pool's socket is deleted, by a cleaner of temporary files say."""
    (path,) = [path for path in site.sockets.rglob("*") if path.is_socket() and "app" in path.name]
    path.unlink()
    wait_for(path.is_socket, "the socket did not come back")


def bad_configuration(site: Site, clients: Clients) -> None:
    """A reload of a file with a mistake changes nothing; of one without, loses nothing."""
    start = len(site.server.errors.text)
    site.write("lissten = 1")
    os.kill(site.server.pid, signal.SIGHUP)
    site.server.wait_for_log("not reloaded", start=start)
    site.write()
    os.kill(site.server.pid, signal.SIGHUP)
    site.server.wait_for_log("^gateway: reloaded", LATE, start)
    wait_for(site.is_whole, "the old generation is still there")


# -- clients


def clients_that_stall(site: Site, clients: Clients) -> None:
    """In the head, in the body, and in the answer: each is left at its deadline, and nobody waits for them."""
    head = b"GET /small HTTP/1.1\r\nHo"
    post = b"POST /cgi-bin/echo?n=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    stalled = []
    for _ in range(15):
        for start in (head, post + b"x", b"GET /blob HTTP/1.1\r\nHost: x\r\n\r\n" * 20):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(LATE)
            client.connect(("127.0.0.1", site.server.port))
            client.sendall(start)
            stalled.append((client, start))
    clients.wait_for_all()
    ports = {client.getsockname()[1] for client, _ in stalled}
    wait_for(lambda: not ports.intersection(*map(clients_of, site.workers())), "some are not left")
    for client, start in stalled:
        # Who does not read is not told.
        if not start.startswith(b"GET /blob"):
            assert receive_all(client).startswith(b"HTTP/1.1 408 ")
        client.close()


def clients_that_vanish(site: Site, clients: Clients) -> None:
    """With a reset, while their program runs: it is ended."""
    pids = []
    for _ in range(5):
        client = site.server.socket()
        pids.append(_hanging(site, client))
        vanish(client)
    wait_for(lambda: not any(state(pid) for pid in pids), f"some are left of {pids}")


CUT = {0}
FAULTS = (
    Fault("no descriptors", no_descriptors, {"all": {503}}),
    Fault("no space for bodies", no_space, {"cgi": {507, 0}, "app": {507, 0}}),
    Fault("no space for the log", no_space_for_logs),
    Fault("no processes", no_processes, {"cgi": {503}}),
    Fault("front worker killed", front_worker_killed, {"all": CUT}),
    Fault("spawner killed", spawner_killed, {"cgi": {502, 503, 0}}),
    Fault("pool worker killed", pool_worker_killed, {"app": {502}}),
    Fault("manager killed", manager_killed, {"app": {502, 503}}),
    Fault("program killed", program_killed),
    Fault("program stopped", program_stopped),
    Fault("pool worker stopped", pool_worker_stopped, {"app": {502, 504}}),
    Fault("front worker stopped", front_worker_stopped),
    Fault("spawner stopped", spawner_stopped, {"cgi": {502, 503, 0}}),
    Fault("socket removed", socket_removed, {"app": {502, 503}}),
    Fault("bad configuration", bad_configuration),
    Fault("clients that stall", clients_that_stall),
    Fault("clients that vanish", clients_that_vanish),
)
