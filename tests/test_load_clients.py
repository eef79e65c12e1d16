"""Load generators of the field as clients: every answer is counted, and is a good one."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests import support
from tests.misbehaviour import program
from tests.pool_load import front

PATHS = ("/file", "/cgi-bin/hello", "/page.php")


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def address(request, tmp_path, certificate):
    support.need("php-cgi")
    program(tmp_path / "cgi" / "hello", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello'\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "file").write_bytes(bytes(20_000))
    (tmp_path / "site" / "page.php").write_text("<?php echo str_repeat('x', 3000);")
    options = ["--cgi-dir", str(tmp_path / "cgi"), "--php", str(tmp_path / "site"), "--children", "2"]
    options += ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])] if request.param else []
    with front(*options, workers=2) as server:
        yield f"{'https' if request.param else 'http'}://127.0.0.1:{server.port}"
        assert not re.search(r'" [45]\d\d ', server.accesses.text)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("pipelined", [1, 8])
def test_h2load(address, path, pipelined):
    support.need("h2load")
    count = 150 if "cgi" in path else 1500
    command = ["h2load", "--h1", f"-n{count}", "-c12", f"-m{pipelined}", address + path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=support.PATIENCE * 4)
    assert f" {count} succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    assert f"{count} 2xx, 0 3xx, 0 4xx, 0 5xx" in done.stdout


@pytest.mark.parametrize("path", PATHS)
def test_wrk(address, path):
    support.need("wrk")
    command = ["wrk", "-t2", "-c12", "-d1s", address + path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=support.PATIENCE * 4)
    assert re.search(r"[1-9]\d* requests in", done.stdout)
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
