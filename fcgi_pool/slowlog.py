"""What a worker is at whose request takes long, written as php-fpm writes its slow log.

Some facts about looking at a running program without stopping it. Python's faulthandler, armed at the start, writes the
stack of every thread when a signal comes, whatever the program is doing, into a file whose descriptor it was given;
here that is a file in memory which worker and manager share, so nothing has to be attached to and no right is needed.
Of any other program /proc tells the system call it waits in, where in the kernel, its open files, and its children:
php-cgi holds the script open that it runs. It takes a moment until a stack is there; so a report is begun, and written
at one of the following turns.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fcgi_pool import proc
from fcgi_pool.log import printable
from fcgi_pool.probe import catches
from fcgi_pool.snapshot import WorkerState

# Not one that programs use; Python itself uses none of these.
TRACE_SIGNAL = int(signal.SIGRTMIN) + 9
# For one process's stacks at most, in seconds: the manager waits meanwhile.
_MOMENT = 0.02
# Seconds that a worker has to write its stack.
_PATIENCE = 0.2
# Of a report: bytes of a stack, lines of it, descriptors, children.
_STACK_LIMIT = 64 * 1024
_LINES = 200
_DESCRIPTORS = 32
_CHILDREN = 16

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_THREAD = re.compile(r"(?:Current thread|Thread) (0x[0-9a-f]+).*")
_FRAME = re.compile(r'  File "(.*)", line ([0-9]+|\?\?\?) in (.*)')


class Trace:
    """Where one worker writes its stack; raises OSError if there is no descriptor left."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("fcgi_pool trace", os.MFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    @property
    def environment(self) -> str:
        """The value of FCGI_POOL_TRACE for a worker that inherits the descriptor under its number."""
        return f"{TRACE_SIGNAL}:{self._descriptor}"

    def ask(self, pid: int) -> bool:
        """Make a worker, and what it forked, write their stacks; return whether any is armed for that."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        asked = False
        if catches(pid, TRACE_SIGNAL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, TRACE_SIGNAL)
                asked = True
        for child in proc.descendants(pid)[:_CHILDREN]:
            if asked:
                self._let_write()
            asked = _signal_child(pid, child) or asked
        return asked

    def _let_write(self) -> None:
        """Give who was asked a moment: a line is several writes, and who writes at once writes into another's lines."""
        until, seen = time.monotonic() + _MOMENT, 0
        while time.monotonic() < until:
            select.select([], [], [], _MOMENT / 20)
            before, seen = seen, os.fstat(self._descriptor).st_size
            if seen and seen == before:
                break

    def read(self) -> str:
        """Return what has been written since it was asked."""
        return os.pread(self._descriptor, _STACK_LIMIT, 0).decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _signal_child(pid: int, child: int) -> bool:
    """Signal a process that another may reap: held fast before it is looked at again."""
    try:
        held = os.pidfd_open(child)
    except OSError:
        return False
    try:
        if child not in proc.descendants(pid) or not catches(child, TRACE_SIGNAL):
            return False
        signal.pidfd_send_signal(held, TRACE_SIGNAL)
    except OSError:
        return False
    finally:
        os.close(held)
    return True


@dataclass(slots=True)
class _Report:
    head: str
    pid: int
    due: float
    trace: Trace | None


class SlowLog:
    """Writes reports to `path`, `-` for standard error; raises OSError if the file cannot be opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = _open(path)
        self._begun: list[_Report] = []

    def reopen(self) -> None:
        """Open the path again, after the old file was moved away; raise OSError and keep the old one if that fails."""
        if self._path != "-":
            descriptor = _open(self._path)
            os.close(self._descriptor)
            self._descriptor = descriptor

    def close(self) -> None:
        """Write what has been begun, and close the file."""
        self.write_due(float("inf"))
        if self._path != "-":
            os.close(self._descriptor)

    def begin(self, pool: str, worker: WorkerState, now: float, trace: Trace | None = None) -> None:
        """Begin the report about a worker; `trace` is what it was started with, `now` `time.monotonic()` seconds."""
        asked = trace if trace and trace.ask(worker.pid) else None
        report = _Report(head(pool, worker, now, time.time()), worker.pid, now + _PATIENCE, asked)
        if asked:
            self._begun.append(report)
        else:
            self._write(report.head, list(_seen(worker.pid)))

    def forget(self, pid: int) -> None:
        """Write the report about a worker that has ended at once, since its trace will be closed."""
        for report in [report for report in self._begun if report.pid == pid]:
            self._finish(report)

    def write_due(self, now: float) -> float | None:
        """Write the reports whose stacks must be there by now; return when the next is due, None for none."""
        for report in [report for report in self._begun if report.due <= now]:
            self._finish(report)
        return min((report.due for report in self._begun), default=None)

    def _finish(self, report: _Report) -> None:
        self._begun.remove(report)
        stack = frames(report.trace.read()) if report.trace else []
        # A worker that writes nothing hangs in the kernel.
        self._write(report.head, stack or list(_seen(report.pid)))

    def _write(self, head: str, lines: list[str]) -> None:
        text = head + "".join(f"{printable(line)}\n" for line in lines[:_LINES])
        if len(lines) > _LINES:
            text += f"... and {len(lines) - _LINES} lines more\n"
        # A log never stops a pool.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode("utf-8", "backslashreplace"))


def head(pool: str, worker: WorkerState, now: float, wall: float) -> str:
    """Return the first lines of a report: an empty one, php-fpm's two, and what else is known of the request."""
    moment = time.localtime(wall)
    date = time.strftime(f"%d-{_MONTHS[moment.tm_mon - 1]}-%Y %H:%M:%S", moment)
    request = worker.request
    script = printable(request.script) if request and request.script else "-"
    lines = ["", f"[{date}]  [pool {pool}] pid {worker.pid}", f"script_filename = {script}"]
    if request and request.method:
        lines.append(f"request = {printable(request.method)} {printable(request.uri)}")
    lines.append(f"duration = {now - worker.since:.3f}")
    return "".join(f"{line}\n" for line in lines)


def frames(text: str) -> list[str]:
    """Return what faulthandler writes in php-fpm's shape: ``[0xTHREAD] function() file:line``, the innermost first."""
    lines = []
    thread = "0x0"
    for line in text.splitlines():
        if match := _THREAD.fullmatch(line):
            thread = match[1]
        elif match := _FRAME.fullmatch(line):
            lines.append(f"[{thread}] {match[3]}() {match[1]}:{match[2]}")
        elif line:
            lines.append(line)
    return lines


def _seen(pid: int) -> Iterator[str]:
    """Yield what /proc tells of a process and its children."""
    for process in (pid, *proc.descendants(pid)[:_CHILDREN]):
        name = proc.read(process, "comm").strip()
        if not name:
            continue
        yield f"[{process}] {name} {_doing(process)}"
        # Readable for root alone.
        for line in proc.read(process, "stack").splitlines():
            yield f"[{process}] {line.partition('] ')[2] or line}"
        for number, target in proc.links(process)[:_DESCRIPTORS]:
            yield f"[{process}] descriptor {number} = {target}"


def _doing(pid: int) -> str:
    """Return in words what a process does."""
    call = proc.call(pid)
    where = proc.read(pid, "wchan").strip()
    if call.number < 0:
        return "runs"
    # Without the right to know, it reads 0.
    words = f"waits in {where}()" if where not in ("", "0") else "waits"
    target = dict(proc.links(pid)).get(call.first_argument)
    on = f", descriptor {call.first_argument}" if target and call.takes_descriptor() else ""
    return f"{words}, system call {call.number}{on}"


def _open(path: str) -> int:
    if path == "-":
        return sys.__stderr__.fileno() if sys.__stderr__ else 2
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
