"""A real server for the tests: started as a user starts it, talked to as clients talk, watched for what it leaves."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# How long a test waits for an event that must come: a guard against hanging, never a measurement.
PATIENCE = 30.0
# Whether servers with a CGI directory run warm what they can: `pytest --warm`.
is_warm = False


def need(*programs: str) -> None:
    """Skip the test if a peer is not installed; fail it where GATEWAY_REQUIRE_PEERS is set."""
    absent = [program for program in programs if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")]
    if absent:
        missing(", ".join(absent))


def need_perl(module: str) -> None:
    """The same for a Perl module."""
    need("perl")
    if subprocess.run(["perl", f"-M{module}", "-e", "1"], capture_output=True, check=False).returncode:
        missing(f"the Perl module {module}")


def need_file(path: str) -> None:
    """The same for a file of a peer."""
    if not os.path.exists(path):
        missing(path)


def missing(what: str) -> None:
    """Skip the test for want of `what`; fail it where GATEWAY_REQUIRE_PEERS is set."""
    if os.environ.get("GATEWAY_REQUIRE_PEERS"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


def script(path: Path, text: str | bytes, mode: int = 0o755) -> Path:
    """Write a program and return its path."""
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(data)
    path.chmod(mode)
    return path


@dataclass
class Answer:
    """One response."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class Watched:
    """A log that is read as it grows: a pipe's lines, or a file's."""

    def __init__(self) -> None:
        self.text = ""
        self._grown = threading.Condition()

    def add(self, text: str) -> None:
        """Take more of it."""
        with self._grown:
            self.text += text
            self._grown.notify_all()

    def wait_for(self, pattern: str, timeout: float = PATIENCE, start: int = 0) -> re.Match[str]:
        """Return the first match of `pattern`, a multi-line regular expression, once it is there."""
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout
        with self._grown:
            while not (match := compiled.search(self.text, start)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{pattern!r} did not appear in:\n{self.text[start:]}")
                self._grown.wait(left)
            return match

    def follow(self, stream: io.TextIOBase) -> threading.Thread:
        """Read `stream` in a thread until its end."""

        def read() -> None:
            for line in stream:
                self.add(line)
            stream.close()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread


@dataclass
class Server:
    """A running ``python -m gateway``."""

    process: subprocess.Popen[str]
    errors: Watched
    accesses: Watched
    temp_dir: Path
    threads: list[threading.Thread] = field(default_factory=list)
    port: int = 0
    stopped: bool = False
    host: str = "127.0.0.1"
    # Tests that kill the server set these.
    may_leave_processes: bool = False
    expected_status: int | None = 0
    _baseline: dict[int, int] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The master's pid."""
        return self.process.pid

    def processes(self) -> list[int]:
        """Return the pids below the master, its children's children too."""
        return sorted(descendants(self.pid))

    def workers(self) -> list[int]:
        """Return the pids of the front workers: the master's children that hold a listening socket."""
        ours = _listening_inodes()
        return [pid for pid in children(self.pid) if _sockets(pid) & ours]

    def spawners(self) -> list[int]:
        """Return the pids of the spawners: the master's other children."""
        workers = self.workers()
        return [pid for pid in children(self.pid) if pid not in workers]

    def socket(self) -> socket.socket:
        """Return a connected socket."""
        client = socket.create_connection((self.host, self.port), PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def exchange(self, raw: bytes) -> bytes:
        """Send raw bytes and return everything until the server closes."""
        with self.socket() as client:
            client.sendall(raw)
            return receive_all(client)

    def get(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Ask once on a connection of its own and return the answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.headers, response.read())
        finally:
            connection.close()

    def wait_for_log(self, pattern: str, timeout: float = PATIENCE, start: int = 0) -> re.Match[str]:
        """Wait for a match in the error log."""
        return self.errors.wait_for(pattern, timeout, start)

    def wait_for_access(self, pattern: str, timeout: float = PATIENCE, start: int = 0) -> re.Match[str]:
        """Wait for a match in the access log."""
        return self.accesses.wait_for(pattern, timeout, start)

    def check_idle(self) -> None:
        """Wait until no program runs, no zombie is left and no worker holds more descriptors than at its start."""

        def idle() -> str:
            processes = children(self.pid)
            warm = {pid: warm_processes(pid) for pid in processes}
            left = set(self.processes()) - set(processes).union(*warm.values())
            if left:
                return f"processes left: {[(pid, command(pid)) for pid in left]}"
            if any(state(pid) == "Z" for pid in processes):
                return "zombies left"
            for pid, count in self._baseline.items():
                if pid in processes and descriptors(pid) > count + _held_for(warm[pid]):
                    return f"descriptors left in {pid}: {count} at first, now {descriptors(pid)}: {links(pid)}"
            left = list(self.temp_dir.iterdir())
            return f"temporary files left: {left}" if left else ""

        wait_until(idle)

    def note_baseline(self, workers: int = 1) -> None:
        """Wait until all workers are up and idle; count the descriptors of each, and of its spawner."""
        # Its set-up, and its spawner's, is done when a worker waits for connections.
        wait_until(lambda: "" if len(self.workers()) == workers and _settled(self) else "not up yet")
        self._baseline = {pid: descriptors(pid) for pid in children(self.pid)}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the server by a signal and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        for thread in self.threads:
            thread.join(PATIENCE)
        self.stopped = True
        return status

    def finish(self) -> None:
        """Check that nothing is left, stop, and check again."""
        session = self.pid
        if self.process.poll() is None and not self.stopped:
            self.check_idle()
        status = self.stop()
        if self.expected_status is not None:
            assert status == self.expected_status, f"exit status {status}:\n{self.errors.text}"
        if not self.may_leave_processes:
            wait_until(lambda: f"left: {found}" if (found := members(session)) else "")
        assert "Traceback" not in without_scripts(self.errors.text), self.errors.text
        assert "unexpected, please report" not in self.errors.text, self.errors.text


def warnings_in(text: str) -> list[str]:
    """Return the warnings of an error log, but for the one that tests which run as root have to live with."""
    return [line for line in text.splitlines() if " warning " in line and "it runs as root" not in line]


def without_scripts(text: str) -> str:
    """Return what of a log is the server's own, not a program's."""
    theirs = (" script ", " error [", " says: ")
    return "\n".join(line for line in text.splitlines() if not any(mark in line for mark in theirs))


def start_server(
    *options: str,
    cgi_dir: Path | str | None = None,
    config: Path | None = None,
    temp_dir: Path,
    env: Mapping[str, str] | None = None,
    listen: str = "127.0.0.1:0",
    workers: int = 1,
    access_log: str = "-",
    prefix: list[str] | None = None,
    wait: bool = True,
    user: int | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Server:
    """Start a server; see the fixture `serve`. `config`: a file that stands for all the options."""
    arguments = [*(prefix or []), sys.executable, "-m", "gateway"]
    if config:
        arguments += ["--config", str(config)]
    else:
        arguments += ["--workers", str(workers), "--temp-dir", str(temp_dir), "--access-log", access_log]
        arguments += ["--cgi-dir", str(cgi_dir)] if cgi_dir is not None else []
        arguments += ["--listen", listen] if listen else []
        if is_warm and "--cgi-dir" in (*arguments, *options) and "--warm" not in options:
            arguments += ["--warm"]
    arguments += options
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
        start_new_session=True,
        env={**os.environ, **(env or {})},
        user=user,
        pass_fds=pass_fds,
    )
    assert process.stdout
    assert process.stderr
    server = Server(process, Watched(), Watched(), temp_dir)
    server.threads = [server.errors.follow(process.stderr), server.accesses.follow(process.stdout)]  # type: ignore[arg-type]
    if wait:
        try:
            server.wait_for_log(r"^gateway: ready")
            match = re.search(r"listening on https?://.*:(\d+)/", server.errors.text)
            server.port = int(match[1]) if match else 0
            if match and "//[" in match[0]:
                server.host = "::1"
            server.note_baseline(workers)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return server


def _settled(server: Server) -> bool:
    """Whether every worker waits in its loop: two looks at its descriptors agree while it sleeps."""
    return all(_waits(pid) for pid in children(server.pid)) and all(_has_epoll_on(pid) for pid in server.workers())


def _waits(pid: int) -> bool:
    return state(pid) == "S"


def _has_epoll_on(pid: int) -> bool:
    """Whether the worker's event loop watches its listener."""
    listening = _listening_inodes() & _sockets(pid)
    numbers = {
        name for name in _names(f"/proc/{pid}/fd") if (inode := _inode(f"/proc/{pid}/fd/{name}")) and inode in listening
    }
    for name in _names(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines():
                if line.startswith("tfd:") and line.split()[1] in numbers:
                    return True
    return False


def receive_all(client: socket.socket) -> bytes:
    """Read until the peer closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def wait_until(trouble: object, timeout: float = PATIENCE) -> None:
    """Ask the callable `trouble` until it returns nothing; fail with what it returned last."""
    deadline = time.monotonic() + timeout
    pause = 0.002
    while found := trouble():  # type: ignore[operator]
        assert time.monotonic() < deadline, found
        # Looks at /proc, where nothing tells of a change; how long it takes decides nothing.
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _inode(path: str) -> str:
    try:
        target = os.readlink(path)
    except OSError:
        return ""
    return target[8:-1] if target.startswith("socket:[") else ""


def _sockets(pid: int) -> set[str]:
    return {inode for name in _names(f"/proc/{pid}/fd") if (inode := _inode(f"/proc/{pid}/fd/{name}"))}


def _listening_inodes() -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(fields[9])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "00010000":
            found.add(fields[6])
    return found


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rsplit(")", 1)[1].split()


def state(pid: int) -> str:
    """Return the letter of a process's state, '' for none."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def children(parent: int) -> list[int]:
    """Return the pids of the children of `parent`."""
    return sorted(pid for pid in _all_pids() if (fields := _stat(pid)) and int(fields[1]) == parent)


def descendants(parent: int) -> set[int]:
    """Return the pids of the children of `parent`, their children and so on."""
    parents = {pid: int(fields[1]) for pid in _all_pids() if (fields := _stat(pid))}
    found: set[int] = set()
    new = {parent}
    while new := {pid for pid, above in parents.items() if above in new}:
        found |= new
    return found


def command(pid: int) -> str:
    """Return a process's command line, '' for none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="backslashreplace").strip()
    except OSError:
        return ""


def warm_processes(spawner: int) -> set[int]:
    """Return the pids of a spawner's warm interpreters, of their trials and of the children that wait for a request.

    A child is one of its scripts as soon as it has that request's stdout and stderr; before, both are one pipe.
    """
    return {pid for pid in descendants(spawner) if "/cgi/warm/bootstrap." in command(pid) and _is_without_request(pid)}


def warm_interpreters(spawner: int) -> set[int]:
    """Return the pids of a spawner's warm interpreters: they hold the socket over which they are asked for children."""
    return {pid for pid in warm_processes(spawner) if pid in children(spawner) and _inode(f"/proc/{pid}/fd/4")}


def _is_without_request(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/1") == os.readlink(f"/proc/{pid}/fd/2")
    except OSError:
        return False


def _held_for(warm: set[int]) -> int:
    """Return how many descriptors a spawner holds for its warm processes: one each, and what an interpreter says."""
    return len(warm) + sum(bool(_inode(f"/proc/{pid}/fd/4")) for pid in warm)


def members(session: int) -> list[int]:
    """Return the pids of a session that are no zombies."""
    return [
        pid for pid in _all_pids() if (fields := _stat(pid)) and int(fields[3]) == session and fields[0] not in "ZX"
    ]


def descriptors(pid: int) -> int:
    """Return how many descriptors a process holds, but for those that event loops open once when first needed."""
    return sum(not link.startswith(("/dev/null", "anon_inode:")) for link in links(pid))


def resident(pid: int) -> int:
    """Return how many bytes of memory a process holds; raise OSError if it is gone."""
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match, f"process {pid} ends"
    return int(match[1]) * 1024


def links(pid: int) -> list[str]:
    """Return what a process's descriptors are."""
    found = []
    for name in _names(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found
