"""What the tests of warm interpreters share: one script asked for cold and warm, and all that can be seen of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import misbehaviour, support

PYTHON = "/usr/bin/python3"
PERL = "/usr/bin/perl"
# Not run warm, whoever asks.
FINE = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nfine\\n'\n"
# After so many requests one by one, none is served by a child that was forked before the first has ended: two wait at
# most. So these meet a script that is new, one whose modules were imported ahead, and one whose code is kept.
TIMES = 4


@dataclass
class Seen:
    """What one request shows of its script."""

    first: str  # the status line
    headers: list[tuple[str, ...]]
    body: bytes
    errors: list[str]  # its lines on stderr
    complaint: str  # the server's own line, for the log
    end: str  # its exit status or signal, and what came of it
    pid: int = field(compare=False)

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.first.split()[1])

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


def see(
    server: support.Server,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Seen:
    """Ask, and wait for everything that the logs say of it."""
    fields = {"Host": "warm.example", **(headers or {}), **({"Content-Length": str(len(body))} if body else {})}
    lines = [f"{method} {path} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
    # The older version's response has one framing, whenever its parts were written.
    raw = server.exchange("\r\n".join([*lines, "", ""]).encode() + (body or b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    found = [tuple(line.split(": ", 1)) for line in rest]
    (ident,) = (value for name, value in found if name.lower() == "x-request-id")
    access = server.wait_for_access(rf"^.* id={ident} .*$")[0]
    settle(server)
    said = re.findall(rf"^\S+ script \[{ident}\] .*?\[\d+\]: (.*)$", server.errors.text, re.MULTILINE)
    complaint = re.search(rf"^\S+ error \[{ident}\] (.*)$", server.errors.text, re.MULTILINE)
    pid = re.search(r" pid=(\d+)", access)
    return Seen(
        first,
        sorted((name, value) for name, value in found if name.lower() not in PASSING),
        body.replace(ident.encode(), b"ID"),
        [_plain(line) for line in said],
        _plain(complaint[1]) if complaint else "",
        " ".join(re.findall(r" ((?:exit|outcome)=\S+)", access)),
        int(pid[1]) if pid else 0,
    )


def _plain(line: str) -> str:
    """Leave out what no two processes have in common, and what warm ones are known not to share with cold ones: how
    deep a recursion is that ends, and the name that perl was started with."""
    return re.sub(
        r"\d\d:\d\d:\d\d|\b0x[0-9a-f]{6,}"
        r"|(?<=repeated )\d+(?= more)|(?<=\(pid )\d+|(?<=Execution of )\S+(?= aborted)",
        "...",
        line,
    )


# Fields that are of the one response, or of its length.
PASSING = {"date", "x-request-id", "content-length", "connection"}


def settle(server: support.Server) -> None:
    """Wait until the log has all that was said before now: a file that may not be executed is told of at once."""
    ident = server.get("/cgi-bin/settle").headers["x-request-id"]
    server.wait_for_log(rf"warning \[{ident}\]")


@dataclass
class Pair:
    """Two servers of one directory: one starts each program, the other runs them warm or not at all."""

    directory: Path
    cold: support.Server
    warm: support.Server
    count: int = 0

    def write(self, text: str | bytes, name: str = "script") -> str:
        """Put a script into a directory of its own; return its path on the servers."""
        self.count += 1
        misbehaviour.program(self.directory / str(self.count) / name, text)
        return f"/cgi-bin/{self.count}/{name}"

    def file(self, path: str) -> Path:
        """Where the file of a path on the servers is."""
        return self.directory / path.removeprefix("/cgi-bin/")

    def same(self, path: str, **more: Any) -> Seen:
        """Ask for a script cold, and warm several times, and return what is the same each time."""
        expected = see(self.cold, path, **more)
        for number in range(TIMES):
            seen = see(self.warm, path, **more)
            assert seen == expected, f"warm, request {number}: {difference(expected, seen)}"
        return expected


def difference(expected: Seen, seen: Seen) -> str:
    """Tell what is not the same, line by line where it is text."""
    found = []
    for name in ("first", "headers", "end", "complaint"):
        cold, warm = getattr(expected, name), getattr(seen, name)
        if cold != warm:
            found.append(f"{name}: cold {cold!r}, warm {warm!r}")
    for name, cold_lines, warm_lines in (
        ("body", expected.body.splitlines(), seen.body.splitlines()),
        ("stderr", expected.errors, seen.errors),
    ):
        if cold_lines != warm_lines:
            found += [f"{name} cold: {line!r}" for line in cold_lines if line not in warm_lines]
            found += [f"{name} warm: {line!r}" for line in warm_lines if line not in cold_lines]
    return "\n".join(found)


@contextlib.contextmanager
def pair_of(directory: Path, temp_dir: Path, *options: str, warm: tuple[str, ...] = ()) -> Iterator[Pair]:
    """Start both servers; `warm`: options of the second only."""
    (directory / "settle").touch(0o644)
    for name in ("cold", "warm"):
        (temp_dir / name).mkdir()
    with (
        misbehaviour.shared_server(directory, temp_dir / "cold", *options) as cold,
        misbehaviour.shared_server(directory, temp_dir / "warm", *options, "--warm", "require", *warm) as other,
    ):
        yield Pair(directory, cold, other)


def interpreters(server: support.Server) -> set[int]:
    """The pids of a server's warm interpreters."""
    return set().union(*(support.warm_interpreters(pid) for pid in support.children(server.pid)))


def waiting(server: support.Server) -> set[int]:
    """The pids of the children that wait for a request."""
    warm = set().union(*(support.warm_processes(pid) for pid in support.children(server.pid)))
    return {pid for pid in warm - interpreters(server) if misbehaviour.parent_of(pid) in support.children(server.pid)}


def pythons() -> list[str]:
    """The Pythons of this machine that a warm interpreter can be of, one of each version."""
    found = [f"/usr/bin/python3.{minor}" for minor in range(8, 15)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += sorted(map(str, pyenv.glob("versions/3.*/bin/python3")))
    found += [path for minor in range(8, 15) if (path := shutil.which(f"python3.{minor}"))]
    known: dict[str, str] = {}
    for path in found:
        with contextlib.suppress(OSError):
            if Path(path).read_bytes()[:4] == b"\x7fELF" and os.access(path, os.X_OK):
                version = subprocess.run([path, "-V"], capture_output=True, text=True, check=False).stdout.strip()
                if re.match(r"Python 3\.([89]|\d\d)\.", version):
                    known.setdefault(version, path)
    return sorted(known.values())
