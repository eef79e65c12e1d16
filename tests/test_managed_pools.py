"""Pools that the front starts: their directives, and what their managers know of each request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import support
from tests.test_pool_peers import running_front

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
