"""The status and ping pages and the slow log, side by side with php-fpm's own."""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from fcgi_pool import proc
from fcgi_pool.config import PoolConfig
from fcgi_pool.protocol import ABORT, ResponseReader, encode_params, encode_record, encode_request, get_values
from fcgi_pool.protocol.records import Role
from fcgi_pool.protocol.web_server import End, Stdout, Values
from fcgi_pool.slowlog import TRACE_SIGNAL, SlowLog, Trace, frames, head
from fcgi_pool.snapshot import RequestInfo, Snapshot, WorkerState
from fcgi_pool.status import Counters, Page, render
from fcgi_pool.status_server import StatusServer, respond
from tests.support import PATIENCE, descriptors, need, script, state, wait_until

FORMATS = ("", "json", "html", "xml", "openmetrics")
EVIL = '/a"b&<c>\n]]>\x01\udc80'

CONFIG = PoolConfig("blog", command=("php-cgi",), pm="dynamic", max_children=4, request_terminate_timeout=30.0)
SNAPSHOT = Snapshot(
    (
        WorkerState(7, 100.0, True, 110.0, 3, 12345, RequestInfo("POST", "/p?q=1", 5, "joe", "/srv/p", 110.0)),
        WorkerState(8, 101.0, False, 111.5, 1, 999, RequestInfo("GET", "/", 0, "", "/srv/i", 111.0, 0.25)),
        WorkerState(9, 102.0, False, 102.0, 0, 99),
    ),
    3,
    511,
)


def page(query: str, snapshot: Snapshot = SNAPSHOT, config: PoolConfig = CONFIG) -> str:
    """Return a page at the moment 112.5, an hour after the epoch."""
    counters = Counters(90.0, accepted=40, max_queue=5, max_active=2, max_children_reached=6, slow_requests=7)
    return render(query, config, snapshot, counters, 112.5, 3600.0).body.decode()


class Table(html.parser.HTMLParser):
    """The cells of the page's tables, and whether every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def names(query: str, text: str) -> tuple[list[str], list[str]]:
    """Return the names of a page's fields: those of the pool, and those of its first worker."""
    if "json" in query:
        content = json.loads(text)
        workers = content.pop("processes", [{}])
        return list(content), list(workers[0])
    if "xml" in query:
        root = xml.etree.ElementTree.fromstring(text)
        processes = root.find("processes")
        fields = [child.tag for child in root if child is not processes]
        return fields, [child.tag for child in processes[0]] if processes is not None else []
    if "html" in query:
        # php-fpm writes its doctype by hand, but the tables are well formed.
        rows = Table(text[text.index("<table") : text.rindex("</table>") + 8]).rows
        pairs = [row[0] for row in rows if len(row) == 2]
        return pairs, next((row for row in rows if len(row) > 2), [])
    if "openmetrics" in query:
        assert text.endswith("# EOF\n")
        return re.findall(r"^([a-z_]+)", text, re.MULTILINE), re.findall(r"^(# TYPE phpfpm.*)", text, re.MULTILINE)
    blocks = [re.findall(r"^([A-Za-z ]+):", block, re.MULTILINE) for block in text.split("*" * 24)]
    return blocks[0], blocks[1] if len(blocks) > 1 else []


def ask(address: str, query: str = "", path: str = "/status", method: str = "GET", *, keep: bool = False) -> str:
    """Ask once over FastCGI; return the output up to END_REQUEST."""
    with socket.socket(socket.AF_UNIX) as client:
        # With a time limit a full backlog would be an error (connect(2)).
        client.connect(address)
        client.settimeout(PATIENCE)
        client.sendall(request(query, path, method, keep=keep))
        return answer(client)


def request(query: str = "", path: str = "/status", method: str = "GET", *, keep: bool = False) -> bytes:
    """Return a request as a web server sends it."""
    uri = f"{path}?{query}" if query else path
    variables = {
        "SCRIPT_NAME": path,
        "SCRIPT_FILENAME": path,
        "REQUEST_URI": uri,
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
    }
    pairs = [(name.encode(), value.encode()) for name, value in variables.items()]
    return encode_request(encode_params(pairs), keep=keep, ends=True)


def answer(client: socket.socket) -> str:
    """Read one answer."""
    reader = ResponseReader()
    output = b""
    while data := client.recv(65536):
        reader.receive(data)
        while (event := reader.next_event()) is not None:
            if isinstance(event, Stdout):
                output += event.data
            elif isinstance(event, End):
                assert (event.app_status, event.protocol_status) == (0, 0)
                return output.decode()
    raise AssertionError(f"no end after {output!r}")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path."""
    path = tempfile.mkdtemp(dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def php_fpm(directory: Path) -> Iterator[str]:
    """The address of a real php-fpm with a status page."""
    need("php-fpm8.2")
    user = "user = nobody\ngroup = nogroup\n" if os.geteuid() == 0 else ""
    config = script(
        directory / "conf",
        f"[global]\nerror_log = {directory}/log\ndaemonize = no\n[blog]\n{user}listen = {directory}/fpm\npm = static\n"
        "pm.max_children = 2\npm.status_path = /status\nping.path = /ping\n",
    )
    program = shutil.which("php-fpm8.2", path=os.environ["PATH"] + ":/usr/sbin")
    with subprocess.Popen([str(program), "-n", "-F", "-y", config], stderr=subprocess.DEVNULL) as process:
        try:
            log = directory / "log"
            wait_until(lambda: "" if log.exists() and "ready to handle" in log.read_text() else "not ready")
            yield f"{directory}/fpm"
        finally:
            process.terminate()


@pytest.mark.parametrize("query", [name + full for name in FORMATS for full in ("", "&full")])
def test_php_fpm_has_these_fields(php_fpm: str, query: str) -> None:
    """Ours begin with php-fpm's, in its order; a program that reads php-fpm's page reads ours."""
    header, _, theirs = ask(php_fpm, query).partition("\r\n\r\n")
    ours = page(query)
    their_names, their_workers = names(query, theirs)
    our_names, our_workers = names(query, ours)
    assert their_names
    assert our_names[: len(their_names)] == their_names
    assert len(our_names) > len(their_names)
    assert our_workers == their_workers
    if "openmetrics" not in query:
        assert bool(our_workers) == ("full" in query)
    content_type = render(query, CONFIG, SNAPSHOT, Counters(0.0), 1.0).content_type
    assert f"content-type: {content_type}".lower() in header.lower()
    for name, line in zip(their_names, theirs.splitlines(), strict=False) if query in ("", "&full") else ():
        # The values stand in the same column.
        assert ours.splitlines()[their_names.index(name)].index(": ") == line.index(": ")


def test_php_fpm_has_these_types(php_fpm: str) -> None:
    """Numbers are numbers of the same kind."""
    theirs = json.loads(ask(php_fpm, "json&full").partition("\r\n\r\n")[2])
    ours = json.loads(page("json&full"))
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
    for name, value in theirs["processes"][0].items():
        assert type(ours["processes"][0][name]) is type(value), name


def test_ping_as_php_fpm(php_fpm: str) -> None:
    """The same header fields and body, but for the length that ours tells."""
    theirs = [line for line in ask(php_fpm, path="/ping").split("\r\n") if not line.startswith("X-Powered-By")]
    ours = respond(CONFIG, {"SCRIPT_NAME": "/ping"}, lambda query: Page("", b"")).decode().split("\r\n")
    assert {line.lower() for line in theirs} == {line.lower() for line in ours} - {"content-length: 4"}


def test_values() -> None:
    """What the fields say."""
    content = json.loads(page("json&full"))
    workers = content.pop("processes")
    # 112.5 is 3600 on the wall's clock.
    assert content.pop("start time") == 3577
    limits = {name: content.pop(name) for name in list(content)[13:]}
    assert list(content.values()) == ["blog", "dynamic", 22, 40, 3, 5, 511, 2, 1, 3, 2, 6, 7]
    assert limits["max children"] == 4
    assert limits["request terminate timeout"] == 30
    assert limits["trouble"] == "-"
    assert list(workers[0].values()) == [
        *(7, "Running", 3587, 12, 3, 2_500_000, "POST", "/p?q=1", 5, "joe", "/srv/p", 0.0, 12345),
    ]
    # Half a second, a quarter of it computing.
    assert list(workers[1].values()) == [
        *(8, "Idle", 3588, 11, 1, 500_000, "GET", "/", 0, "-", "/srv/i", 50.0, 999),
    ]
    assert list(workers[2].values()) == [9, "Idle", 3589, 10, 0, 0, "-", "-", 0, "-", "-", 0.0, 99]


def test_worker_metrics() -> None:
    """Each worker has its figures, each limit its gauge; every sample belongs to the family before it."""
    text = page("openmetrics")
    family = kind = ""
    for line in text.splitlines()[:-1]:
        if line.startswith("# HELP "):
            family = line.split()[2]
        elif line.startswith("# TYPE "):
            assert line.split()[2] == family
            kind = line.split()[3]
        else:
            suffix = "_total" if kind == "counter" and family.startswith("fcgi_pool") else ""
            assert re.fullmatch(re.escape(family + suffix) + r'(\{(\w+="[^"]*",?)+\})? [0-9]+(\.[0-9]+)?', line), line
    for sample in (
        'fcgi_pool_max_children{pool="blog"} 4',
        'fcgi_pool_can_start{pool="blog"} 1',
        'fcgi_pool_worker_busy{pool="blog",pid="7"} 1',
        'fcgi_pool_worker_busy{pool="blog",pid="8"} 0',
        'fcgi_pool_worker_state_seconds{pool="blog",pid="7"} 2.5',
        'fcgi_pool_worker_uptime_seconds{pool="blog",pid="9"} 10.5',
        'fcgi_pool_worker_memory_bytes{pool="blog",pid="7"} 12345',
        'fcgi_pool_worker_requests_total{pool="blog",pid="7"} 3',
    ):
        assert f"\n{sample}\n" in text


@pytest.mark.parametrize("query", [f"{name}&full" for name in FORMATS])
def test_what_a_client_sends_stays_text(query: str) -> None:
    """A path that is markup, a line's end, a control character or no UTF-8 changes nothing around it."""
    evil = RequestInfo(EVIL, EVIL, 0, EVIL, EVIL, 100.0)
    text = page(query, Snapshot((WorkerState(7, 100.0, True, 110.0, 3, 1, evil),)))
    assert "<c>" not in text or "json" in query or query == "&full"
    assert names(query, text) == names(query, page(query, Snapshot(SNAPSHOT.workers[:1])))
    if "json" in query:
        assert json.loads(text)["processes"][0]["request uri"] == EVIL


def test_counters() -> None:
    """Requests of all workers are summed up, also of those that have ended and of another of the same pid."""
    counters = Counters(0.0)

    def note(*workers: tuple[int, float, int], queue: int = 0) -> int:
        states = tuple(WorkerState(pid, started, bool(count % 2), 1.0, count, 0) for pid, started, count in workers)
        counters.note(Snapshot(states, queue))
        return counters.accepted

    assert note((1, 0.0, 3), (2, 0.0, 0), queue=5) == 3
    assert note((1, 0.0, 3), (2, 0.0, 1)) == 4
    assert note((2, 0.0, 4)) == 7
    # Another worker with the pid of one that has ended.
    assert note((2, 9.0, 2)) == 9
    # One that begins to tell itself counts from its own start.
    assert note((2, 9.0, 1)) == 9
    assert note((2, 9.0, 2)) == 10
    counters.ended(2, 9.0, 7)
    assert counters.accepted == 15
    # A page that is made of the last look.
    assert note((2, 9.0, 2)) == 15
    assert note() == 15
    assert (counters.max_queue, counters.max_active) == (5, 2)
    counters.trouble = "cannot start: <no such file>"
    text = render("html", CONFIG, SNAPSHOT, counters, 1.0).body.decode()
    assert "cannot start: &lt;no such file&gt;" in text
    assert 'can_start{pool="blog"} 0' in render("openmetrics", CONFIG, SNAPSHOT, counters, 1.0).body.decode()


class Served:
    """A status server that runs in a thread."""

    def __init__(self, directory: Path, answer: Callable[[Mapping[str, str]], bytes] | None = None) -> None:
        self.address = f"{directory}/status"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(64)
        self.server = StatusServer(
            self.listener,
            answer or (lambda variables: respond(CONFIG, variables, render_now)),
        )
        self.tick_at = 0.0
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            self.server.serve(0.02)
            self.server.tick(self.tick_at)

    def connect(self, data: bytes = b"") -> socket.socket:
        """Connect and send."""
        client = socket.socket(socket.AF_UNIX)
        # With a time limit a full backlog would be an error (connect(2)).
        client.connect(self.address)
        client.settimeout(PATIENCE)
        client.sendall(data)
        return client

    def close(self) -> None:
        """Stop."""
        self._ends = True
        self._thread.join()
        self.server.close()
        self.listener.close()


def render_now(query: str) -> Page:
    """Return the page as the manager would."""
    return render(query, CONFIG, SNAPSHOT, Counters(90.0), 112.5)


@pytest.fixture
def served(directory: Path) -> Iterator[Served]:
    """A running status server, which leaves no descriptor."""
    before = descriptors(os.getpid())
    server = Served(directory)
    yield server
    server.close()
    assert descriptors(os.getpid()) == before


def test_status_server(served: Served) -> None:
    """Pages by path and query, HEAD without a body, anything else is not found."""
    assert json.loads(ask(served.address, "json").partition("\r\n\r\n")[2])["pool"] == "blog"
    assert ask(served.address, path="/ping").endswith("\r\n\r\npong")
    header, _, body = ask(served.address, method="HEAD").partition("\r\n\r\n")
    assert not body
    assert "Content-Length: " in header
    assert ask(served.address, path="/else").startswith("Status: 404 Not Found\r\n")
    # Apache's mod_proxy_fcgi and others give the path in other variables.
    for variables in ({"REQUEST_URI": "/status?xml"}, {"SCRIPT_NAME": "", "PATH_INFO": "/status"}):
        assert b"404" not in respond(CONFIG, variables, render_now)


def test_status_server_keeps_connections(served: Served) -> None:
    """Several requests on one connection, also sent at once; without FCGI_KEEP_CONN it ends with the answer."""
    with served.connect() as client:
        for _ in range(3):
            client.sendall(request(path="/ping", keep=True))
            assert answer(client).endswith("pong")
        client.sendall(request(path="/ping", keep=True) * 100 + request(path="/ping"))
        data = b""
        while piece := client.recv(65536):
            data += piece
        assert data.count(b"pong") == 101


def test_status_server_and_management_records(served: Served) -> None:
    """GET_VALUES is answered; an aborted request ends; a role that is not played is refused, and the rest goes on."""
    with served.connect(get_values([b"FCGI_MPXS_CONNS"])) as client:
        reader = ResponseReader()
        reader.receive(client.recv(4096))
        assert reader.next_event() == Values({b"FCGI_MPXS_CONNS": b"0"})
    begun = request(keep=True)[:16]
    with served.connect(begun + ABORT + request(path="/ping", keep=True)) as client:
        assert answer(client) == ""
    with served.connect(encode_request(b"", role=Role.FILTER, keep=False, ends=True)) as client:
        reader = ResponseReader()
        reader.receive(client.recv(4096))
        assert reader.next_event() == End(0, 3)
        assert client.recv(4096) == b""


def test_bad_peers_lose_only_their_own_connection(served: Served) -> None:
    """Garbage, half requests, floods and silence: the others are answered."""
    with contextlib.ExitStack() as stack:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x02" * 64, encode_record(1, 1, b"\0" * 3), b"\xff" * 9000):
            client = stack.enter_context(served.connect(data))
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(4096) == b""
        for data in (b"", b"\x01", request()[:40], request(keep=True)):
            stack.enter_context(served.connect(data))
        assert "blog" in ask(served.address)
        # More than there is room for: who has waited longest goes.
        first = stack.enter_context(served.connect())
        for _ in range(200):
            stack.enter_context(served.connect())
        assert "blog" in ask(served.address)
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        last = stack.enter_context(served.connect(request(path="/ping", keep=True)))
        assert answer(last).endswith("pong")
        # When their time is over, all go.
        served.tick_at = time.monotonic() + 3600.0
        with contextlib.suppress(ConnectionResetError):
            assert last.recv(1) == b""
        wait_until(lambda: "" if repr(served.server) == "<StatusServer 0 connections>" else repr(served.server))


def test_who_does_not_take_the_answer_holds_nobody_up(directory: Path) -> None:
    """An answer larger than the socket's buffers waits for its reader, who gets all of it."""
    large = b"Content-Type: text/plain\r\n\r\n" + bytes(range(256)) * 8192
    before = descriptors(os.getpid())
    served = Served(directory, lambda variables: large if variables["SCRIPT_NAME"] == "/large" else b"\r\nsmall")
    try:
        with served.connect(request(path="/large", keep=True) * 2) as slow:
            for _ in range(3):
                assert ask(served.address).endswith("small")
            reader = ResponseReader()
            received = []
            ended = 0
            while ended < 2:
                reader.receive(slow.recv(4096))
                while (event := reader.next_event()) is not None:
                    if isinstance(event, Stdout):
                        received.append(event.data)
                    elif isinstance(event, End):
                        ended += 1
                        if ended < 2:
                            reader.begin()
            assert b"".join(received) == large * 2
    finally:
        served.close()
    assert descriptors(os.getpid()) == before


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_status_through_nginx(served: Served, directory: Path) -> None:
    """A real web server in front, without and with kept connections."""
    need("nginx")
    program = str(shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"))
    variables = "".join(
        f"fastcgi_param {name} {value};"
        for name, value in (
            ("SCRIPT_NAME", "$fastcgi_script_name"),
            ("QUERY_STRING", "$query_string"),
            ("REQUEST_METHOD", "$request_method"),
            ("REQUEST_URI", "$request_uri"),
        )
    )
    temporary = "".join(
        f"{kind}_temp_path {directory}/t_{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    config = script(
        directory / "nginx.conf",
        f"{user} daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors; events {{}}\n"
        f"http {{ access_log off; {temporary}\n upstream kept {{ server unix:{served.address}; keepalive 2; }}\n"
        f" server {{ listen unix:{directory}/http; {variables}\n"
        f"  location / {{ fastcgi_pass unix:{served.address}; }}\n"
        "  location /ping { fastcgi_pass kept; fastcgi_keep_conn on; } } }",
    )
    command = [program, "-e", f"{directory}/errors", "-p", str(directory), "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: "" if _listens(f"{directory}/http") else "nginx does not listen")
            for _ in range(3):
                for path, wanted in (("/status?json", b'"pool":"blog"'), ("/ping", b"pong"), ("/else", b" 404 ")):
                    with socket.socket(socket.AF_UNIX) as client:
                        client.settimeout(PATIENCE)
                        client.connect(f"{directory}/http")
                        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                        data = b""
                        while piece := client.recv(65536):
                            data += piece
                    assert wanted in data
        finally:
            process.terminate()


PYTHON_WORKER = """
import faulthandler, os, sys, threading
number, descriptor = os.environ["FCGI_POOL_TRACE"].split(":")
faulthandler.register(int(number), file=int(descriptor), all_threads=True, chain=False)
if len(sys.argv) > 1 and os.fork():
    os.wait()
def inner():
    sys.stdin.buffer.raw.read(1)
def outer():
    inner()
threading.Thread(target=threading.Event().wait, daemon=True).start()
outer()
"""


@pytest.mark.parametrize("forks", [False, True])
def test_slow_log_of_python(directory: Path, forks: bool) -> None:
    """A worker that is armed writes the stack of every thread, and goes on; so does one that it forked."""
    trace = Trace()
    program = script(directory / "worker.py", PYTHON_WORKER)
    worker = subprocess.Popen(
        [sys.executable, str(program), *["forks"] * forks],
        stdin=subprocess.PIPE,
        env={**os.environ, "FCGI_POOL_TRACE": trace.environment},
        pass_fds=[trace.fileno()],
    )
    log = SlowLog(f"{directory}/slow")
    with worker, contextlib.closing(trace):
        assert worker.stdin

        def reader() -> int:
            processes = [worker.pid, *proc.descendants(worker.pid)]
            # Two threads and reading: both are where they are to be seen.
            return next((p for p in processes if proc.call(p).reads(0) and not proc.is_single_threaded(p)), 0)

        wait_until(lambda: "" if reader() else "does not read yet")
        seen = WorkerState(worker.pid, 1.0, True, 5.0, 1, 0, RequestInfo("GET", "/slow", 0, "", "/srv/slow.py", 5.0))
        for turn in (1, 2):
            log.begin("wiki", seen, 10.0 * turn, trace)
            due = log.write_due(10.0 * turn)
            assert due is not None
            wait_until(lambda: "" if re.search("wait(.|\n)* in outer(.|\n)*module", trace.read()) else "no stack")
            assert log.write_due(due) is None
            text = (directory / "slow").read_text()
            assert text.count(" inner()") == turn
        worker.stdin.write(b"x")
    assert worker.returncode == 0
    log.close()
    first = text.split("\n\n")[0].splitlines()
    assert first[0] == ""
    assert re.fullmatch(r"\[\d\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d\]  \[pool wiki\] pid \d+", first[1])
    assert first[2:5] == ["script_filename = /srv/slow.py", "request = GET /slow", "duration = 5.000"]
    assert any(re.fullmatch(rf"\[0x[0-9a-f]+\] inner\(\) {program}:\d+", line) for line in first), text
    assert all(re.fullmatch(r"\[0x[0-9a-f]+\] .*\(\) .*:\d+", line) for line in first[5:]), text


def test_slow_log_of_other_programs(directory: Path) -> None:
    """What /proc tells: where it waits, what it has open, and its children."""
    need("php-cgi")
    gate = directory / "gate"
    os.mkfifo(gate)
    page = script(directory / "page.php", f"<?php $p = popen('cat {gate}', 'r'); echo fgets($p);")
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
        contextlib.closing(Trace()) as trace,
        contextlib.closing(SlowLog(f"{directory}/slow")) as log,
    ):
        listener.bind(f"{directory}/socket")
        listener.listen()
        worker = subprocess.Popen(["php-cgi"], stdin=listener, stderr=subprocess.DEVNULL, pass_fds=[trace.fileno()])
        with worker:
            client.connect(f"{directory}/socket")
            pairs = [(b"SCRIPT_FILENAME", os.fsencode(page)), (b"REQUEST_METHOD", b"GET"), (b"REDIRECT_STATUS", b"1")]
            client.sendall(encode_request(encode_params(pairs), keep=False, ends=True))

            def waits() -> bool:
                children = proc.descendants(worker.pid)
                cats = [child for child in children if proc.read(child, "comm").strip() == "cat"]
                # Asleep, and not for a page of its own: at the gate.
                return any(state(cat) == "S" for cat in cats) and proc.call(worker.pid).takes_descriptor()

            wait_until(lambda: "" if waits() else "not yet")
            # Not armed: php-cgi must not get a signal that would end it.
            log.begin("blog", WorkerState(worker.pid, 1.0, True, 5.0, 1, 0), 10.0, trace)
            assert log.write_due(10.0) is None
            gate.write_text("passed\n")
            assert "passed" in answer(client)
            client.close()
            worker.terminate()
    text = (directory / "slow").read_text()
    assert re.search(rf"^\[{worker.pid}\] php-cgi\S* waits in \w+\(\), system call \d+, descriptor \d+$", text, re.M)
    assert f" = {page}\n" in text
    assert re.search(r"^\[\d+\] cat waits in ", text, re.M)
    assert "script_filename = -\nduration = 5.000\n" in text


def test_slow_log_of_a_worker_that_has_gone(directory: Path) -> None:
    """A worker that ends meanwhile, or writes nothing, is no error; a path that cannot be opened is."""
    log = SlowLog(f"{directory}/slow")
    gone = subprocess.Popen(["true"])
    gone.wait()
    with contextlib.closing(Trace()) as trace:
        log.begin("blog", WorkerState(gone.pid, 1.0, True, 5.0, 1, 0), 10.0, trace)
    os.rename(f"{directory}/slow", f"{directory}/slow.1")
    log.reopen()
    deaf = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal({TRACE_SIGNAL}, lambda *a: 0); print(); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with deaf, contextlib.closing(Trace()) as trace:
        assert deaf.stdout
        deaf.stdout.readline()
        log.begin("blog", WorkerState(deaf.pid, 1.0, True, 5.0, 1, 0), 10.0, trace)
        log.forget(deaf.pid)
        assert log.write_due(1e9) is None
        deaf.send_signal(signal.SIGKILL)
    log.close()
    assert (directory / "slow.1").read_text().count("[pool blog]") == 1
    text = (directory / "slow").read_text()
    assert f"[{deaf.pid}] python" in text
    with pytest.raises(FileNotFoundError):
        SlowLog(f"{directory}/none/slow")


def test_the_shape_of_frames() -> None:
    """What is not understood is kept as it is."""
    text = (
        "Thread 0x00007f01 [worker] (most recent call first):\n"
        '  File "/srv/a b.py", line 3 in f\n'
        "  ...\n"
        "\n"
        "Current thread 0x00007f02 (most recent call first):\n"
        '  File "/srv/c.py", line ??? in <module>\n'
    )
    assert frames(text) == ["[0x00007f01] f() /srv/a b.py:3", "  ...", "[0x00007f02] <module>() /srv/c.py:???"]
    info = RequestInfo("GET", "/a\nb", 0, "", "", 1.0)
    assert head("p", WorkerState(1, 0.0, True, 1.0, 1, 0, info), 3.5, 0.0).splitlines()[2:] == [
        "script_filename = -",
        "request = GET /a\\x0ab",
        "duration = 2.500",
    ]
