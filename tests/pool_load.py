"""What the tests of faults share: a front before a pool, real HTTP clients, and programs that say who answered.

Each program answers ``NUMBER PID LENGTH``: the number of the request (``n`` in its query), its own pid, and how long
the request's body was. ``ms`` in the query makes it work for so many milliseconds, ``wait`` makes it read a FIFO to its
end.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.pool_support import RunningPool, running_pool
from tests.support import PATIENCE, ROOT, Server, children, descendants, links, need, start_server, state, wait_until

C_PROGRAM = r"""
#include <fcgi_stdio.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    while (FCGI_Accept() >= 0) {
        char *query = getenv("QUERY_STRING"), *at = strstr(query, "n="), byte;
        int number = at ? atoi(at + 2) : 0;
        long length = 0;
        while (getchar() != EOF) length++;
        if ((at = strstr(query, "ms="))) usleep(atoi(at + 3) * 1000);
        if ((at = strstr(query, "wait="))) {
            int fifo = open(at + 5, O_RDONLY);
            while (fifo >= 0 && read(fifo, &byte, 1) > 0) {}
            close(fifo);
        }
        printf("Content-Type: text/plain\r\n\r\n%d %d %ld", number, (int)getpid(), length);
    }
    return 0;
}
"""
PHP_PAGE = """<?php
header('Content-Type: text/plain');
$length = $_SERVER['CONTENT_LENGTH'] ?? '0' ? strlen(file_get_contents('php://input')) : 0;
if (isset($_GET['mark'])) file_put_contents($_GET['mark'], getmypid() . "\n", FILE_APPEND);
if (isset($_GET['ms'])) usleep($_GET['ms'] * 1000);
if (isset($_GET['wait'])) file_get_contents($_GET['wait']);
echo $_GET['n'], ' ', getmypid(), ' ', $length;
"""
WSGI_MODULE = """
import os
import time
from urllib.parse import parse_qs

def application(environ, start_response):
    query = {name: values[0] for name, values in parse_qs(environ['QUERY_STRING']).items()}
    length = len(environ['wsgi.input'].read())
    if 'ms' in query:
        time.sleep(int(query['ms']) / 1000)
    if 'wait' in query:
        with open(query['wait']) as fifo:
            fifo.read()
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'%d %d %d' % (int(query.get('n', 0)), os.getpid(), length)]
"""
KINDS = ("wsgi", "php", "c")
RUNTIME = ROOT / "fcgi_pool" / "runtime" / "__main__.py"


def build(directory: Path) -> None:
    """Put a program of each kind into `directory`."""
    need("gcc", "php-cgi")
    (directory / "answer.c").write_text(C_PROGRAM)
    subprocess.run(["gcc", "-w", "-o", "answer", "answer.c", "-lfcgi"], cwd=directory, check=True)
    (directory / "site").mkdir()
    (directory / "site" / "answer.php").write_text(PHP_PAGE)
    (directory / "answer_wsgi.py").write_text(WSGI_MODULE)


def pool_options(programs: Path, kind: str) -> list[str]:
    """Return the end of a pool's command line that runs a program of that kind."""
    return {
        "wsgi": ["--chdir", str(programs), "--app", "answer_wsgi:application"],
        "php": ["--", "php-cgi"],
        "c": ["--", str(programs / "answer")],
    }[kind]


def command(programs: Path) -> list[str]:
    """Return the command of a worker of our own runtime, as any other program."""
    return [sys.executable, str(RUNTIME), "--chdir", str(programs), "answer_wsgi:application"]


def page(kind: str) -> str:
    """Return the path at which a program of that kind is mounted."""
    return "/answer.php" if kind == "php" else "/app/"


# -- a front


def alive(pids: dict[int, str]) -> list[int]:
    """Return those of `pids`, given with the moments of their births, that live on."""
    return [pid for pid, born in pids.items() if state(pid) not in ("", "Z", "X") and birth(pid) == born]


def birth(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; '' if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def family(server: Server) -> dict[int, str]:
    """Return all processes of a front, and when each began."""
    return {pid: birth(pid) for pid in [server.pid, *descendants(server.pid)]}


def managers(server: Server) -> list[int]:
    """Return the pids of the managers that a front has started."""
    return [pid for pid in children(server.pid) if b"\0-m\0fcgi_pool\0" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def front(*options: str, workers: int = 1, config: Path | None = None) -> Iterator[Server]:
    """A front with what it starts itself; at the end it stops on TERM and nothing is left, but what kill -9 leaves.

    `config`: a file that stands for all options.
    """
    spool = Path(tempfile.mkdtemp(dir="/tmp"))
    more = options if config else ("--debug", *options)
    environment = {"TMPDIR": str(spool)}
    server = start_server(*more, temp_dir=spool, workers=workers, wait=False, env=environment, config=config)
    try:
        server.wait_for_log(r"^gateway: ready")
        match = re.search(r"listening on https?://.*:(\d+)/", server.errors.text)
        assert match
        server.port = int(match[1])
        yield server
        processes = family(server)
        killed = server.process.poll() == -signal.SIGKILL
        status = server.stop()
        assert killed or status == 0, f"exit status {status}"
        wait_until(lambda: f"alive: {left}" if (left := alive(processes)) else "")
        assert killed or not list(spool.iterdir())
        for words in ("Traceback", "unexpected, please report"):
            assert words not in server.errors.text
    except BaseException:
        sys.stderr.write(server.errors.text[-20_000:])
        raise
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        for thread in server.threads:
            thread.join(PATIENCE)
        shutil.rmtree(spool)


@dataclass
class Site:
    """A front, the pool behind it, which was started by itself, and the path of its program."""

    server: Server
    pool: RunningPool
    path: str
    programs: Path
    children: int

    def check_whole(self) -> None:
        """Check that all children serve, that the front may have as many connections, and that nothing has leaked."""
        self.pool.wait_for_workers(self.children)
        assert len({held.release() for held in hold_all(self.server, self.path, self.children)}) == self.children
        self.server.check_idle()


@contextlib.contextmanager
def site(
    programs: Path,
    kind: str,
    children: int,
    *pool_settings: str,
    options: tuple[str, ...] = (),
    workers: int = 1,
    connections: int = 0,
) -> Iterator[Site]:
    """A front with `workers` before a pool of `children`; it may open `connections`, if given, else one a child."""
    settings = [part for setting in pool_settings for part in ("--set", setting)]
    with running_pool("--children", str(children), *settings, *pool_options(programs, kind)) as pool:
        target = f"unix:{pool.socket}"
        mount = ["--fastcgi", f"/app/={target}"]
        if kind == "php":
            mount = ["--php", f"/={programs / 'site'}", "--php-server", target]
        more = ["--connections", str(connections or children), "--debug", *options]
        spool = Path(tempfile.mkdtemp(dir="/tmp"))
        server = start_server(*mount, *more, temp_dir=spool, workers=workers)
        try:
            yield Site(server, pool, page(kind), programs, children)
            server.finish()
        except BaseException:
            sys.stderr.write(server.errors.text[-20_000:])
            raise
        finally:
            server.process.kill()
            server.process.wait()
            for thread in server.threads:
                thread.join(PATIENCE)
            shutil.rmtree(spool)


# -- clients


@dataclass
class Outcome:
    """What became of a request: a status, or 0 where the connection ended first."""

    number: int
    method: str
    length: int
    status: int
    body: bytes
    seconds: float
    retry_after: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is its own answer, and whole."""
        pattern = b"%d [0-9]+ %d" % (self.number, self.length)
        return self.status == 200 and bool(re.fullmatch(pattern, self.body))

    @property
    def pid(self) -> int:
        """Who answered."""
        return int(self.body.split()[1])


def mixed(number: int) -> tuple[str, bytes]:
    """Return method and body of a request: half are GET, the others POST: without a body, a short or a long one."""
    if number % 2:
        return "GET", b""
    return "POST", b"x" * (0, 20, 0, 100_000)[number // 2 % 4]


class Client:
    """One client, with a connection that it keeps as long as the server does."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, path: str, number: int, method: str = "GET", body: bytes = b"", more: str = "") -> Outcome:
        """Send a request and return its outcome."""
        began = time.monotonic()
        status, content, retry_after = 0, b"", ""
        try:
            data = body if method == "POST" else None
            self._connection.request(method, f"{path}?n={number}{more}", data)
            response = self._connection.getresponse()
            retry_after = response.headers.get("Retry-After", "")
            content = response.read()
            status = response.status
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as error:
            content = repr(error).encode()
            self._connection.close()
        return Outcome(number, method, len(body), status, content, time.monotonic() - began, retry_after)

    @property
    def port(self) -> int:
        """The port that it asks from."""
        return int(self._connection.sock.getsockname()[1])

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._connection.close()


class Load:
    """Clients, a thread each, that ask until the context ends, or each until it has asked `each` times."""

    def __init__(
        self,
        port: int,
        path: str,
        clients: int,
        milliseconds: int = 0,
        each: int = 0,
        choose: Callable[[int], tuple[str, bytes]] = mixed,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._port, self._path, self._each, self._choose = port, path, each, choose
        self._more = f"&ms={milliseconds}" if milliseconds else ""
        self._numbers = itertools.count(1)
        self._ends = threading.Event()
        self._grown = threading.Condition()
        self._trouble: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind or not self._each:
            self._ends.set()
        for thread in self._threads:
            thread.join()
        assert kind or not self._trouble, self._trouble

    def _run(self) -> None:
        client = Client(self._port)
        try:
            for _ in range(self._each) if self._each else itertools.count():
                if self._ends.is_set():
                    return
                number = next(self._numbers)
                method, body = self._choose(number)
                outcome = client.ask(self._path, number, method, body, self._more)
                with self._grown:
                    self.outcomes.append(outcome)
                    self._grown.notify_all()
        except BaseException as error:
            self._trouble.append(error)
            self._ends.set()
        finally:
            client.close()

    def wait_for(self, count: int, matches: Callable[[Outcome], bool] = lambda outcome: outcome.is_right) -> None:
        """Wait until so many more requests have come out like that."""
        with self._grown:
            at, found = len(self.outcomes), 0
            deadline = time.monotonic() + PATIENCE
            while found < count:
                left = deadline - time.monotonic()
                assert left > 0, f"{found} of {count} came; the last: {self.outcomes[-5:]}"
                assert not self._trouble, self._trouble
                self._grown.wait(min(left, 1.0))
                found += sum(map(matches, self.outcomes[at:]))
                at = len(self.outcomes)

    @property
    def wrong(self) -> list[Outcome]:
        """The requests that did not get their own right answer."""
        return [outcome for outcome in self.outcomes if not outcome.is_right]


class Held:
    """A request that a worker is at until it is released."""

    _names = itertools.count(1)

    def __init__(self, server: Server, path: str, method: str = "GET", more: str = "") -> None:
        self._directory = Path(tempfile.mkdtemp(dir="/tmp"))
        self.fifo = self._directory / "fifo"
        os.mkfifo(self.fifo)
        self._writer = -1
        self.number = next(self._names)
        self.outcome: Outcome | None = None
        self.client = Client(server.port)
        self._thread = threading.Thread(target=self._ask, args=(path, method, more), daemon=True)
        self._thread.start()

    def _ask(self, path: str, method: str, more: str) -> None:
        self.outcome = self.client.ask(path, self.number, method, more=f"&wait={self.fifo}{more}")

    def wait(self) -> Held:
        """Wait until a worker is at it."""

        def trouble() -> str:
            assert not self.outcome, self.outcome
            try:
                self._writer = os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return "nobody is at it"
            return ""

        wait_until(trouble)
        return self

    def holder(self, pids: list[int]) -> int:
        """Return which of the workers is at it."""
        found: list[int] = []

        def trouble() -> str:
            # The end of open comes a moment after the other side's.
            found[:] = [pid for pid in pids if str(self.fifo) in links(pid)]
            return "" if found else "none of them"

        wait_until(trouble)
        return found[0]

    def result(self) -> Outcome:
        """Wait for its outcome, and take everything away."""
        self._thread.join(PATIENCE)
        self.close()
        assert self.outcome, "no answer"
        return self.outcome

    def close(self) -> None:
        """Let go whoever is at it, and take everything away."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        self._thread.join(PATIENCE)
        self.client.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def release(self) -> int:
        """Let it end well; return the pid of its worker."""
        self.let_go()
        outcome = self.result()
        assert outcome.is_right, outcome
        return outcome.pid

    def let_go(self) -> None:
        """Let whoever is at it go on."""
        if self._writer < 0:
            self.wait()
        os.close(self._writer)
        self._writer = -1


def hold_all(server: Server, path: str, count: int) -> list[Held]:
    """Return so many requests that workers are at, all at once."""
    all_held = [Held(server, path) for _ in range(count)]
    for held in all_held:
        held.wait()
    return all_held
