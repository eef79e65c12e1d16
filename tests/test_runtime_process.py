"""The Python worker as a process: how it starts, ends, and tells what it does."""

from __future__ import annotations

import ast
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_pool.scoreboard import Scoreboard
from tests.fcgi_peer import RUNTIME, Application, directory_of_applications, release, served
from tests.support import PATIENCE, ROOT, wait_until


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    """Give the socket and the directory of the applications."""
    with served(directory_of_applications(tmp_path)) as application:
        yield application


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT])
def test_an_idle_worker_ends_at_once(app: Application, number: int) -> None:
    """With a kept connection, which is closed."""
    worker = app.start("apps:hello")
    peer = app.connect()
    assert peer.ask().body == b"hello, world\n"
    worker.send_signal(number)
    assert worker.wait(PATIENCE) == 0
    assert peer.is_closed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1])
def test_a_busy_worker_ends_after_its_request(app: Application, number: int) -> None:
    """And answers what has arrived on kept connections by then."""
    worker = app.start("apps:waiting")
    other, peer = app.connect(), app.connect()
    for each in (other, peer):
        each.send()
        release(app.directory / "gate")
        assert each.receive().body == b"hello, world\n"
    peer.send()
    _wait_for_gate(app, 3)
    worker.send_signal(number)
    other.send()
    release(app.directory / "gate")
    assert peer.receive().body == b"hello, world\n"
    release(app.directory / "gate")
    assert other.receive().body == b"hello, world\n"
    assert worker.wait(PATIENCE) == 0


def _wait_for_gate(app: Application, times: int) -> None:
    """Wait until an application has come to the gate so many times."""
    mark = app.directory / "waits"
    wait_until(lambda: "" if mark.exists() and mark.stat().st_size == times else "not yet at the gate")


def test_max_requests(app: Application) -> None:
    """The worker ends after so many, all answered."""
    worker = app.start("apps:hello", environment={"FCGI_POOL_MAX_REQUESTS": "3"})
    peer = app.connect()
    for _ in range(3):
        assert peer.ask().body == b"hello, world\n"
    assert worker.wait(PATIENCE) == 0
    assert peer.is_closed()


def test_the_scoreboard(app: Application) -> None:
    """Tells what the worker does."""
    board = Scoreboard(2)
    try:
        slot = board.reserve()
        assert slot is not None
        environment = {"FCGI_POOL_SCOREBOARD": f"{board.fileno()}:{slot}"}
        worker = app.start("apps:waiting", environment=environment, descriptors=(board.fileno(),))
        wait_until(lambda: "" if board.row(slot) else "not written")
        peer = app.connect()
        peer.send("POST", b"12345", REMOTE_USER="me", SCRIPT_FILENAME="/x.py")
        wait_until(lambda: "" if (row := board.row(slot)) and row.is_busy else "not busy")
        row = board.row(slot)
        assert row
        assert (row.pid, row.method, row.uri, row.content_length) == (worker.pid, "POST", "/app/path?a=b", 5)
        assert (row.user, row.script, row.requests) == ("me", "/x.py", 1)
        release(app.directory / "gate")
        assert peer.receive().body == b"hello, world\n"
        wait_until(lambda: "" if (row := board.row(slot)) and not row.is_busy else "not idle")
    finally:
        board.close()


def test_the_trace(app: Application) -> None:
    """A signal writes where the worker is, without ending it."""
    with (app.directory / "trace").open("w+b") as file:
        environment = {"FCGI_POOL_TRACE": f"{int(signal.SIGUSR2)}:{file.fileno()}"}
        worker = app.start("apps:waiting", environment=environment, descriptors=(file.fileno(),))
        peer = app.connect()
        peer.send()
        _wait_for_gate(app, 1)
        worker.send_signal(signal.SIGUSR2)
        wait_until(lambda: "" if "in waiting" in (app.directory / "trace").read_text() else "no trace")
        release(app.directory / "gate")
        assert peer.receive().body == b"hello, world\n"


def test_another_worker_takes_what_one_cannot(app: Application) -> None:
    """A stopped worker holds up nobody who comes later."""
    first = app.start("apps:hello")
    assert app.connect().ask().body == b"hello, world\n"
    first.send_signal(signal.SIGSTOP)
    try:
        app.start("apps:hello")
        for _ in range(5):
            assert app.connect().ask().body == b"hello, world\n"
    finally:
        first.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the application is missing"),
        (["a:b", "c:d"], "two applications, a:b and c:d"),
        (["--fast", "a:b"], "unknown option --fast"),
        (["a:b", "--runner"], "--runner needs a value"),
        (["a:b", "--runner", "x"], "unknown runner 'x'; write one of own, flup-threaded, flup-forked"),
        (["a:b", "--threads=many"], "--threads is 'many'; write a number"),
        (["a:b", "--chdir=/no/such"], "cannot change to the directory /no/such: No such file or directory"),
        (["nosuch:app"], "there is no module 'nosuch'"),
        (["apps.nosuch:app"], "there is no module 'apps.nosuch'"),
        (["apps:nosuch"], "the module 'apps' has no 'nosuch'"),
        (["apps:not_callable"], "apps:not_callable is not callable"),
    ],
)
def test_mistakes_are_told_in_one_line(app: Application, arguments: list[str], words: str) -> None:
    """With exit status 2."""
    command = [sys.executable, str(RUNTIME), *arguments]
    done = subprocess.run(
        command, cwd=app.directory, stdin=app.listener, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FCGI_POOL_MAX_REQUESTS", "many"),
        ("FCGI_POOL_SCOREBOARD", "99:0"),
        ("FCGI_POOL_SCOREBOARD", "x"),
        ("FCGI_POOL_HANDOVER", "99:98"),
        ("FCGI_POOL_HANDOVER", "x"),
        ("FCGI_POOL_TRACE", "9"),
        ("FCGI_POOL_TRACE", "12:99"),
    ],
)
def test_mistakes_in_the_environment(app: Application, name: str, value: str) -> None:
    """The same."""
    assert app.start("apps:hello", environment={name: value}).wait(PATIENCE) == 2
    text = app.errors.read_text()
    assert f"fcgi_pool.runtime: {name} is '{value}'" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(("stdin", "words"), [("null", "descriptor 0 is no socket"), ("socket", "does not listen")])
def test_descriptor_0_must_be_a_listening_socket(tmp_path: Path, stdin: str, words: str) -> None:
    """Started by hand, it says so."""
    with socket.socket(socket.AF_UNIX) as unbound:
        command = [sys.executable, str(RUNTIME), "--chdir", str(directory_of_applications(tmp_path)), "apps:hello"]
        given = unbound if stdin == "socket" else subprocess.DEVNULL
        done = subprocess.run(command, stdin=given, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert words in done.stderr


def test_an_application_that_cannot_be_imported(app: Application) -> None:
    """Its traceback is shown whole."""
    (app.directory / "broken.py").write_text("import nosuch_dependency\n")
    assert app.start("broken:app").wait(PATIENCE) == 1
    assert "No module named 'nosuch_dependency'" in app.errors.read_text()


def test_a_callable_within_a_class(app: Application) -> None:
    """A dotted path."""
    app.start("apps:Namespace.inner")
    assert app.connect().ask().body == b"hello, world\n"


@pytest.mark.parametrize("runner", ["flup-threaded", "flup-forked"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_flup(app: Application, runner: str, number: int) -> None:
    """The same application on flup's servers, which end on a signal with a connection kept."""
    worker = app.start("apps:hello", "--runner", runner)
    peer = app.connect()
    body = b"x" * 100_000
    assert peer.ask("POST", body).body == b"hello, world\n"
    assert peer.ask().body == b"hello, world\n"
    worker.send_signal(number)
    assert worker.wait(PATIENCE) == 0


def test_old_versions_understand_it() -> None:
    """What runs in the application's installation is written for Python 3.9."""
    paths = [
        *ROOT.glob("fcgi_pool/runtime/*.py"),
        *ROOT.glob("fcgi_pool/protocol/*.py"),
        ROOT / "fcgi_pool/handover.py",
        ROOT / "fcgi_pool/scoreboard.py",
    ]
    assert len(paths) > 10
    for path in paths:
        text = path.read_text()
        ast.parse(text, feature_version=(3, 9))
        assert "slots=True" not in text, path
        assert path.name == "__init__.py" or "from __future__ import annotations" in text, path
