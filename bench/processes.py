"""Processes that a benchmark starts, ends, and looks at."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
START_DEADLINE = 20.0  # seconds until a server must answer; all of them need less than one
QUIET = 0.1  # share of the CPUs that may be in use before a run
QUIET_FOR = 0.5  # seconds
STOP_DEADLINE = 10.0  # seconds from TERM to KILL


class StartFailed(Exception):
    """A server or a load generator did not start, or ended too early; the text says why."""


@dataclass(frozen=True)
class Identity:
    """One process, safe from reuse of its number."""

    pid: int
    started: str  # ticks after boot


def _stat(pid: int) -> list[str]:
    """Fields 3 (state) and following of /proc/PID/stat; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[Identity]:
    """All live processes below `pid`, parents first."""
    below: dict[int, list[Identity]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) and fields[0] != "Z":
            below.setdefault(int(fields[1]), []).append(Identity(int(entry), fields[19]))
    found: list[Identity] = []
    parents = [pid]
    while parents:
        children = below.get(parents.pop(0), [])
        found += children
        parents += [child.pid for child in children]
    return found


def is_alive(process: Identity) -> bool:
    fields = _stat(process.pid)
    return bool(fields) and fields[0] != "Z" and fields[19] == process.started


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it, since each was started; not of those that have ended."""
    pids = [pid, *(process.pid for process in descendants(pid))]
    ticks = sum(int(word) for pid in pids for word in _stat(pid)[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_share(seconds: float) -> float:
    """How much of all CPUs is in use now, 0 to 1: others' work is in every number that follows."""

    def ticks() -> tuple[int, int]:
        values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    total, idle = ticks()
    time.sleep(seconds)
    later, idle_later = ticks()
    return 1 - (idle_later - idle) / max(1, later - total)


def wait_for_quiet(patience: float) -> None:
    """Wait until the CPUs are nearly idle, at most so many seconds: servers that nobody asks use none."""
    last = time.monotonic() + patience
    while time.monotonic() < last and busy_share(QUIET_FOR) > QUIET:
        pass


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def adopt_orphans() -> None:
    """Make this process the new parent of whatever loses its own below it, so that nothing escapes."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(processes: Sequence[Identity]) -> None:
    """Collect those of the processes that are ours now and have ended."""
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def end(processes: Sequence[Identity], deadline: float) -> None:
    """Give the processes so many seconds to end by themselves, then KILL; collect them."""
    last = time.monotonic() + deadline
    while any(map(is_alive, processes)) and time.monotonic() < last:
        time.sleep(0.02)
    for process in filter(is_alive, processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    last = time.monotonic() + deadline
    while any(map(is_alive, processes)) and time.monotonic() < last:
        time.sleep(0.02)
    reap(processes)


class Child:
    """A process in a session of its own, so that Ctrl-C reaches the benchmark alone; output goes to a file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, cwd: Path | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=cwd, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until(self, happened: Callable[[], bool], what: str, deadline: float = START_DEADLINE) -> None:
        """Return once `happened()`; raise StartFailed when the process ends before or the deadline passes."""
        last = time.monotonic() + deadline
        while not happened():
            if self.process.poll() is not None:
                raise StartFailed(f"{self.name} ended with status {self.process.returncode}: {self.last_words()}")
            if time.monotonic() > last:
                raise StartFailed(f"{self.name}: no {what} within {deadline:.0f} s: {self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        return " | ".join(self.output.strip().splitlines()[-2:]) or "it said nothing"

    def finish(self, deadline: float) -> str:
        """What it printed, after it has ended by itself with status 0."""
        try:
            status = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise StartFailed(f"{self.name} did not end within {deadline:.0f} s") from None
        if status != 0:
            raise StartFailed(f"{self.name} ended with status {status}: {self.last_words()}")
        return self.output

    def tell(self) -> None:
        """Close its standard input: the sign for our own helpers to come to an end."""
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def stop(self) -> None:
        """TERM, later KILL; then KILL for whatever of its family has outlived it."""
        family = descendants(self.pid)
        self.tell()
        self.process.terminate()
        try:
            self.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            family += descendants(self.pid)
            self.process.kill()
            self.process.wait()
        end(family, STOP_DEADLINE)


class Children:
    """Everything that was started, stopped in reverse order when the `with` block is left, however it is left.

    INT and TERM become KeyboardInterrupt, except while a process is being started or stopped: then they wait.
    """

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._interrupted = False
        self._undisturbed = False

    def __enter__(self) -> Self:
        adopt_orphans()
        self._before = [(number, signal.signal(number, self._interrupt)) for number in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._no_interrupt():
            while self._children:
                self._children.pop().stop()
            end(descendants(os.getpid()), 0.5)
        for number, handler in self._before:
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        if not self._undisturbed:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _no_interrupt(self) -> Iterator[None]:
        self._undisturbed = True
        try:
            yield
        finally:
            self._undisturbed = False

    def start(self, name: str, argv: Sequence[str], log: Path, cwd: Path | None = None) -> Child:
        with self._no_interrupt():
            child = Child(name, argv, log, cwd)
            self._children.append(child)
        if self._interrupted:
            raise KeyboardInterrupt
        return child

    def stop(self, child: Child) -> None:
        with self._no_interrupt():
            child.stop()
            self._children.remove(child)
        if self._interrupted:
            raise KeyboardInterrupt

    def run(self, name: str, argv: Sequence[str], log: Path, deadline: float, cwd: Path | None = None) -> str:
        """Run a command to its end and return what it printed."""
        child = self.start(name, argv, log, cwd)
        try:
            return child.finish(deadline)
        finally:
            self.stop(child)
