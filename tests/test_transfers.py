"""Large transfers, and clients that are slow, stuck or gone in the midst of one."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import support
from tests.real_client import GIB, PART, Ending, Gate, Memory, Stream, large_file, spooled

MIB = 1 << 20

# What one process of the server may need for a transfer, however large that is.
FLAT = 64 * MIB

# How much the server takes off a program for a client that is slow, at most, and something for what is under way.
BUFFER = 64 * MIB + 4 * MIB


@dataclass
class Large:
    path: Path
    sum: str


@pytest.fixture(scope="module")
def gibibyte(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "gibibyte"
    yield Large(path, large_file(path))
    path.unlink()


@pytest.fixture
def programs(tmp_path):
    """Where a test puts its programs; `sum` is there: the SHA-256 and the length of what comes in."""
    directory = tmp_path / "cgi"
    directory.mkdir()
    support.script(
        directory / "sum",
        f"#!{sys.executable} -ES\n"
        "import hashlib, os\n"
        "sum, size = hashlib.sha256(), 0\n"
        "while piece := os.read(0, 1 << 20):\n"
        "    sum.update(piece)\n"
        "    size += len(piece)\n"
        "print('Content-Type: text/plain\\n')\n"
        "print(sum.hexdigest(), size, os.environ.get('CONTENT_LENGTH'))\n",
    )
    return directory


def own(server) -> list[int]:
    """The server's own processes, while no program runs."""
    assert server.get("/cgi-bin/sum", method="POST", body=b"x").body.split()[1:] == [b"1", b"1"]
    return [server.pid, *support.children(server.pid)]


def curl(server, name, *options, **more):
    support.need("curl")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", *options]
    return subprocess.run([*command, f"http://127.0.0.1:{server.port}/cgi-bin/{name}"], check=False, **more)


# 1 GiB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("http", "framing"), [("httptools", "length"), ("httptools", "chunked"), ("h11", "length"), ("h11", "chunked")]
)
def test_upload_of_a_gibibyte(serve, programs, gibibyte, http, framing):
    server = serve("--http", http, cgi_dir=programs)
    memory = Memory(own(server))
    with gibibyte.path.open("rb") as content:
        source = str(gibibyte.path) if framing == "length" else "-"
        done = curl(server, "sum", "-T", source, stdin=content, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == [gibibyte.sum, str(GIB), str(GIB)]
    assert memory.growth() < FLAT
    server.wait_for_access(r'"PUT /cgi-bin/sum HTTP/1.1" 200 .* exit=0 outcome=ok')


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["length", "chunked", "until the close"])
def test_download_of_a_gibibyte(serve, programs, gibibyte, framing):
    head = "Content-Type: application/octet-stream\\n" + (f"Content-Length: {GIB}\\n" if framing == "length" else "")
    support.script(programs / "file", f"#!/bin/sh\nprintf '{head}\\n'\nexec cat '{gibibyte.path}'\n")
    server = serve(cgi_dir=programs)
    memory = Memory(own(server))
    support.need("curl")
    options = ["--http1.0"] if framing == "until the close" else []
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", *options]
    with subprocess.Popen(
        [*command, f"http://127.0.0.1:{server.port}/cgi-bin/file"], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout
        digest = hashlib.file_digest(client.stdout, "sha256").hexdigest()
    assert client.returncode == 0
    assert digest == gibibyte.sum
    assert memory.growth() < FLAT
    server.wait_for_access(rf'"GET /cgi-bin/file HTTP/1.[01]" 200 {GIB} .* exit=0 outcome=ok')


@pytest.mark.slow
def test_download_of_a_gibibyte_by_a_slow_client(serve, programs, gibibyte):
    """However far the client is behind, the server holds no more than its buffer, in memory and on disk."""
    support.script(programs / "file", f"#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n'\nexec cat '{gibibyte.path}'\n")
    server = serve(cgi_dir=programs)
    processes = own(server)
    memory = Memory(processes)
    digest = hashlib.sha256()
    size = 0
    with Stream(server.socket(), "/cgi-bin/file") as stream:
        stream.until(b"\r\n\r\n")
        # What came with the header.
        first, stream.held = stream.held, b""
        digest.update(first)
        size += len(first)
        asked_at = 0
        while piece := stream.connection.recv(PART):
            digest.update(piece)
            size += len(piece)
            if size >= asked_at:
                asked_at += MIB
                assert spooled(processes) < BUFFER
    assert (size, digest.hexdigest()) == (GIB, gibibyte.sum)
    assert memory.growth() < FLAT


@pytest.mark.slow
def test_several_uploads_at_once(serve, programs, tmp_path):
    path = tmp_path / "part"
    digest = large_file(path, GIB // 8)
    server = serve(cgi_dir=programs)
    memory = Memory(own(server))
    support.need("curl")
    url = f"http://127.0.0.1:{server.port}/cgi-bin/sum"
    clients = [
        subprocess.Popen(
            ["curl", "--silent", "--show-error", "--noproxy", "*", "-T", path, url], stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for client in clients:
        told = client.communicate()[0]
        assert client.returncode == 0
        assert told.split() == [digest, str(GIB // 8), str(GIB // 8)]
    assert memory.growth() < FLAT


# Too large


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_upload_over_the_limit_is_413(serve, programs, tmp_path, framing):
    """With a length, curl asks first (Expect) and sends nothing; chunked, it is stopped when it is too much."""
    path = tmp_path / "part"
    large_file(path, 16 * MIB)
    flag = tmp_path / "started"
    support.script(programs / "flag", f"#!/bin/sh\n: > '{flag}'\nprintf 'Content-Type: a/b\\n\\n'\n")
    server = serve("--max-body", "1M", cgi_dir=programs)
    with path.open("rb") as content:
        source = str(path) if framing == "length" else "-"
        done = curl(
            server, "flag", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "-T", source,
            stdin=content, capture_output=True, text=True,
        )  # fmt: skip
    status, sent = done.stdout.split()
    assert status == "413"
    if framing == "length":
        assert sent == "0"
    assert not flag.exists()
    server.wait_for_access(r' 413 .* outcome=refused')


def test_upload_up_to_the_limit(serve, programs, tmp_path):
    path = tmp_path / "part"
    digest = large_file(path, MIB)
    server = serve("--max-body", "1M", cgi_dir=programs)
    for source in (str(path), "-"):
        with path.open("rb") as content:
            done = curl(server, "sum", "-T", source, stdin=content, capture_output=True, text=True)
        assert done.stdout.split() == [digest, str(MIB), str(MIB)]


# Slow clients


FILLS = """#!/bin/sh
printf 'Content-Type: application/octet-stream\\n\\n%s\\n' $$
head -c {size} /dev/zero
echo written > '{gate}'
"""


def test_a_slow_client_does_not_hold_the_program(serve, programs, tmp_path):
    """The program ends before the client has read more than its first line; then the client gets it all."""
    gate = Gate(tmp_path / "gate")
    size = 48 * MIB
    support.script(programs / "fills", FILLS.format(size=size, gate=gate.path))
    server = serve(cgi_dir=programs)
    with Stream(server.socket(), "/cgi-bin/fills") as stream:
        stream.until(b"\r\n\r\n")
        ending = Ending(int(stream.until(b"\n")))
        assert gate.said() == "written"
        ending.wait()
        assert spooled([server.pid, *server.processes()]) < BUFFER
        rest = stream.rest()
    assert rest == bytes(size)
    server.wait_for_access(r'"GET /cgi-bin/fills HTTP/1.0" 200 \d{8} .* exit=0 outcome=ok')


def test_a_slow_upload_holds_no_program(serve, programs, tmp_path):
    """The program starts when the body is complete."""
    flag = tmp_path / "started"
    support.script(programs / "flag", f"#!/bin/sh\n: > '{flag}'\nprintf 'Content-Type: a/b\\n\\n'\ncat\n")
    server = serve("--workers", "1", cgi_dir=programs)
    body = b"slowly, byte by byte"
    with server.socket() as client:
        client.settimeout(120)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = "POST /cgi-bin/flag HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        for byte in body[:-1]:
            client.sendall(bytes([byte]))
        # Others are served meanwhile, by the same worker.
        assert server.get("/cgi-bin/sum", method="POST", body=b"xy").body.split()[1] == b"2"
        assert not flag.exists()
        client.sendall(body[-1:])
        answer = b""
        while piece := client.recv(PART):
            answer += piece
    assert body in answer
    assert flag.exists()


def test_a_stalled_upload_is_408(serve, programs):
    server = serve("--body-timeout", "1", cgi_dir=programs)
    answer = server.exchange(
        b"POST /cgi-bin/sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: 200000\r\n\r\n" + bytes(150_000)
    )
    assert re.match(rb"HTTP/1\.1 408 [^\r]*\r\n", answer)
    assert b"\r\nconnection: close\r\n" in answer.lower()
    server.wait_for_access(r'"POST /cgi-bin/sum HTTP/1.1" 408 ')


@pytest.mark.parametrize("size", [32 * MIB, GIB])
def test_a_client_that_takes_nothing_is_given_up(serve, programs, tmp_path, size):
    """With what fits into the buffer, the program has long ended; with more, it is ended."""
    gate = Gate(tmp_path / "gate")
    support.script(programs / "fills", FILLS.format(size=size, gate=gate.path))
    server = serve("--send-timeout", "1", cgi_dir=programs)
    with Stream(server.socket(), "/cgi-bin/fills") as stream:
        stream.until(b"\r\n\r\n")
        ending = Ending(int(stream.until(b"\n")))
        if size < BUFFER:
            gate.said()
        server.wait_for_access(r'"GET /cgi-bin/fills HTTP/1.0" \d+ \d+ .* outcome=(timeout|client-gone)')
        ending.wait()


# Clients that vanish


def vanish(client: socket.socket, how: str) -> None:
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", [0, 1000, 2 * MIB])
@pytest.mark.parametrize("framing", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
def test_gone_in_mid_upload(serve, programs, how, sent, framing):
    flag = programs.parent / "started"
    support.script(programs / "flag", f"#!/bin/sh\n: > '{flag}'\nprintf 'Content-Type: a/b\\n\\n'\n")
    server = serve(cgi_dir=programs)
    own(server)
    client = server.socket()
    client.sendall(f"POST /cgi-bin/flag HTTP/1.1\r\nHost: a.example\r\n{framing}\r\n\r\n".encode())
    if framing.endswith("chunked"):
        client.sendall(b"fffffff\r\n")
    client.sendall(bytes(sent))
    vanish(client, how)
    if how == "close":  # a reset may take the head with it, before the server has read it
        server.wait_for_access(r'"POST /cgi-bin/flag HTTP/1.1" 499 .* outcome=client-gone')
    server.check_idle()
    assert not flag.exists()
    assert server.get("/cgi-bin/sum", method="POST", body=b"abc").body.split()[1] == b"3"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_gone_in_mid_upload_after_100_continue(serve, programs, how):
    """The server has seen the head for certain: so the log has its line, whatever way the client went."""
    server = serve(cgi_dir=programs)
    own(server)
    client = server.socket()
    client.settimeout(120)
    client.sendall(
        b"POST /cgi-bin/sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
    )
    assert client.recv(PART) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(bytes(300_000))
    vanish(client, how)
    server.wait_for_access(r'"POST /cgi-bin/sum HTTP/1.1" 499 .* outcome=client-gone')
    server.check_idle()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("length", [True, False])
def test_gone_in_mid_download(serve, programs, how, length):
    """The program is in the midst of a stream without end."""
    head = f"Content-Length: {10 * GIB}\\n" if length else ""
    support.script(
        programs / "endless",
        f"#!/bin/sh\nprintf 'Content-Type: a/b\\n{head}\\n%s\\n' $$\nexec cat /dev/zero\n",
    )
    server = serve(cgi_dir=programs)
    client = server.socket()
    with Stream(client, "/cgi-bin/endless") as stream:
        stream.until(b"\r\n\r\n")
        ending = Ending(int(stream.until(b"\n")))
        client.recv(PART)
        vanish(client, how)
    ending.wait()
    server.wait_for_access(r'"GET /cgi-bin/endless HTTP/1.0" 499 \d+ .* outcome=client-gone')
    server.check_idle()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_gone_while_the_rest_waits(serve, programs, tmp_path, how):
    """The program has ended; what it wrote waits for the client, who never takes it."""
    gate = Gate(tmp_path / "gate")
    support.script(programs / "fills", FILLS.format(size=32 * MIB, gate=gate.path))
    server = serve(cgi_dir=programs)
    own(server)
    client = server.socket()
    with Stream(client, "/cgi-bin/fills") as stream:
        stream.until(b"\r\n\r\n")
        ending = Ending(int(stream.until(b"\n")))
        gate.said()
        ending.wait()
        vanish(client, how)
    server.wait_for_access(r'"GET /cgi-bin/fills HTTP/1.0" 499 \d+ .* outcome=client-gone')
    server.check_idle()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_gone_before_the_header(serve, programs, tmp_path, how):
    gate = Gate(tmp_path / "gate")
    support.script(programs / "thinks", f"#!/bin/sh\necho $$ > '{gate.path}'\nexec sleep 600\n")
    server = serve(cgi_dir=programs)
    client = server.socket()
    client.sendall(b"GET /cgi-bin/thinks HTTP/1.1\r\nHost: a.example\r\n\r\n")
    ending = Ending(int(gate.said()))
    vanish(client, how)
    ending.wait()
    server.wait_for_access(r'"GET /cgi-bin/thinks HTTP/1.1" 499 .* outcome=client-gone')
    server.check_idle()


def test_many_vanish_and_the_others_do_not_notice(serve, programs):
    """A crowd of clients of which every second goes away in the midst of its download."""
    support.script(
        programs / "much",
        "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n%s\\n' $$\nexec head -c 3000000 /dev/zero\n",
    )
    server = serve(cgi_dir=programs)
    own(server)
    streams = [Stream(server.socket(), "/cgi-bin/much") for _ in range(24)]
    for stream in streams:
        stream.until(b"\r\n\r\n")
    for stream in streams[::2]:
        vanish(stream.connection, "reset")
    for stream in streams[1::2]:
        assert stream.until(b"\n")
        assert stream.rest() == bytes(3_000_000)
        stream.connection.close()
    server.check_idle()
