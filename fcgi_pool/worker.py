"""One worker as its manager knows it: its pid, what it was told, and what it writes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fcgi_pool.lifecycle import Rung
from fcgi_pool.loop import Loop
from fcgi_pool.slowlog import Trace

# Of what a worker writes: bytes of a line (php-fpm's log_limit is 1,024), and lines kept to tell why it died.
_LINE_LIMIT = 4096
_TAIL = 5
_PIECE = 65_536


@dataclass(slots=True)
class Worker:
    """A process that was started and has not been reaped.

    `started`: monotonic seconds. `report`: the descriptor that tells of its exec, -1 once it has. `slot`: its place in
    the scoreboard. `trace`: where it writes its stack when asked. `is_ready`: it was seen accepting. `told`: the rung
    that it was sent to, None while it should serve. `heard`: whether the signal of that rung was sent; one that is to
    go when idle may have to be tried again.
    """

    pid: int
    started: float
    report: int
    output: Output
    slot: int | None = None
    trace: Trace | None = None
    is_ready: bool = False
    told: Rung | None = None
    heard: bool = False
    why: str = ""
    exec_failure: str = ""


class Output:
    """Reads what a worker writes to its standard output and error, for as long as somebody holds the other end.

    It is read always: a worker must not wait for us. `line` is called with each line.
    """

    def __init__(self, loop: Loop, descriptor: int, line: Callable[[str], None]) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._line = line
        self._rest = b""
        self._tail: deque[str] = deque(maxlen=_TAIL)
        loop.watch(descriptor, self._read)

    @property
    def tail(self) -> str:
        """The last lines, joined."""
        return " | ".join(self._tail)

    def close(self) -> None:
        """Take what was written up to now, and read no more."""
        if self._descriptor >= 0:
            self._read()
        self._end()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > _LINE_LIMIT:
            self._take(self._rest)
            self._rest = b""

    def _end(self) -> None:
        if self._descriptor >= 0:
            self._loop.ignore(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def _take(self, line: bytes) -> None:
        text = line.rstrip(b"\r")[:_LINE_LIMIT].decode("utf-8", "backslashreplace")
        if text:
            self._tail.append(text)
            self._line(text)


def describe_end(status: int) -> str:
    """Return a wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            core = " (core dumped)" if os.WCOREDUMP(status) else ""
            return f"was killed by {signal.Signals(number).name}{core}"
        return f"was killed by signal {number}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"
