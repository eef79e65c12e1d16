"""Fixtures: servers that are stopped and checked for what they leave."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import support
from tests.misbehaviour import Gate
from tests.support import Server, need, start_server

# How long a case takes says more about the machine than about the code.
settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--warm", action="store_true", help="start each server that has a CGI directory with --warm")


def pytest_configure(config: pytest.Config) -> None:
    support.is_warm = config.getoption("--warm")


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a real server: ``serve("--debug", cgi_dir=PATH)``.

    At the test's end it must be idle again, with no program, zombie, descriptor or temporary file left, and must stop
    well on TERM, with no process left.
    """
    servers: list[Server] = []

    def start(*options: str, **arguments: object) -> Server:
        temp_dir = arguments.pop("temp_dir", None) or tmp_path_factory.mktemp("spool")
        assert isinstance(temp_dir, Path)
        server = start_server(*options, temp_dir=temp_dir, **arguments)  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    failures = []
    for server in servers:
        try:
            server.finish()
        except BaseException as failure:
            failures.append(failure)
            server.process.kill()
            server.process.wait()
    if failures:
        raise failures[0]


@pytest.fixture
def configured(serve: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    """Start a server by the text of a file that begins in the table [server]: ``configured("[[routes]]…")``."""

    def start(text: str, workers: int = 1) -> Server:
        path = tmp_path / "gateway.toml"
        path.write_text(f'[server]\nlisten = ["127.0.0.1:0"]\nworkers = {workers}\n{text}')
        return serve(config=path, workers=workers)

    return start


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """What programs wait at."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key, PEM."""
    need("openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return cert, key
