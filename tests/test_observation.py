"""Looking into programs that do not tell, and at those that do: real programs, a real kernel."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_pool import proc, sock_diag
from fcgi_pool.observer import Observer
from fcgi_pool.protocol import encode_params, encode_request
from fcgi_pool.protocol.records import encode_record
from fcgi_pool.scoreboard import SLOT_SIZE, URI_LIMIT, Scoreboard, Slot
from fcgi_pool.snapshot import RequestInfo, Snapshot, WorkerState
from fcgi_pool.told import Board, Carried, Reader, Told
from tests.support import PATIENCE, ROOT, descriptors, members, need, need_file, script, wait_until

PHP = "<?php echo file_get_contents(getenv('GATE') ?: $_SERVER['GATE']);"

LIBFCGI = r"""
#include <fcgi_stdio.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    while (FCGI_Accept() >= 0) {
        char text[64];
        int gate = open(getenv("GATE"), O_RDONLY);
        ssize_t length = read(gate, text, sizeof text);
        close(gate);
        printf("Content-Type: text/plain\r\n\r\n%.*s", (int)length, text);
    }
    return 0;
}
"""

# A child for each connection, as with socketserver.ForkingMixIn.
FORKS = """
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    if not os.fork():
        with connection:
            listener.close()
            open(sys.argv[1]).read()
            connection.sendall(b"done")
        os._exit(0)
    connection.close()
"""


class Pool:
    """Programs that accept on one socket, without a manager."""

    def __init__(self, directory: Path, family: int = socket.AF_UNIX, backlog: int = 64) -> None:
        self.directory = directory
        self.gate = directory / "gate"
        os.mkfifo(self.gate)
        self.listener = socket.socket(family)
        self.listener.bind(str(directory / "socket") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        self.listener.listen(backlog)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.clients: list[socket.socket] = []
        self.observer = Observer(self.listener)
        self.now = 100.0

    @property
    def pids(self) -> dict[int, float]:
        """Pids as a manager knows them; all started at 1.0."""
        return {worker.pid: 1.0 for worker in self.workers if worker.returncode is None}

    def start(self, *command: str, count: int = 1, **env: str) -> None:
        """Start programs and wait until they accept."""
        for _ in range(count):
            worker = subprocess.Popen(
                command,
                stdin=self.listener,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], **env},
                start_new_session=True,
            )
            self.workers.append(worker)
            wait_until(lambda pid=worker.pid: "" if self.accepts(pid) else proc.read(pid, "syscall"))

    def accepts(self, pid: int) -> bool:
        """Whether a process waits for a connection, or one of its children does."""
        return any(proc.call(process).accepts(0) for process in [pid, *proc.descendants(pid)])

    def connect(self, request: bytes = b"") -> socket.socket:
        """Connect, and send a request."""
        client = socket.socket(self.listener.family)
        self.clients.append(client)
        client.settimeout(PATIENCE)
        client.connect(self.listener.getsockname())
        client.sendall(request)
        return client

    def request(self, *, keep: bool = False, script_filename: str = "") -> bytes:
        """Return a request whose answer waits for the gate."""
        pairs = [
            (b"GATE", os.fsencode(self.gate)),
            (b"SCRIPT_FILENAME", script_filename.encode()),
            (b"REQUEST_METHOD", b"GET"),
            (b"REDIRECT_STATUS", b"200"),
        ]
        return encode_request(encode_params(pairs), keep=keep, ends=True)

    def look(self) -> Snapshot:
        """Look, a second later than the last time."""
        self.now += 1.0
        return self.observer.look(self.pids, self.now)

    def look_until(self, is_wanted: Callable[[Snapshot], bool]) -> Snapshot:
        """Look until it is as it must become."""
        seen = [self.look()]

        def trouble() -> str:
            if not is_wanted(seen[-1]):
                seen.append(self.look())
            return "" if is_wanted(seen[-1]) else str(seen[-1])

        wait_until(trouble)
        return seen[-1]

    def open_gate(self) -> None:
        """Let one answer go on."""
        with open(self.gate, "w") as gate:
            gate.write("passed")

    def open_gate_if_awaited(self) -> str:
        """Let those go on who wait now; return that somebody was."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK))
        return "no answer"

    def close(self) -> None:
        """End everything."""
        for client in self.clients:
            client.close()
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.observer.close()
        self.listener.close()
        for worker in self.workers:
            wait_until(lambda session=worker.pid: members(session))


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    """Make pools in short directories; end them."""
    with contextlib.ExitStack() as stack:
        before = descriptors(os.getpid())

        def make(family: int = socket.AF_UNIX) -> Pool:
            directory = tempfile.mkdtemp(dir="/tmp")
            stack.callback(shutil.rmtree, directory)
            pool = Pool(Path(directory), family)
            stack.callback(pool.close)
            return pool

        yield make
        stack.close()
        assert descriptors(os.getpid()) == before


@pytest.fixture(scope="module")
def libfcgi(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program in C."""
    need("cc")
    need_file("/usr/include/fcgi_stdio.h")
    directory = tmp_path_factory.mktemp("libfcgi")
    source = script(directory / "program.c", LIBFCGI)
    subprocess.run(["cc", "-o", directory / "program", source, "-lfcgi"], check=True)
    return str(directory / "program")


def start_php(pool: Pool, count: int = 1, **env: str) -> bytes:
    """Start php-cgi; return a request for a page that waits for the gate."""
    need("php-cgi")
    page = script(pool.directory / "page.php", PHP)
    pool.start("php-cgi", count=count, **env)
    return pool.request(script_filename=str(page))


def check_one_request(pool: Pool, request: bytes) -> None:
    """Idle, busy with others waiting, idle again."""
    (worker,) = pool.look().workers
    assert worker == WorkerState(pool.workers[0].pid, 1.0, False, 1.0, 0, worker.memory)
    assert worker.memory > 1 << 17
    client = pool.connect(request)
    seen = pool.look_until(lambda seen: seen.busy == 1)
    (worker,) = seen.workers
    assert (worker.requests, worker.request) == (1, None)
    assert worker.started < worker.since <= pool.now
    since = worker.since
    waiting = [pool.connect(request), pool.connect(request)]
    seen = pool.look_until(lambda seen: seen.queue == 2)
    assert seen.queue_limit == 64
    assert (seen.busy, seen.idle, seen.workers[0].since) == (1, 0, since)
    for each in [client, *waiting]:
        pool.open_gate()
        assert each.recv(4096)
        # php-cgi has its connection until the client ends it.
        each.close()
    seen = pool.look_until(lambda seen: not seen.busy and not seen.queue)
    assert since < seen.workers[0].since <= pool.now
    assert 1 <= seen.workers[0].requests <= 3


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_php_cgi(pools: Callable[..., Pool], family: int) -> None:
    """A php-cgi that knows nothing of us."""
    pool = pools(family)
    check_one_request(pool, start_php(pool))


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_libfcgi(pools: Callable[..., Pool], family: int, libfcgi: str) -> None:
    """A program in C with libfcgi."""
    pool = pools(family)
    pool.start(libfcgi)
    check_one_request(pool, pool.request())


def test_several_workers(pools: Callable[..., Pool]) -> None:
    """Each connection is its holder's."""
    pool = pools()
    request = start_php(pool, count=4)
    for number in range(1, 4):
        pool.connect(request)
        seen = pool.look_until(lambda seen, number=number: seen.busy == number)
    assert [worker.pid for worker in seen.workers] == sorted(pool.pids)
    assert sorted(worker.requests for worker in seen.workers) == [0, 1, 1, 1]
    assert len({worker.since for worker in seen.workers if worker.is_busy}) == 3
    busy = next(worker.pid for worker in seen.workers if worker.is_busy)
    victim = next(worker for worker in pool.workers if worker.pid == busy)
    victim.kill()
    # Gone, but not reaped: no error, and idle.
    pool.look_until(lambda seen: seen.busy == 2)
    assert len(pool.look().workers) == 4
    victim.wait()
    assert len(pool.look().workers) == 3
    assert busy not in pool.observer._workers


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_server_that_forks(pools: Callable[..., Pool], family: int) -> None:
    """The connection is held by a child of the worker, or by several."""
    pool = pools(family)
    program = script(pool.directory / "server.py", FORKS)
    pool.start(sys.executable, str(program), str(pool.gate))
    assert pool.look().idle == 1
    clients = [pool.connect(), pool.connect()]
    seen = pool.look_until(lambda seen: seen.busy == 1 and seen.workers[0].requests == 2)
    since = seen.workers[0].since
    assert [pool.look().workers[0].since for _ in range(4)] == [since] * 4
    # One opening lets all pass who wait at the gate, so as many as are needed, and none that waits for the other.
    for client in clients:
        client.setblocking(False)
        wait_until(lambda client=client: "" if _has_answer(client) else pool.open_gate_if_awaited())
    seen = pool.look_until(lambda seen: seen.busy == 0)
    assert seen.workers[0].requests == 2


def _has_answer(client: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return client.recv(9) == b"done"
    return False


def test_children_that_accept(pools: Callable[..., Pool]) -> None:
    """php-cgi forks its own pool; all of it is one worker."""
    pool = pools()
    request = start_php(pool, PHP_FCGI_CHILDREN="2")
    client = pool.connect(request)
    seen = pool.look_until(lambda seen: seen.busy == 1)
    assert seen.workers[0].requests == 1
    pool.open_gate()
    assert client.recv(4096)
    client.close()
    pool.look_until(lambda seen: seen.busy == 0)


def test_a_kept_connection_that_waits_has_no_age(pools: Callable[..., Pool]) -> None:
    """What waits for its peer has no request under way; when it has one, that one's age counts."""
    pool = pools()
    start_php(pool)
    request = pool.request(script_filename=str(pool.directory / "page.php"), keep=True)
    client = pool.connect(request)
    pool.look_until(lambda seen: seen.busy == 1)
    pool.open_gate()
    assert client.recv(4096)
    pool.look_until(lambda seen: seen.workers[0].since == pool.now)
    # Pinned by its peer: it cannot take another connection.
    assert pool.look().busy == 1
    client.sendall(request)
    wait_until(lambda: "" if not proc.call(pool.workers[0].pid).reads(4) else "still reads")
    since = pool.look().workers[0].since
    assert since >= pool.now - 1.0
    assert [pool.look().workers[0].since for _ in range(3)] == [since] * 3
    client.close()
    pool.open_gate()
    assert pool.look_until(lambda seen: seen.busy == 0).workers[0].requests == 1


def test_a_web_server_tells(pools: Callable[..., Pool]) -> None:
    """Where the web server says what its connections carry, that is what counts."""
    pool = pools()
    client = pool.connect(start_php(pool))
    pool.look_until(lambda seen: seen.busy == 1)
    inode = os.fstat(client.fileno()).st_ino
    began = pool.now + 50.0
    info = RequestInfo("GET", "/page", 0, "", "page.php", began)
    seen = pool.observer.look(pool.pids, 200.0, Told({inode: Carried(1, info)}, 7))
    (worker,) = seen.workers
    assert (worker.is_busy, worker.since, worker.request) == (True, began, info)
    assert (worker.requests, seen.requests) == (1, 7)
    (worker,) = pool.observer.look(pool.pids, 201.0, Told({inode: Carried(1)}, 7)).workers
    assert (worker.is_busy, worker.since, worker.request) == (False, 201.0, info)
    # Others were answered between two looks: how many is known.
    (worker,) = pool.observer.look(pool.pids, 202.0, Told({inode: Carried(4)}, 10)).workers
    assert (worker.is_busy, worker.since, worker.request, worker.requests) == (False, 202.0, None, 4)
    # While somebody waits, a worker whose connection is idle is not free.
    waiting = pool.connect()
    (worker,) = pool.observer.look(pool.pids, 203.0, Told({inode: Carried(4)}, 10)).workers
    assert (worker.is_busy, worker.since) == (True, 203.0)
    waiting.close()


def test_a_request_that_waited_to_be_accepted_is_no_older_than_that(pools: Callable[..., Pool]) -> None:
    """Its age is that of its worker's work on it."""
    pool = pools()
    request = start_php(pool)
    pool.look()
    client = pool.connect(request)
    inode = os.fstat(client.fileno()).st_ino
    told = Told({inode: Carried(1, RequestInfo("GET", "/page", 0, "", "page.php", 1.0))}, 1)
    wait_until(lambda: "" if pool.observer.connections() else "not accepted yet")
    before = pool.now
    (worker,) = pool.observer.look(pool.pids, before + 1.0, told).workers
    assert (worker.is_busy, worker.since) == (True, before)


def test_the_board_of_a_web_server() -> None:
    """What is written is read, by slot and in all; what was killed is forgotten, but for what it has sent."""
    board = Board(2, 2)
    places, others = board.places(0), board.places(1)
    reader = Reader(board.fileno())
    assert reader.read(0.0) == Told({}, 0)
    first, second = places.take(11), places.take(12)
    assert first
    assert second
    assert places.take(13) is None
    first.begin(5.0)
    second.begin(6.0)
    second.describe(b"POST", b"/" + b"u" * 5000, 9, b"me", b"/a.php")
    told = reader.read(7.0)
    assert told.connections[11] == Carried(1, RequestInfo("", "", 0, "", "", 5.0))
    request = RequestInfo("POST", "/" + "u" * (URI_LIMIT - 1), 9, "me", "/a.php", 6.0)
    assert told == Told({11: told.connections[11], 12: Carried(1, request)}, 2)
    # The next one is another, and what was written about the last one says nothing of it.
    second.end()
    assert reader.read(7.0).connections[12] == Carried(1)
    second.begin(8.0)
    assert not second.is_described
    # A clock that was read a moment earlier.
    assert reader.read(7.5).connections[12] == Carried(2, RequestInfo("", "", 0, "", "", 7.5))
    # What a closed connection has had is read until its place is needed.
    second.close()
    assert reader.read(9.0).connections[12] == Carried(2)
    third = places.take(13)
    assert third
    third.begin(9.0)
    told = reader.read(9.0)
    assert 12 not in told.connections
    assert (told.connections[13].requests, told.requests) == (1, 4)
    other = others.take(14)
    assert other
    board.clear(0)
    assert reader.read(9.0) == Told({14: Carried(0)}, 4)
    assert Reader(board.fileno()).read(9.0).requests == 0
    board.close()


@pytest.mark.parametrize("content", [b"\xff", b"\x7f\xf0" * 4, b"\x41\x50" * 4, b"\x00" * 8 + b"\x40" * 8], ids=repr)
def test_a_board_of_nonsense(content: bytes) -> None:
    """No number is believed."""
    board = Board(1, 4)
    reader = Reader(board.fileno())
    size = os.fstat(board.fileno()).st_size
    os.pwrite(board.fileno(), (content * size)[:size], 0)
    told = reader.read(100.0)
    assert told.requests >= 0
    for carried in told.connections.values():
        assert carried.requests >= 0
        assert carried.request is None or 0 < carried.request.started <= 100.0
    board.close()
    for size in (0, 100):
        descriptor = os.memfd_create("no board")
        os.ftruncate(descriptor, size)
        with pytest.raises(ValueError, match="no memory"):
            Reader(descriptor)
        os.close(descriptor)


def test_connections_of_nobody_are_given_up(pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted outside the pool, as by its manager, is not searched for for ever."""
    pool = pools()
    pool.start(sys.executable, "-c", "import socket; socket.socket(fileno=0).accept()[0].recv(1)")
    pool.workers[0].send_signal(signal.SIGSTOP)
    pool.connect()
    accepted, _ = pool.listener.accept()
    with accepted:
        searched: list[int] = []
        monkeypatch.setattr(proc, "sockets", lambda pid, wanted: searched.append(pid) or {})
        for _ in range(9):
            assert pool.look().idle == 1
        assert searched == [pool.workers[0].pid] * 3
    assert pool.look().idle == 1
    assert not pool.observer._held


def test_a_look_at_idle_workers_reads_nothing_of_them(pools: Callable[..., Pool], libfcgi: str) -> None:
    """Between two reads of their memory, idle workers cost one dump of the kernel's sockets."""
    pool = pools()
    pool.start(libfcgi, count=5)
    client = pool.connect(pool.request())
    pool.look_until(lambda seen: seen.busy == 1)
    read: list[str] = []
    original_read, original_holds, original_sockets = proc.read, proc.holds, proc.sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proc, "read", lambda pid, name: read.append(name) or original_read(pid, name))
        patch.setattr(proc, "holds", lambda pid, number: read.append("link") or original_holds(pid, number))
        patch.setattr(proc, "sockets", lambda pid, wanted: read.append("all") or original_sockets(pid, wanted))
        pool.now += 1.0
        for step in range(3):
            pool.observer.look(pool.pids, pool.now + step / 4)
    # The memory of five once, the busy one's call each time and its connection.
    assert sorted(read) == sorted(["statm"] * 5 + ["syscall", "link"] * 3)
    pool.open_gate()
    assert client.recv(4096)


def test_workers_that_tell(pools: Callable[..., Pool]) -> None:
    """The scoreboard's word goes before what is seen from outside."""
    pool = pools()
    with contextlib.closing(Scoreboard(2)) as board:
        observer = Observer(pool.listener, board)
        slot = board.reserve()
        assert slot is not None
        code = (
            "import os, sys; from fcgi_pool.scoreboard import Slot\n"
            "slot = Slot.from_environment(os.environ['FCGI_POOL_SCOREBOARD'])\n"
            "for line in sys.stdin:\n"
            "    if line == 'begin\\n': slot.begin(b'POST', b'/a?b', 5, b'me', b'/srv/a')\n"
            "    else: slot.end()\n"
            "    print('done', flush=True)\n"
        )
        worker = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "FCGI_POOL_SCOREBOARD": f"{board.fileno()}:{slot}", "PYTHONPATH": str(ROOT)},
            pass_fds=[board.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin
        assert worker.stdout
        with worker, contextlib.closing(observer):

            def tell(word: str) -> WorkerState:
                assert worker.stdin
                assert worker.stdout
                worker.stdin.write(word + "\n")
                worker.stdin.flush()
                worker.stdout.readline()
                (state,) = observer.look({worker.pid: 1.0}, 1e12).workers
                return state

            busy = tell("begin")
            assert (busy.is_busy, busy.requests) == (True, 1)
            assert busy.request == RequestInfo("POST", "/a?b", 5, "me", "/srv/a", busy.since)
            idle = tell("end")
            assert (idle.is_busy, idle.requests) == (False, 1)
            assert idle.since >= busy.since
            assert idle.request
            assert idle.request.started == busy.since
            assert tell("begin").requests == 2
            worker.stdin.close()
        board.release(slot)
        assert not board.rows()


def test_scoreboard_slots() -> None:
    """Slots are given and taken back; what is written in one is read from it alone; long values are cut."""
    board = Scoreboard(5)
    slots = [board.reserve() for _ in range(5)]
    assert sorted(slot for slot in slots if slot is not None) == [0, 1, 2, 3, 4]
    assert board.reserve() is None
    writers = [Slot(board.fileno(), number) for number in range(5)]
    for number, writer in enumerate(writers):
        writer.begin(b"GET", b"/%d" % number + b"x" * 5000, number, b"\xff")
    for number in range(5):
        row = board.row(number)
        assert row
        assert row.uri == f"/{number}" + "x" * (URI_LIMIT - 2)
        assert (row.content_length, row.user, row.pid) == (number, "\\xff", os.getpid())
        writers[number].close()
    board.release(3)
    assert board.row(3) is None
    assert board.reserve() == 3
    with pytest.raises(ValueError, match="no slot"):
        Slot(board.fileno(), 5)
    # A worker cannot take the memory from under its manager.
    with pytest.raises(PermissionError):
        os.ftruncate(board.fileno(), 0)
    board.close()


def test_scoreboard_of_a_worker_that_died_writing() -> None:
    """A slot that stays half written is nobody's word; the next worker's is."""
    with contextlib.closing(Scoreboard(1)) as board:
        slot = board.reserve()
        assert slot == 0
        Slot(board.fileno(), 0).close()
        assert board.rows()
        os.pwrite(board.fileno(), struct.pack("@I", 7), 0)
        assert not board.rows()
        Slot(board.fileno(), 0).close()
        assert board.rows()


@given(st.binary(min_size=SLOT_SIZE, max_size=SLOT_SIZE))
def test_scoreboard_nonsense(content: bytes) -> None:
    """Whatever a worker writes, its manager reads something or nothing, with times that make sense."""
    with contextlib.closing(Scoreboard(1)) as board, socket.create_server(("127.0.0.1", 0)) as listener:
        board.reserve()
        os.pwrite(board.fileno(), struct.pack("@Ii", 2, os.getpid()) + content[8:], 0)
        with contextlib.closing(Observer(listener, board)) as observer:
            (worker,) = observer.look({os.getpid(): 5.0}, 9.0).workers
        assert 5.0 <= worker.since <= 9.0
        if worker.request:
            assert worker.request.content_length >= 0
            assert worker.request.cpu >= 0.0
            assert 5.0 <= worker.request.started <= 9.0


def test_two_listeners_at_one_path(pools: Callable[..., Pool]) -> None:
    """Connections accepted from an older socket of the same name are not the newer one's."""
    pool = pools()
    pool.connect()
    old, _ = pool.listener.accept()
    path = pool.listener.getsockname()
    os.rename(path, path + ".old")
    with old, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(3)
        with contextlib.closing(sock_diag.SockDiag(listener)) as diag:
            assert diag.look() == (0, 3, {})
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                assert diag.look() == (1, 3, {})
                client.sendall(b"1234")
                new, _ = listener.accept()
                with new:
                    inodes = [os.fstat(side.fileno()).st_ino for side in (new, client)]
                    assert diag.look() == (0, 3, {inodes[0]: (*inodes, 4)})


def test_netlink_that_fails() -> None:
    """A message that is no netlink message is an error of ours, not a loop."""
    with pytest.raises(OSError, match="taken apart"):
        list(sock_diag.messages(struct.pack("=IHHII", 5, 20, 0, 0, 0)))
    with pytest.raises(OSError, match="taken apart"):
        list(sock_diag.messages(struct.pack("=IHHII", 99, 20, 0, 0, 0)))
    assert list(sock_diag.messages(b"")) == []


def test_proc_parsers() -> None:
    """What the kernel writes, and what it writes of a process that ends meanwhile."""
    assert proc.parse_socket("socket:[123]") == 123
    assert proc.parse_socket("/tmp/socket:[123]") == 0
    assert proc.parse_memory("100 20 3") == 20 * os.sysconf("SC_PAGE_SIZE")
    assert proc.parse_memory("") == 0
    assert proc.parse_call("running\n") == proc.parse_call("-1 0x7ffe 0x7f00\n") == proc.parse_call("") == proc.Call()
    assert proc.parse_call("43 0x0 0x1\n") == proc.Call(43, 0)
    assert proc.parse_threads("7 (a) b) S 1 " + " ".join(str(number) for number in range(5, 30))) == 20
    assert proc.parse_threads("") == 0
    own = os.getpid()
    assert proc.memory(own) > 1 << 20
    assert proc.holds(own, 9999) == 0
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert (proc.memory(gone.pid), proc.call(gone.pid), proc.sockets(gone.pid, {1})) == (0, proc.Call(), {})
    assert proc.descendants(gone.pid) == []


REFUSED = """
import os, socket, subprocess, sys
from fcgi_pool import proc
from tests.support import wait_until
with socket.socket() as held:
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[held.fileno()], **user)
    with worker:
        wait_until(lambda: "" if proc.call(worker.pid).reads(0) else "does not read")
        inode = os.fstat(held.fileno()).st_ino
        assert proc.sockets(worker.pid, {inode}) == {inode: held.fileno()}
        assert proc.holds(worker.pid, held.fileno()) == inode
        assert (held.fileno(), f"socket:[{inode}]") in proc.links(worker.pid)
        worker.stdin.close()
assert os.getresuid() == (os.getuid(),) * 3
assert os.getresgid() == (os.getgid(),) * 3
"""


def test_root_without_the_right_to_trace() -> None:
    """In a container root may not look into other users' processes; it looks as that user."""
    command = [sys.executable, "-c", REFUSED]
    if os.geteuid() == 0:
        need("setpriv")
        command = ["setpriv", "--bounding-set", "-sys_ptrace", *command]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE)


def test_the_records_are_what_programs_take() -> None:
    """The requests of these tests are whole: an empty PARAMS and an empty STDIN end them."""
    request = encode_request(encode_params([(b"A", b"b")]), keep=False, ends=True)
    assert request.endswith(encode_record(4, 1) + encode_record(5, 1))
