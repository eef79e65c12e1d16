"""The manager of pools, with real programs: php-cgi, C with libfcgi, Perl with FCGI.pm, our own runtime, and worse."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_pool.protocol import ProtocolStatus
from tests.pool_support import RunningPool, ask, connect, read_reply, running_pool, send_request, variables
from tests.support import PATIENCE, ROOT, children, descriptors, links, need, state, wait_until

# Answers its pid. The query makes it wait for a FIFO, crash, grow, or speak on standard error.
C_PROGRAM = r"""
#include <fcgi_stdio.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    while (FCGI_Accept() >= 0) {
        char *query = getenv("QUERY_STRING");
        if (query && !strncmp(query, "wait=", 5)) {
            char byte;
            int fifo = open(query + 5, O_RDONLY);
            while (fifo >= 0 && read(fifo, &byte, 1) > 0) {}
            close(fifo);
        }
        if (query && !strcmp(query, "crash")) raise(SIGSEGV);
        if (query && !strcmp(query, "grow")) { char *room = malloc(64 << 20); memset(room, 1, 64 << 20); }
        if (query && !strcmp(query, "say")) { (void)!write(2, "a line\nanother\n", 15); }
        FCGI_printf("Content-Type: text/plain\r\n\r\n%d", (int)getpid());
    }
    return 0;
}
"""
PERL_PROGRAM = """
use FCGI;
my $request = FCGI::Request();
while ($request->Accept() >= 0) {
    if (($ENV{QUERY_STRING} // '') =~ /^wait=(.*)/) { open(my $fifo, '<', $1); my @all = <$fifo>; }
    print "Content-Type: text/plain\\r\\n\\r\\n$$";
}
"""
PHP_PAGE = """<?php
header('Content-Type: text/plain');
if (isset($_GET['wait'])) file_get_contents($_GET['wait']);
echo getmypid();
"""
WSGI_MODULE = """
import os
def application(environ, start_response):
    query = environ.get('QUERY_STRING', '')
    if query.startswith('wait='):
        with open(query[5:]) as fifo:
            fifo.read()
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [str(os.getpid()).encode()]
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one program of each kind."""
    need("gcc", "php-cgi", "perl")
    directory = tmp_path_factory.mktemp("programs")
    directory.chmod(0o755)
    (directory / "answer.c").write_text(C_PROGRAM)
    subprocess.run(["gcc", "-w", "-o", "answer", "answer.c", "-lfcgi"], cwd=directory, check=True)
    (directory / "answer.pl").write_text(PERL_PROGRAM)
    (directory / "answer.php").write_text(PHP_PAGE)
    (directory / "answer_wsgi.py").write_text(WSGI_MODULE)
    return directory


def options(programs: Path, kind: str) -> list[str]:
    """Return the end of a command line that runs a program of that kind."""
    return {
        "c": ["--", str(programs / "answer")],
        "perl": ["--", "perl", str(programs / "answer.pl")],
        "php": ["--", "php-cgi"],
        "wsgi": ["--chdir", str(programs), "--app", "answer_wsgi:application"],
    }[kind]


def worker_of(pool: RunningPool, programs: Path, query: str = "") -> int:
    """Ask and return the pid of the worker that answered."""
    reply = pool.ask(variables(str(programs / "answer.php"), f"/?{query}" if query else "/"))
    assert reply.end, f"no answer: {pool.log.text}"
    return int(reply.body)


class Held:
    """A request that a worker is at until it is released."""

    def __init__(self, pool: RunningPool, programs: Path, number: int = 0) -> None:
        self.fifo = pool.directory / f"fifo{number}"
        os.mkfifo(self.fifo)
        self.writer = -1
        self.client = connect(pool.socket)
        send_request(self.client, variables(str(programs / "answer.php"), f"/?wait={self.fifo}"))

    def wait(self) -> None:
        """Wait until a worker is at it."""
        self.writer = os.open(self.fifo, os.O_WRONLY)

    def release(self) -> int:
        """Let it end; return the pid of its worker."""
        if self.writer < 0:
            self.wait()
        os.close(self.writer)
        reply = read_reply(self.client)
        self.client.close()
        assert reply.end
        return int(reply.body)


KINDS = ("c", "perl", "php", "wsgi")


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_is_served_and_replaced(programs: Path, kind: str) -> None:
    """Every kind of program answers, and one that is killed is replaced at once."""
    with running_pool("--children", "2", *options(programs, kind)) as pool:
        before = pool.wait_for_workers(2)
        victim = worker_of(pool, programs)
        assert victim in before
        os.kill(victim, signal.SIGKILL)
        pool.wait_for(f"worker {victim} was killed by SIGKILL")
        pool.wait_for_workers(2)
        assert worker_of(pool, programs) != victim


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_on_signals(programs: Path, kind: str, number: int) -> None:
    """QUIT, TERM and INT end the manager with status 0 and leave nothing."""
    with running_pool("--children", "2", *options(programs, kind)) as pool:
        worker_of(pool, programs)
        assert pool.stop(number) == 0
        assert not os.path.exists(pool.socket)


@pytest.mark.parametrize("kind", KINDS)
def test_quit_finishes_what_runs_and_who_waits(programs: Path, kind: str) -> None:
    """A request that runs and one that waits for its worker are both answered after QUIT."""
    with running_pool("--children", "1", *options(programs, kind)) as pool:
        held = Held(pool, programs)
        waiting = connect(pool.socket)
        send_request(waiting, variables(str(programs / "answer.php")))
        pool.process.send_signal(signal.SIGQUIT)
        pool.wait_for("SIGQUIT: finishing")
        wait_until(lambda: "still there" if os.path.exists(pool.socket) else "")
        held.release()
        assert read_reply(waiting).end
        waiting.close()
        assert pool.process.wait(PATIENCE) == 0


def test_who_ignores_all_is_killed(tmp_path: Path) -> None:
    """A program that takes neither QUIT nor TERM is killed by the second TERM."""
    script = "trap '' TERM USR1; while :; do read line <&2; done"
    with running_pool("--children", "1", "--", "sh", "-c", script) as pool:
        (worker,) = pool.wait_for_workers(1)
        wait_until(lambda: "" if _ignores(worker, signal.SIGTERM) else "no trap yet")
        pool.process.send_signal(signal.SIGTERM)
        pool.wait_for("SIGTERM: terminating")
        assert pool.stop(signal.SIGTERM) == 0


def _ignores(pid: int, number: int) -> bool:
    text = Path(f"/proc/{pid}/status").read_text()
    mask = next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith("SigIgn"))
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_worker_survives_its_manager(programs: Path, kind: str) -> None:
    """The kernel ends the workers of a manager that was killed; another can take the address."""
    with running_pool("--children", "3", *options(programs, kind)) as pool:
        workers = pool.wait_for_workers(3)
        worker_of(pool, programs)
        pool.expected_status = None
        pool.process.kill()
        pool.process.wait()
        wait_until(lambda: "some live" if any(state(pid) not in ("", "Z") for pid in workers) else "")
        with running_pool("--children", "1", "--listen", f"unix:{pool.socket}", *options(programs, kind)):
            ask(pool.socket, variables(str(programs / "answer.php")))


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """With --die-with-parent a manager does not outlive the process that started it."""
    words = [sys.executable, "-m", "fcgi_pool", "--die-with-parent", "--listen", f"unix:{tmp_path}/s", "--", "php-cgi"]
    code = f"import subprocess, time; p = subprocess.Popen({words!r}); print(p.pid, flush=True); time.sleep(600)"
    started = [sys.executable, "-c", code]
    with subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout
        manager = int(parent.stdout.readline())
        wait_until(lambda: "" if children(manager) else "no workers yet")
        workers = children(manager)
        parent.kill()
        wait_until(lambda: "alive" if any(state(pid) not in ("", "Z") for pid in [manager, *workers]) else "")


# -- how many


def test_dynamic_follows_the_load(programs: Path) -> None:
    """A waiting connection brings a worker at once, up to max_children; idle ones go again."""
    more = ["--set", "min_spare_servers=1", "--set", "max_spare_servers=2", "--pm", "dynamic", "--children", "4"]
    with running_pool(*more, *options(programs, "c")) as pool:
        pool.wait_for_workers(1)
        held = [Held(pool, programs, number) for number in range(4)]
        for request in held:
            request.wait()
        assert len(pool.workers()) == 4
        extra = connect(pool.socket)
        send_request(extra, variables())
        pool.wait_for("max_children is reached: 4")
        assert len({request.release() for request in held}) == 4
        assert read_reply(extra).end
        extra.close()
        pool.wait_for_workers(2)


def test_ondemand_starts_at_nothing_and_ends_there(programs: Path) -> None:
    """Nobody runs until somebody comes, and nobody once nobody came for process_idle_timeout."""
    more = ["--pm", "ondemand", "--children", "3", "--set", "process_idle_timeout=500ms", "--log-level", "debug"]
    with running_pool(*more, *options(programs, "php")) as pool:
        assert not pool.workers()
        held = [Held(pool, programs, number) for number in range(2)]
        for request in held:
            request.wait()
        assert len({request.release() for request in held}) == 2
        pool.wait_for_workers(0)
        worker_of(pool, programs)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_are_renewed_by_requests(programs: Path, kind: str) -> None:
    """max_requests ends a worker without a word in the log, whether it counts itself or is counted."""
    more = ["--children", "1", "--max-requests", "2", "--status-listen", "127.0.0.1:0"]
    with running_pool(*more, *options(programs, kind)) as pool:
        address = ("127.0.0.1", _status_port(pool.pid))
        answered = []
        for number in range(3):
            held = Held(pool, programs, number)
            fifo = os.open(held.fifo, os.O_WRONLY)
            # A request is counted when it is seen.
            _wait_for_status(address, b"active processes:     1")
            os.close(fifo)
            answered.append(int(read_reply(held.client).body))
            held.client.close()
            if number == 1:
                wait_until(lambda: "still the first" if answered[0] in pool.workers() else "")
            else:
                _wait_for_status(address, b"active processes:     0")
        assert answered[0] == answered[1] != answered[2]
        assert "warning" not in pool.log.text
        assert "error" not in pool.log.text


def test_workers_are_renewed_by_memory(programs: Path) -> None:
    """A worker over max_memory is replaced when it is idle; others stay."""
    more = ["--children", "1", "--set", "max_memory=48M", "--log-level", "debug"]
    with running_pool(*more, *options(programs, "c")) as pool:
        first = worker_of(pool, programs)
        assert worker_of(pool, programs, "grow") == first
        pool.wait_for(f"worker {first} is to go: it has .* MiB, max_memory is 48 MiB")
        wait_until(lambda: "still the first" if first in pool.workers() else "")
        assert worker_of(pool, programs) != first


# -- faults


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_takes_too_long_is_ended(programs: Path, kind: str, is_stopped: bool) -> None:
    """request_terminate_timeout ends the worker, even a stopped one; the others go on."""
    # Long enough to find the worker and stop it before.
    limit = "3s" if is_stopped else "1s"
    more = ["--children", "2", "--set", f"request_terminate_timeout={limit}"]
    with running_pool(*more, *options(programs, kind)) as pool:
        pool.wait_for_workers(2)
        held = Held(pool, programs)
        fifo = os.open(held.fifo, os.O_WRONLY)  # opens when the worker has begun
        if is_stopped:
            holder = next(pid for pid in pool.workers() if str(held.fifo) in links(pid))
            os.kill(holder, signal.SIGSTOP)
        read_reply(held.client)  # the end of the connection, or what the program says when its wait is interrupted
        held.client.close()
        os.close(fifo)
        pool.wait_for("is terminated: its request took .* request_terminate_timeout is [0-9.]+ s")
        pool.wait_for_workers(2)
        worker_of(pool, programs)


def test_a_pool_that_cannot_boot_says_so_and_recovers(programs: Path, tmp_path: Path) -> None:
    """Its connections are answered at once, with the reason; when the fault is gone, it serves."""
    mark = tmp_path / "installed"
    script = f"if [ -e {mark} ]; then exec {programs / 'answer'}; fi; echo the library is missing >&2; exit 3"
    with running_pool("--children", "2", "--", "sh", "-c", script) as pool:
        pool.wait_for("status 3 before it served, after .* s: the library is missing; the next is started in")
        reply = pool.ask(variables())
        assert reply.end
        assert reply.end.protocol_status == ProtocolStatus.OVERLOADED
        assert b"the pool www cannot start: worker" in reply.stderr
        assert b"the library is missing" in reply.stderr
        # A web server that sends its body later, or nothing at all, takes nobody's turn.
        with connect(pool.socket), connect(pool.socket) as half:
            half.sendall(b"\1\1")
            assert pool.ask(variables(), b"x" * 200_000).end
        mark.touch()
        pool.wait_for("serves: the pool has recovered")
        wait_until(lambda: "" if pool.ask(variables()).body else "not yet")
        pool.wait_for_workers(2)
        # Round by round, not in a tight loop.
        assert pool.log.text.count("before it served") < 25


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("#!/no/such/interpreter\n", 0o755, "the interpreter that its first line names does not exist: '#!/no/such"),
        ("#!/bin/sh\r\n", 0o755, "carriage return"),
        ("no script\n", 0o755, "no program and no script"),
    ],
)
def test_why_a_program_does_not_start(tmp_path: Path, text: str, mode: int, words: str) -> None:
    """What exec says is put in words."""
    program = tmp_path / "program"
    program.write_text(text)
    program.chmod(mode)
    with running_pool("--children", "1", "--", str(program)) as pool:
        pool.wait_for(f"no worker can be started: {program}: .*{words}")
        wait_until(lambda: "" if (reply := pool.ask(variables())).end and words.encode() in reply.stderr else "not yet")


def test_crashes_start_all_anew(programs: Path) -> None:
    """emergency_restart_threshold: too many crashes, and every worker is replaced."""
    more = ["--set", "emergency_restart_threshold=2", "--set", "emergency_restart_interval=60s", "--children", "3"]
    more += ["--log-level", "debug"]
    with running_pool(*more, *options(programs, "c")) as pool:
        before = set(pool.wait_for_workers(3))
        wait_until(lambda: "" if len(re.findall("worker [0-9]+ serves", pool.log.text)) == 3 else "not up")
        for _ in range(2):
            assert pool.ask(variables(uri="/?crash")).end is None
        pool.wait_for("2 workers have crashed: all are started anew")
        wait_until(lambda: "old ones left" if before & set(pool.workers()) else "")
        worker_of(pool, programs)


def test_an_address_in_use_is_not_stolen(programs: Path) -> None:
    """A second manager refuses to start; the first goes on."""
    with running_pool("--children", "1", *options(programs, "c")) as pool:
        words = [sys.executable, "-m", "fcgi_pool", "--listen", f"unix:{pool.socket}", *options(programs, "c")]
        second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert second.returncode == 2
        assert "in use by another program" in second.stderr
        assert second.stderr.count("\n") == 1
        worker_of(pool, programs)


def test_a_socket_that_is_removed_is_made_anew(programs: Path) -> None:
    """By a cleaner of temporary files, say: whoever is being served goes on; another's socket is never taken."""
    with running_pool("--children", "2", "--set", "status_listen=127.0.0.1:0", *options(programs, "wsgi")) as pool:
        before = pool.wait_for_workers(2)
        held = Held(pool, programs)
        held.wait()
        os.unlink(pool.socket)
        wait_until(lambda: "" if os.path.exists(pool.socket) else "no socket")
        pool.wait_for("s was removed: it is made anew")
        assert worker_of(pool, programs) not in before
        assert held.release() in before
        wait_until(lambda: "" if not set(before) & set(pool.workers()) else "the old workers are there")
        start = len(pool.log.text)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(f"{pool.socket}2")
            other.listen()
            os.rename(f"{pool.socket}2", pool.socket)
            pool.wait_for("in use by another program", start)
        os.unlink(pool.socket)
        wait_until(lambda: "" if os.path.exists(pool.socket) else "no socket")
        worker_of(pool, programs)
    assert not os.path.exists(pool.socket)


# -- what a worker is


def test_a_worker_has_three_descriptors_and_a_clean_environment(programs: Path, tmp_path: Path) -> None:
    """Nothing of the manager's leaks: descriptors, variables, signals."""
    (tmp_path / "show.php").write_text("<?php echo json_encode(getenv());")
    with running_pool("--children", "1", "--env", "A=b c", *options(programs, "php"), env={"SECRET": "1"}) as pool:
        pool.wait_for_workers(1)
        body = pool.ask(variables(str(tmp_path / "show.php"))).body
        assert b'"A":"b c"' in body
        assert b"SECRET" not in body
    # One that changes nothing of what it finds.
    with running_pool("--children", "1", "--", "sleep", "1000") as pool:
        wait_until(lambda: "" if _name(pool.workers()) == "sleep" else "no exec yet")
        (worker,) = pool.workers()
        assert not _ignores(worker, signal.SIGPIPE)
        assert sorted(os.listdir(f"/proc/{worker}/fd")) == ["0", "1", "2"]
        assert os.getsid(worker) == worker


def test_a_signal_for_a_new_worker_is_not_the_managers() -> None:
    """One that comes between fork and exec ends the worker: its handlers were the manager's until then."""
    script = """
import os, signal, socket
from fcgi_pool import process
told, telling = socket.socketpair()
told.setblocking(False)
telling.setblocking(False)
signal.set_wakeup_fd(telling.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
setsid = os.setsid
def meanwhile():
    os.kill(os.getpid(), signal.SIGTERM)
    setsid()
os.setsid = meanwhile
listener = socket.create_server(("127.0.0.1", 0))
launch = process.Launch(("/bin/sleep", "1000"), {})
for pid in (process.start(launch, listener.fileno()).pid, process.start_helper(os._exit, listener.fileno(), "x")):
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    print(told.recv(9))
except BlockingIOError:
    print("nothing")
os.kill(os.getpid(), signal.SIGTERM)
print(told.recv(9))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-15", "-15", "nothing", str(bytes([signal.SIGTERM]))]


def _name(workers: list[int]) -> str:
    return Path(f"/proc/{workers[0]}/comm").read_text().strip() if workers else ""


def test_users_and_limits(programs: Path) -> None:
    """A worker runs as whom, where and with what the configuration says; its socket is for whom it says."""
    assert os.geteuid() == 0, "needs root, as the tests' container is"
    more = ["--user", "www-data", "--set", "rlimit_files=77", "--set", "rlimit_core=0", "--set", "process_priority=7"]
    more += ["--listen-owner", "nobody", "--listen-group", "www-data", "--listen-mode", "0600", "--children", "1"]
    shutil.copy(programs / "answer", "/tmp/fcgi_pool_answer")
    try:
        with running_pool(*more, "--chdir", "/usr", "--", "/tmp/fcgi_pool_answer") as pool:
            worker = worker_of(pool, programs)
            status = Path(f"/proc/{worker}/status").read_text()
            assert "Uid:\t33\t33\t33\t33" in status
            assert "Gid:\t33\t33\t33\t33" in status
            assert "Groups:\t33" in status
            assert os.readlink(f"/proc/{worker}/cwd") == "/usr"
            limits = Path(f"/proc/{worker}/limits").read_text()
            assert re.search(r"Max open files +77 +77 ", limits)
            assert re.search(r"Max core file size +0 +0 ", limits)
            assert os.getpriority(os.PRIO_PROCESS, worker) == 7
            found = os.stat(pool.socket)
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 33, 0o600)
    finally:
        os.unlink("/tmp/fcgi_pool_answer")


def test_what_workers_say_is_logged(programs: Path) -> None:
    """With catch_workers_output each line is logged with its worker's pid; without, none."""
    for is_wanted in (True, False):
        more = ["--set", f"catch_workers_output={'yes' if is_wanted else 'no'}", "--children", "1"]
        with running_pool(*more, *options(programs, "c")) as pool:
            worker = worker_of(pool, programs, "say")
            if is_wanted:
                pool.wait_for(f"worker {worker} says: a line")
                pool.wait_for(f"worker {worker} says: another")
            else:
                assert "a line" not in pool.log.text


# -- reloading


class Load:
    """Clients that ask without a pause until they are told to stop; every answer must be whole."""

    def __init__(self, pool: RunningPool, programs: Path, count: int = 4) -> None:
        self.pool = pool
        self.page = str(programs / "answer.php")
        self.answers = 0
        self.failures: list[object] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                reply = self.pool.ask(variables(self.page))
            except OSError as error:
                self.failures.append(error)
                continue
            if reply.end is None or reply.end.protocol_status or not reply.body.isdigit():
                self.failures.append(reply)
            self.answers += 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_reload_loses_no_request(programs: Path, kind: str) -> None:
    """Under load every worker is replaced, several times, and every request is answered."""
    with running_pool("--children", "3", *options(programs, kind)) as pool:
        pool.wait_for_workers(3)
        worker_of(pool, programs)
        held = descriptors(pool.pid)
        with Load(pool, programs) as load:
            for _ in range(4):
                before = set(pool.wait_for_workers(3))
                start, count = len(pool.log.text), load.answers
                pool.process.send_signal(signal.SIGUSR2)
                pool.wait_for(r"\] reloaded", start)
                wait_until(lambda: "old ones left" if before & set(pool.workers()) else "")  # noqa: B023
                wait_until(lambda: "" if load.answers > count else "nobody is served")  # noqa: B023
        assert not load.failures, load.failures[:3]
        assert "warning" not in pool.log.text
        wait_until(lambda: "" if descriptors(pool.pid) <= held else links(pool.pid))


def test_a_reload_does_not_wait_for_kept_connections_to_end(programs: Path) -> None:
    """A worker whose connection is kept, and always busy, finishes a request and ends; no answer is cut off."""
    with running_pool("--children", "2", *options(programs, "php")) as pool:
        before = set(pool.wait_for_workers(2))
        page = variables(str(programs / "answer.php"))
        with connect(pool.socket) as client:
            send_request(client, page, keep=True)
            holder = int(read_reply(client).body)
            pool.process.send_signal(signal.SIGUSR2)
            reply = None
            while reply is None or reply.end:
                try:
                    send_request(client, page, keep=True)
                except BrokenPipeError:
                    break
                reply = read_reply(client)
                assert not reply.stdout or (reply.end and int(reply.body) == holder)
        pool.wait_for(r"\] reloaded")
        wait_until(lambda: "old ones left" if before & set(pool.workers()) else "")
        assert "in time" not in pool.log.text


@pytest.fixture
def configuration(tmp_path: Path) -> Iterator[Path]:
    """A configuration file."""
    path = tmp_path / "pools.toml"
    yield path


def write(path: Path, directory: Path, **pools: str) -> None:
    """Write a file with pools, each of which listens in `directory` under its name."""
    tables = [f'[pools.{name}]\nlisten = "unix:{directory}/{name}"\n{text}\n' for name, text in pools.items()]
    path.write_text("\n".join(tables))


def test_a_bad_configuration_changes_nothing(programs: Path, configuration: Path) -> None:
    """A mistake, or a program that does not start, leaves the old workers where they are."""
    good = f'command = ["{programs}/answer"]\npm = "static"\nmax_children = 2'
    directory = configuration.parent
    write(configuration, directory, s=good)
    with running_pool("--config", str(configuration)) as pool:
        pool.socket = str(directory / "s")
        before = pool.wait_for_workers(2)
        for bad, words in (
            ("command = [", "not TOML"),
            (good + "\nmax_childern = 3", "no such key; did you mean max_"),
            ('command = ["no-such-program"]', "there is no such program in"),
        ):
            write(configuration, directory, s=bad)
            start = len(pool.log.text)
            pool.process.send_signal(signal.SIGUSR2)
            pool.wait_for(f"not reloaded, all stays as it was: .*{words}", start)
            assert pool.workers() == before
        write(configuration, directory, s='command = ["sh", "-c", "exit 3"]')
        pool.process.send_signal(signal.SIGUSR2)
        pool.wait_for("not reloaded, the old workers go on: worker .* ended with status 3")
        wait_until(lambda: "" if pool.workers() == before else "the new ones are left")
        assert worker_of(pool, programs) in before
        write(configuration, directory, s=good.replace("max_children = 2", "max_children = 3"))
        pool.process.send_signal(signal.SIGUSR2)
        pool.wait_for(r"\] reloaded")
        pool.wait_for_workers(3)


def test_pools_come_and_go_and_do_not_disturb_each_other(programs: Path, configuration: Path) -> None:
    """One that cannot boot, one that is added and one that is taken away leave the others alone."""
    directory = configuration.parent
    c = f'command = ["{programs}/answer"]\npm = "static"\nmax_children = 1'
    broken = 'command = ["sh", "-c", "exit 3"]'
    write(configuration, directory, a=c, b=broken)
    with running_pool("--config", str(configuration)) as pool:
        pool.wait_for(r"\[pool b\] worker .* the next is started in")
        assert ask(str(directory / "a"), variables()).body
        assert ask(str(directory / "b"), variables()).end.protocol_status == ProtocolStatus.OVERLOADED  # type: ignore[union-attr]
        held = connect(str(directory / "a"))
        os.mkfifo(directory / "fifo")
        send_request(held, variables(uri=f"/?wait={directory}/fifo"))
        fifo = os.open(directory / "fifo", os.O_WRONLY)
        write(configuration, directory, c=c)
        pool.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "still there" if os.path.exists(directory / "a") else "")
        wait_until(lambda: "" if os.path.exists(directory / "c") else "not there")
        assert ask(str(directory / "c"), variables()).body
        os.close(fifo)
        assert read_reply(held).end
        held.close()
        pool.wait_for_workers(1)


def test_logs_are_reopened(programs: Path, tmp_path: Path) -> None:
    """USR1: a log that was moved away is left alone."""
    log = tmp_path / "log"
    with running_pool("--error-log", str(log), "--children", "1", *options(programs, "c")) as pool:
        worker_of(pool, programs)
        log.rename(tmp_path / "old")
        pool.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "" if log.exists() and "logs reopened" in log.read_text() else "not yet")


# -- what is shown


def test_the_status_answers_when_all_are_busy(programs: Path) -> None:
    """Status and ping come from the manager; who is busy is known of every kind of program."""
    for kind in KINDS:
        with running_pool("--children", "1", "--status-listen", "127.0.0.1:0", *options(programs, kind)) as pool:
            address = ("127.0.0.1", _status_port(pool.pid))
            held = Held(pool, programs)
            fifo = os.open(held.fifo, os.O_WRONLY)
            reply = ask(address, variables(uri="/ping"))
            assert reply.body == b"pong"
            _wait_for_status(address, b"active processes:     1")
            os.close(fifo)
            assert read_reply(held.client).end
            held.client.close()
            _wait_for_status(address, b"idle processes:       1")


def _wait_for_status(address: tuple[str, int], line: bytes) -> None:
    wait_until(lambda: "" if line in (text := ask(address, variables(uri="/status")).body) else text)


def _status_port(pid: int) -> int:
    inodes = {link[8:-1] for link in links(pid) if link.startswith("socket:")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].split(":")[1], 16)
    raise AssertionError("listens on no port")


def test_a_slow_request_is_reported_with_its_stack(programs: Path, tmp_path: Path) -> None:
    """The slow log has the Python stack of an application, and what the kernel knows of any other program."""
    for kind, words in (("wsgi", r"application\(\) .*answer_wsgi.py:6"), ("c", "answer (waits|runs)")):
        path = tmp_path / kind
        more = ["--set", "request_slowlog_timeout=200ms", "--slowlog", str(path), "--children", "1"]
        with running_pool(*more, *options(programs, kind)) as pool:
            held = Held(pool, programs)
            pool.wait_for("worker .* is slow")
            wait_until(lambda: "" if _found(words, path) else f"the slow log has {path.read_text()!r}")  # noqa: B023
            held.release()


def _found(pattern: str, path: Path) -> bool:
    return bool(re.search(pattern, path.read_text()))


def test_nginx_in_front(programs: Path) -> None:
    """A pool behind nginx: a page, a body, and a pool that is gone."""
    need("nginx")
    with running_pool("--children", "2", *options(programs, "php")) as pool:
        os.chmod(pool.directory, 0o711)
        os.chmod(pool.socket, 0o666)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        directory = pool.directory
        (directory / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/err; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {directory}/t1; fastcgi_temp_path {directory}/t2;\n"
            f"proxy_temp_path {directory}/t3; uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ include /etc/nginx/fastcgi_params;\n"
            f"fastcgi_param SCRIPT_FILENAME {programs}/answer.php; fastcgi_pass unix:{pool.socket}; }} }} }}\n"
        )
        nginx = subprocess.Popen(["nginx", "-c", f"{directory}/nginx.conf", "-e", f"{directory}/err"])
        try:
            wait_until(lambda: _refused(port))
            import http.client

            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("GET", "/")
            response = connection.getresponse()
            assert (response.status, int(response.read()) in pool.workers()) == (200, True)
            connection.close()
        finally:
            nginx.terminate()
            nginx.wait(PATIENCE)


def _refused(port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError as error:
        return str(error)
    return ""
