"""Pools that the front starts: their directives, and what their managers know of each request."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests import support
from tests.pool_load import Client, Held, build, front, page
from tests.pool_support import ask, variables
from tests.test_pool_peers import running_front, short_directory

PAGES = {
    "pid.php": '<?php header("Content-Type: text/plain"); echo getmypid();',
    "stop.php": '<?php exec("kill -STOP " . getmypid());',
}


@pytest.fixture
def site(tmp_path):
    """A directory of PHP pages."""
    support.need("php-cgi")
    for name, text in PAGES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_stopped_worker_is_replaced(site):
    options = ["--pool-set", "request_terminate_timeout=500ms", "--pool-set", "max_requests=100"]
    with running_front("--php", str(site), "--children", "1", *options) as server:
        first = server.get("/pid.php").text
        # Told to end, and to go on for that, it may still finish.
        assert server.get("/stop.php").status in (200, 502)
        server.wait_for_log(rf"worker {first} is terminated: its request took .*request_terminate_timeout is 0.5 s")
        second = server.get("/pid.php").text
        assert second != first
        # php-cgi is told to count.
        assert "PHP_FCGI_MAX_REQUESTS=100" in Path(f"/proc/{second}/environ").read_text().split("\0")


# What is known of each request.


class Managed:
    """A front with one pool, and the pool's status."""

    def __init__(self, server, status, kind):
        self.server = server
        self._status = status
        self.path = page(kind)

    def hold(self):
        """A request that is under way, and when it was known to be."""
        began = time.monotonic()
        held = Held(self.server, self.path).wait()
        return held, began, time.monotonic()

    def get(self, client, number, more=""):
        """Return the pid that answers a request."""
        outcome = client.ask(self.path, number, more=more)
        assert outcome.status == 200, outcome
        return int(outcome.body.split()[1])

    def status(self):
        """Return the status as it is now, and when it was asked and answered."""
        asked = time.monotonic()
        reply = ask(self._status, variables(uri="/status?full&json"))
        return json.loads(reply.body), asked, time.monotonic()

    def when(self, is_wanted):
        """Return the status once a process of it is as wanted, and that process."""
        found = []

        def trouble():
            status = self.status()
            wanted = [process for process in status[0]["processes"] if is_wanted(process)]
            found[:] = [(*status, process) for process in wanted]
            return "" if found else str(status[0])

        support.wait_until(trouble)
        return found[0]

    def when_at(self, held):
        """The same for the process that is at a request."""
        return self.when(lambda process: re.search(rf"[?&]n={held.number}(&|$)", process["request uri"]))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A program of each kind."""
    directory = tmp_path_factory.mktemp("programs")
    build(directory)
    return directory


@pytest.fixture
def managed(programs):
    """Start a front with a pool: ``managed("c", "KEY=VALUE")``."""
    with contextlib.ExitStack() as stack:

        def start(kind, *directives, children=1):
            # A socket's path is short.
            directory = stack.enter_context(short_directory())
            mount = ["--php", str(programs / "site")] if kind == "php" else ["--pool", f"/app/={programs / 'answer'}"]
            status = f"{directory}/status"
            sets = [f"--pool-set={directive}" for directive in (f"status_listen=unix:{status}", *directives)]
            server = stack.enter_context(front(*mount, "--children", str(children), *sets))
            return Managed(server, status, kind)

        yield start


def manager(pool):
    """Return the pid of the pool's manager."""
    found = support.children(pool.server.pid)
    (pid,) = [pid for pid in found if "fcgi_pool" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    return pid


@pytest.mark.parametrize("kind", ["php", "c"])
def test_each_request_has_its_own_age_and_uri(managed, kind):
    pool = managed(kind)
    first, began, is_under_way = pool.hold()
    status, asked, answered, process = pool.when_at(first)
    assert (process["state"], process["requests"], process["request method"]) == ("Running", 1, "GET")
    assert asked - is_under_way <= process["request duration"] / 1e6 <= answered - began
    first.release()
    second, began, is_under_way = pool.hold()
    status, asked, answered, process = pool.when_at(second)
    assert (process["state"], process["requests"], status["accepted conn"]) == ("Running", 2, 2)
    assert asked - is_under_way <= process["request duration"] / 1e6 <= answered - began
    second.release()
    pool.when(lambda process: process["state"] == "Idle")


@pytest.mark.parametrize("kind", ["php", "c"])
def test_a_request_does_not_pay_for_the_one_before(managed, kind):
    """Together they take longer than one may."""
    pool = managed(kind, "request_terminate_timeout=1800ms")
    with Client(pool.server.port) as client:
        assert pool.get(client, 1, "&ms=900") == pool.get(client, 2, "&ms=1200")
    assert "is terminated" not in pool.server.errors.text


def test_a_request_that_takes_too_long_is_named(managed):
    pool = managed("c", "request_terminate_timeout=1s", "request_slowlog_timeout=500ms", "slowlog=-")
    held, _, _ = pool.hold()
    pool.server.wait_for_log(rf"worker \d+ is terminated: .*: GET /app/\?n={held.number}&")
    assert re.search(rf"^request = GET /app/\?n={held.number}&", pool.server.errors.text, re.MULTILINE)
    held.result()


def test_short_requests_are_counted(managed):
    """Those of one connection between two looks, too."""
    pool = managed("c", "max_requests=6")
    held, _, _ = pool.hold()
    *_, process = pool.when_at(held)
    held.release()
    with Client(pool.server.port) as client:
        assert [pool.get(client, number) for number in range(5)] == [process["pid"]] * 5
    status, *_ = pool.when(lambda other: other["pid"] != process["pid"])
    assert status["accepted conn"] == 6


def test_a_killed_front_worker_leaves_nothing_said(managed):
    pool = managed("c", children=2)
    held, _, _ = pool.hold()
    *_, process = pool.when_at(held)
    (worker,) = set(pool.server.workers()) - {manager(pool)}
    os.kill(worker, signal.SIGKILL)
    pool.server.wait_for_log("worker 1 .* died")
    held.let_go()
    held.result()
    pool.when(lambda other: other["pid"] == process["pid"] and other["state"] == "Idle")
    second, began, is_under_way = pool.hold()
    status, asked, answered, process = pool.when_at(second)
    assert asked - is_under_way <= process["request duration"] / 1e6 <= answered - began
    assert (status["active processes"], status["accepted conn"]) == (1, 2)
    second.release()


def test_a_manager_that_was_killed_is_told_again(managed):
    pool = managed("c")
    held, _, _ = pool.hold()
    pool.when_at(held)
    so_far = len(pool.server.errors.text)
    os.kill(manager(pool), signal.SIGKILL)
    held.result()
    pool.server.wait_for_log("pool app: 1 ×", start=so_far)
    second, _, _ = pool.hold()
    status, *_, process = pool.when_at(second)
    assert (status["accepted conn"], process["requests"]) == (1, 1)
    second.release()
