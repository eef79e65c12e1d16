"""The front's side of the spawners: who may start now, who waits in line, and what became of each program."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from gateway.cgi import wire
from gateway.cgi.link import Link

# Programs started within the last moment, at once. Most programs live some milliseconds, nearly all of it on a CPU;
# more of them at the same time only take turns, and all end late. Started one after the other, each ends early, and
# the slowest requests gain most. Beyond the moment, in seconds, a program waits for something and is in nobody's way:
# so even where all of them wait, their number over the moment, a thousand a second, can be started.
_YOUNG = 4
_MOMENT = 0.004


class Program(Protocol):
    """A run of a program as the launcher sees it."""

    @property
    def spawner(self) -> int:
        """The number of the spawner that is to start it."""

    def launch(self) -> None:
        """A place is free: make the descriptors and call `Launcher.start`."""

    def started(self, pid: int) -> None:
        """It runs, for longer than a moment."""

    def not_started(self, phase: str, error: int) -> None:
        """The start failed in ``chdir``, ``exec`` or ``limits``, for errno `error`."""

    def is_cold(self, why: str) -> None:
        """It was to be run warm, and is started cold."""

    def unfit(self, why: str) -> None:
        """It was to be run warm, cannot be, and is not started."""

    def ended(self, pid: int, status: int, cpu: float, memory: int) -> None:
        """It was reaped: wait status, CPU seconds, peak memory in bytes."""

    def pipes(self) -> set[int]:
        """Return the inodes of the pipes that it writes to."""

    def lost(self) -> None:
        """Its spawner died, and what became of it cannot be known."""


class Launcher:
    """Starts programs, `places` at once; more wait, first come first served, whichever of the `spawners` is theirs.

    `came`: a spawner is ready. `left`: told the number of a spawner that died, and the inodes of the pipes of programs
    that it may have left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spawners: int,
        places: int,
        max_waiting: int,
        came: Callable[[], None],
        left: Callable[[int, set[int]], None],
    ) -> None:
        self._loop = loop
        self._places = places
        self._max_waiting = max_waiting
        self._came = came
        self._left = left
        self._links = [
            Link(loop, self._has_come, self._told, functools.partial(self._lost, number)) for number in range(spawners)
        ]
        self._running: dict[int, Program] = {}
        self._waiting: deque[Program] = deque()
        self._last_id = 0
        self._young: dict[int, float] = {}  # run id: when it was started, the oldest first
        self._recheck: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Launcher: {len(self._running)} running, {len(self._waiting)} waiting>"

    @property
    def is_idle(self) -> bool:
        """Whether no program runs or waits."""
        return not self._running and not self._waiting

    @property
    def is_ready(self) -> bool:
        """Whether all spawners start programs."""
        return all(link.is_ready for link in self._links)

    def connect(self, spawner: int, channel: socket.socket) -> None:
        """Take the channel to a spawner, the first one or one in place of one that died."""
        self._links[spawner].connect(channel)

    def submit(self, program: Program) -> bool:
        """Launch `program`, now or when it is its turn; return False if too many wait already."""
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting.append(program)
        self._admit()
        return True

    def withdraw(self, program: Program) -> None:
        """Take a waiting program out of the line."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(program)

    def start(
        self,
        program: Program,
        path: bytes,
        directory: bytes,
        environment: dict[bytes, bytes],
        group_ends: bool,
        warm: int,
        descriptors: list[int],
    ) -> int:
        """Start a program and return the run's id. `descriptors`, [stdin,] stdout, stderr, are closed here.

        `warm`: the number of the mount by whose warm interpreters it is run, or wire.COLD.
        """
        self._last_id += 1
        self._running[self._last_id] = program
        self._young[self._last_id] = time.monotonic()
        message = wire.encode_start((self._last_id, path, directory, environment, group_ends, warm))
        self._links[program.spawner].send(self._last_id, message, descriptors)
        return self._last_id

    def terminate(self, run_id: int) -> None:
        """End a run: TERM to its process group, later KILL."""
        program = self._running.get(run_id)
        if program:
            self._links[program.spawner].send(run_id, wire.encode_end(run_id), [])

    def _has_come(self) -> None:
        self._came()
        self._admit()

    def _told(self, events: list[wire.Event]) -> None:
        for event in events:
            try:
                self._tell(event)
            except Exception as error:
                # The other programs' events are told all the same.
                self._loop.call_exception_handler({"message": f"telling {event[0]}", "exception": error})
        self._admit()

    def _tell(self, event: wire.Event) -> None:
        run_id = event[1]
        match event:
            case ("started", _, int(pid)):
                self._running[run_id].started(pid)
            case ("cold", _, str(why)):
                self._running[run_id].is_cold(why)
            case ("unfit", _, str(why)):
                self._young.pop(run_id, None)
                self._running.pop(run_id).unfit(why)
            case ("failed", _, str(phase), int(error)):
                self._young.pop(run_id, None)
                failed = self._running.pop(run_id, None)
                if failed:
                    failed.not_started(phase, error)
            case ("ended", _, int(pid), int(status), float(cpu), int(memory)):
                self._young.pop(run_id, None)
                self._running.pop(run_id).ended(pid, status, cpu, memory)

    def _admit(self) -> None:
        """Launch those whose turn it is."""
        while self._waiting and len(self._running) < self._places:
            if len(self._young) >= _YOUNG and not self._outgrown():
                return
            program = self._take_next()
            if program is None:
                return
            program.launch()

    def _take_next(self) -> Program | None:
        """Take the first in line whose spawner is there, out of it."""
        for program in self._waiting:
            if self._links[program.spawner].is_ready:
                self._waiting.remove(program)
                return program
        return None

    def _outgrown(self) -> bool:
        """Return whether the oldest of the young is young no more; if it still is, look again when it is not."""
        run_id, begun = next(iter(self._young.items()))
        left = begun + _MOMENT - time.monotonic()
        if left <= 0:
            del self._young[run_id]
            return True
        if self._recheck is None:
            self._recheck = self._loop.call_later(left, self._look_again)
        return False

    def _look_again(self) -> None:
        self._recheck = None
        self._admit()

    def _lost(self, spawner: int) -> None:
        """A spawner is gone: have the master end what it leaves, tell every run, and wait for another one."""
        lost = {run_id: program for run_id, program in self._running.items() if program.spawner == spawner}
        self._left(spawner, set().union(*(program.pipes() for program in lost.values())))
        for run_id, program in lost.items():
            del self._running[run_id]
            self._young.pop(run_id, None)
            program.lost()
