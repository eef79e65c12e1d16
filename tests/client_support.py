"""What the tests about clients share: programs, clients of several addresses, what a program was told."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import misbehaviour, support

ENV = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec env\n"
FINE = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nfine\\n'\n"
ECHO = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec cat\n"
WAITS = '#!/bin/sh\ntrap \'exit 0\' TERM\necho "running $$" >&2\nsleep 600\n'
FLOODS = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec yes 'and on and on'\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of CGI programs."""
    directory = tmp_path_factory.mktemp("cgi")
    for name, text in (("env", ENV), ("fine", FINE), ("echo", ECHO), ("waits", WAITS), ("floods", FLOODS)):
        misbehaviour.program(directory / name, text)
    return directory


def request(path: str = "/cgi-bin/fine", *fields: str, close: bool = False) -> bytes:
    """The bytes of a GET."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", *fields, *(["Connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.contextmanager
def client(server: support.Server, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection from an address of this machine, which has all of 127.0.0.0/8."""
    with socket.create_connection((server.host, server.port), support.PATIENCE, source_address=(address, 0)) as sock:
        yield sock


def ask(server: support.Server, raw: bytes, address: str = "127.0.0.1") -> bytes:
    """What comes back until the server closes, b"" also for a reset."""
    with client(server, address) as sock:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(raw)
        return support.receive_all(sock)


def status(raw: bytes) -> int:
    """The status of a response, 0 for none."""
    return int(raw[9:12]) if raw.startswith(b"HTTP/1.") else 0


def told(raw: bytes) -> dict[str, str]:
    """The variables that the program `env` printed."""
    assert status(raw) == 200, raw
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", raw.decode(), re.MULTILINE))


def tls(sock: socket.socket, cert: Path) -> ssl.SSLSocket:
    """A TLS client on a connection."""
    context = ssl.create_default_context(cafile=str(cert))
    return context.wrap_socket(sock, server_hostname="localhost")
