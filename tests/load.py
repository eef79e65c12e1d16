"""The load test: very many CGI requests, hostile programs and vanishing clients among them.

``make load`` sends 100,000; ``python -m tests.load --requests N`` another number. Each request must get its own right
response, or the closed connection that its program deserves, in time. Afterwards the server must be as it was: the same
processes, as many descriptors, no temporary file, no zombie, hardly more memory.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HOSTILE = Path(__file__).with_name("hostile")

# What a request may come to: a status, or
CUT = "cut off"  # a response that was begun, and the connection closed before its end
RAW = "raw"  # bytes that are no HTTP: the program was its own server
LEFT = "left"  # the client went away, as it meant to
LATE = "late"  # neither response nor close in time: a failure

# Seconds for one request. All deadlines of the server are a few seconds here; the rest is for a machine under load.
PATIENCE = 60.0
# After so many the rest would tell no more.
FAILURES = 100
# Bytes that a process may have grown by in the end.
GROWTH = 12 * 2**20

_200 = ("never-reads", "closes-stdin", "writes-first", "floods-stderr", "one-long-line", "lies-short")
_502 = (
    *("exits-silently", "exits-with-3", "half-header", "garbage", "no-colon", "no-header", "huge-header"),
    *("endless-header", "endless-zeros", "killed", "killed-in-header", "kills-its-group", "closes-all"),
    *("injects-cr", "injects-nul", "bad-status", "loops"),
)
QUICK = {
    **dict.fromkeys(_200, "200"),
    **dict.fromkeys(_502, "502"),
    **dict.fromkeys(("daemon?1", "quiet-daemon?1"), "200"),
    **dict.fromkeys(("killed-in-body", "lies-long"), CUT),
    **dict.fromkeys(("no-interpreter", "cr-lf", "no-shebang", "empty"), "500"),
    **dict.fromkeys(("not-executable",), "403"),
    **dict.fromkeys(("nothing-there", "folder", "fifo"), "404"),
    "nph-broken": RAW,
}
SLOW = {
    **dict.fromkeys(("silent", "stopped", "ignores-term", "tells-term", "family"), "504"),
    **dict.fromkeys(("stops-in-body", "stops-in-length"), CUT),
}
# Whoever leaves does it: before saying anything, in the head, in the body, before the answer, in the answer.
LEAVING = (
    "at once",
    "in the head",
    "in the body",
    "in a chunk",
    "before the answer",
    "in the answer",
    "in the pipeline",
)


def make_programs(directory: Path) -> None:
    """Fill `directory` with the hostile programs, and with those that no file in a repository can be."""
    shutil.copytree(HOSTILE, directory, dirs_exist_ok=True)

    def program(name: str, text: str, mode: int = 0o755) -> None:
        (directory / name).write_text(text, newline="")
        (directory / name).chmod(mode)

    program("echo", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s\\n' \"$QUERY_STRING\"\nexec cat\n")
    program("no-interpreter", "#!/no/such/interpreter\n")
    program("cr-lf", "#!/bin/sh\r\necho\r\n")
    program("no-shebang", "Content-Type: text/plain\n\nnot a program\n")
    program("empty", "")
    program("not-executable", "#!/bin/sh\necho\n", 0o644)
    (directory / "folder").mkdir()
    os.mkfifo(directory / "fifo", 0o755)


class Server:
    """The server under load, and what can be seen of it from outside."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.temp = directory / "temp"
        self.log = directory / "error.log"
        self.access = directory / "access.log"
        self.temp.mkdir()
        programs = directory / "cgi"
        make_programs(programs)
        command = [sys.executable, "-m", "gateway", "--cgi-dir", str(programs), "--listen", "127.0.0.1:0"]
        command += [
            "--workers",
            str(workers),
            "--script-timeout",
            "3",
            "--kill-timeout",
            "1",
            "--temp-dir",
            str(self.temp),
        ]
        command += ["--access-log", str(self.access), "--error-log", str(self.log)]
        root = Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(command, cwd=root)
        self.port = int(self._wait_for(r"listening on http://127\.0\.0\.1:(\d+)/[\s\S]*ready")[1])

    def _wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                if match := re.search(pattern, self.log.read_text(errors="replace")):
                    return match
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            time.sleep(0.05)
        raise TimeoutError(pattern)

    def processes(self) -> dict[int, str]:
        """Pids and states of everything below the master, itself included."""
        children = collections.defaultdict(list)
        states = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
                    children[int(parent)].append(int(entry.name))
                    states[int(entry.name)] = state
        found, todo = {}, [self.process.pid]
        while todo:
            pid = todo.pop()
            found[pid] = states.get(pid, "?")
            todo += children[pid]
        return found

    def snapshot(self) -> dict[int, tuple[int, int]]:
        """Pid: (descriptors, resident bytes), of every process."""
        seen = {}
        for pid in self.processes():
            with contextlib.suppress(OSError, TypeError):
                status = Path(f"/proc/{pid}/status").read_text()
                resident = int(re.search(r"^VmRSS:\s+(\d+)", status, re.M)[1]) * 1024  # type: ignore[index]
                seen[pid] = (len(os.listdir(f"/proc/{pid}/fd")), resident)
        return seen

    def settled(self, before: dict[int, tuple[int, int]] | None, seconds: float = 30.0) -> list[str]:
        """Wait until nothing but the server itself is there; return what is still wrong when patience ends."""
        deadline = time.monotonic() + seconds
        while True:
            wrong = self._wrong(before)
            if not wrong or time.monotonic() > deadline:
                return wrong
            time.sleep(0.1)

    def _wrong(self, before: dict[int, tuple[int, int]] | None) -> list[str]:
        wrong = [f"process {pid} is a zombie" for pid, state in self.processes().items() if state == "Z"]
        now = self.snapshot()
        wrong += [f"temporary file {name}" for name in os.listdir(self.temp)]
        names = {
            pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            for pid in now
            if Path(f"/proc/{pid}").exists()
        }
        wrong += [
            f"process {pid} is left" for pid, name in names.items() if b"python" not in name and b"gateway" not in name
        ]
        if before is None:
            return wrong
        wrong += [f"process {pid} is new" for pid in now if pid not in before]
        wrong += [f"process {pid} is gone" for pid in before if pid not in now]
        for pid, (descriptors, resident) in now.items():
            if pid in before:
                if descriptors != before[pid][0]:
                    wrong.append(f"process {pid} has {descriptors} descriptors, not {before[pid][0]}")
                if resident > before[pid][1] + GROWTH:
                    wrong.append(f"process {pid} has grown by {(resident - before[pid][1]) / 2**20:.1f} MiB")
        return wrong

    def stop(self) -> list[str]:
        """End it; return what is wrong with its end."""
        everything = self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return ["it did not stop"]
        wrong = [f"it ended with {status}"] if status else []
        return wrong + [f"process {pid} survived" for pid in everything if Path(f"/proc/{pid}").exists()]


class Client:
    """One connection at a time, kept as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the open connection, or a new one."""
        if self._reader is None or self._writer is None or self._reader.at_eof() or self._writer.is_closing():
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self._reader, self._writer

    def close(self) -> None:
        """Leave."""
        if self._writer:
            self._writer.close()
        self._reader = self._writer = None

    def vanish(self) -> None:
        """Leave with a reset."""
        if self._writer:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def ask(self, path: str, body: bytes | None, chunked: bool) -> tuple[str, bytes]:
        """Send one request; return what it came to, and the body of the response."""
        reader, writer = await self.connect()
        if body is None:
            request = f"GET {path} HTTP/1.1\r\nHost: load\r\n\r\n".encode()
        elif chunked:
            request = f"POST {path} HTTP/1.1\r\nHost: load\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            pieces = [body[n : n + 50_000] for n in range(0, len(body), 50_000)]
            request += b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        else:
            request = f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        try:
            writer.write(request)
            await writer.drain()
        except ConnectionError:
            pass  # an error response may be there all the same
        return await self._read(reader)

    async def _read(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        body = b""
        status = ""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status = head[9:12].decode()
            fields = head.lower()
            if b"\r\ntransfer-encoding: chunked\r\n" in fields:
                while size := int(await reader.readline(), 16):
                    body += await reader.readexactly(size)
                    await reader.readexactly(2)
                await reader.readexactly(2)
            elif length := re.search(rb"\r\ncontent-length: (\d+)\r\n", fields):
                body = await reader.readexactly(int(length[1]))
            else:
                body = await reader.read()
            if b"\r\nconnection: close\r\n" in fields:
                self.close()
            return status, body
        except asyncio.IncompleteReadError as short:
            self.close()
            return (CUT, body + short.partial) if status else (RAW, short.partial)
        except (ConnectionError, ValueError):
            self.close()
            return CUT, body


class Load:
    """Sends a plan of requests through a number of clients, and counts what they came to."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.times: dict[str, list[float]] = collections.defaultdict(list)
        self.failures: list[str] = []
        self.sent = 0

    def plan(self, count: int) -> list[tuple[str, str]]:
        """Return `count` requests, (kind, which) each: every hostile program at least once, fine ones the most."""
        hostile = [("hostile", name) for name in (*QUICK, *SLOW)] + [("leaves", how) for how in LEAVING]
        hostile += self._random.choices([("hostile", name) for name in QUICK], k=count * 7 // 100)
        hostile += self._random.choices([("hostile", name) for name in SLOW], k=count * 4 // 1000)
        hostile += self._random.choices([("leaves", how) for how in LEAVING], k=count * 3 // 100)
        plan = hostile + [("fine", "hello")] * max(0, count - len(hostile) - count * 4 // 100)
        plan += [("fine", "echo")] * max(0, count - len(plan))
        self._random.shuffle(plan)
        return plan

    async def run(self, plan: list[tuple[str, str]], clients: int) -> None:
        """Carry out `plan`."""
        todo = iter(plan)
        await asyncio.gather(*(self._client(todo) for _ in range(clients)))

    async def _client(self, todo: Iterator[tuple[str, str]]) -> None:
        client = Client(self._port)
        for kind, which in todo:
            if len(self.failures) > FAILURES:
                break
            began = time.monotonic()
            self.sent += 1
            try:
                outcome = await asyncio.wait_for(getattr(self, f"_{kind}")(client, which, self.sent), PATIENCE)
            except TimeoutError:
                outcome = LATE
                client.vanish()
                self.failures.append(f"{kind} {which}: no answer and no close in {PATIENCE:g} s")
            self.counts[f"{kind} {which}", outcome] += 1
            self.times[kind].append(time.monotonic() - began)
        client.close()

    def _expect(self, what: str, right: bool, seen: object) -> None:
        if not right:
            self.failures.append(f"{what}: {seen!r}"[:300])

    async def _fine(self, client: Client, which: str, number: int) -> str:
        if which == "hello":
            outcome, body = await client.ask(f"/cgi-bin/hello?{number}", None, False)
            self._expect("hello", (outcome, body) == ("200", b"hello %d\n" % number), (number, outcome, body))
            return outcome
        size = self._random.choice((0, 1, 1000, 4096, 60_000, 65_536, 200_000, 200_000, 3_000_000))
        sent = b"%d " % number + self._random.randbytes(size)
        outcome, body = await client.ask(f"/cgi-bin/echo?{number}", sent, self._random.random() < 0.5)
        right = (outcome, body) == ("200", b"%d\n" % number + sent)
        self._expect(f"echo of {len(sent)} bytes", right, (number, outcome, len(body), body[:60]))
        return outcome

    async def _hostile(self, client: Client, which: str, _number: int) -> str:
        wanted = {**QUICK, **SLOW}[which]
        body = self._random.choice((None, None, b"x", bytes(100_000)))
        outcome, got = await client.ask(f"/cgi-bin/{which}", body, self._random.random() < 0.5)
        self._expect(which, outcome == wanted, (outcome, got[:100]))
        return outcome

    async def _leaves(self, client: Client, which: str, number: int) -> str:
        _, writer = await client.connect()
        reader = client._reader
        assert reader
        post = b"POST /cgi-bin/echo HTTP/1.1\r\nHost: load\r\n"
        match which:
            case "in the head":
                writer.write(b"GET /cgi-bin/hello HTTP/1.1\r\nHo")
            case "in the body":
                writer.write(post + b"Content-Length: 5000000\r\n\r\n" + bytes(400_000))
            case "in a chunk":
                writer.write(post + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n" + bytes(30_000))
            case "before the answer":
                writer.write(b"GET /cgi-bin/silent HTTP/1.1\r\nHost: load\r\n\r\n")
            case "in the pipeline":
                writer.write(b"GET /cgi-bin/hello HTTP/1.1\r\nHost: load\r\n\r\n" * 20)
            case "in the answer":
                writer.write(b"GET /cgi-bin/endless-body HTTP/1.1\r\nHost: load\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    await reader.read(100)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        if number % 2:
            client.vanish()
        else:
            client.close()
        return LEFT

    def report(self, seconds: float) -> str:
        """Return a table of what the requests came to."""
        lines = [f"{self.sent} requests in {seconds:.1f} s, {self.sent / seconds:.0f}/s"]
        for kind, times in sorted(self.times.items()):
            times.sort()
            lines.append(
                f"  {kind:<8} {len(times):>7}  median {statistics.median(times):.3f} s, longest {times[-1]:.3f} s"
            )
        for (what, outcome), count in sorted(self.counts.items()):
            lines.append(f"    {what:<28} {outcome:<8} {count:>7}")
        return "\n".join(lines)


def run(requests: int, clients: int, workers: int, seed: int) -> tuple[str, list[str]]:
    """Put a server under load; return the report, and everything that was wrong."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        server = Server(Path(name), workers)
        try:
            # All kinds of requests once and more, so that what grows only once has grown.
            warm_up = Load(server.port, seed)
            asyncio.run(warm_up.run(warm_up.plan(max(500, requests // 20)), clients))
            wrong = [f"warming up: {what}" for what in warm_up.failures + server.settled(None)]
            before = server.snapshot()
            load = Load(server.port, seed + 1)
            began = time.monotonic()
            asyncio.run(load.run(load.plan(requests), clients))
            report = load.report(time.monotonic() - began)
            wrong += load.failures + server.settled(before)
            now = server.snapshot()
            for pid, (descriptors, resident) in sorted(now.items()):
                was = before.get(pid, (0, 0))
                report += f"\n  process {pid}: descriptors {was[0]} → {descriptors}, "
                report += f"memory {was[1] / 2**20:.1f} → {resident / 2**20:.1f} MiB"
            log = server.log.read_text(errors="replace")
            # Ours, not those that programs write to their stderr.
            wrong += ["a traceback in the error log"] if re.search(r"^Traceback|gateway/\w+\.py", log, re.M) else []
        finally:
            ending = server.stop()
        return report, wrong + ending


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="default: 100,000")
    parser.add_argument("--clients", type=int, default=48, help="connections at once; default: 48")
    parser.add_argument("--workers", type=int, default=2, help="front workers; default: 2")
    parser.add_argument("--seed", type=int, default=1, help="of the plan; default: 1")
    options = parser.parse_args()
    report, wrong = run(options.requests, options.clients, options.workers, options.seed)
    print(report)
    for what in wrong[:50]:
        print(f"WRONG: {what}")
    print("1 passed, 0 failed" if not wrong else f"0 passed, 1 failed ({len(wrong)} things wrong)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
