"""The front's side of the spawner: who may start now, who waits in line, and what became of each program."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import signal
import socket
import time
from collections import deque
from typing import Protocol

from gateway.cgi import wire
from gateway.cgi.process import groups_at, signal_group
from gateway.cgi.roll import Roll

# Programs started within the last moment, at once. Most programs live some milliseconds, nearly all of it on a CPU;
# more of them at the same time only take turns, and all end late. Started one after the other, each ends early, and
# the slowest requests gain most. Beyond the moment, in seconds, a program waits for something and is in nobody's way:
# so even where all of them wait, their number over the moment, a thousand a second, can be started.
_YOUNG = 4
_MOMENT = 0.004

# Too many descriptors in flight, for a user's processes together (unix(7)), or no memory: tried again, in seconds.
_FOR_NOW = frozenset((errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM))
_RETRY = 0.05


class Program(Protocol):
    """A run of a program as the launcher sees it."""

    def launch(self) -> None:
        """A place is free: make the descriptors and call `Launcher.start`."""

    def started(self, pid: int) -> None:
        """It runs, for longer than a moment."""

    def not_started(self, phase: str, error: int) -> None:
        """The start failed in ``chdir`` or ``exec``, for errno `error`."""

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
    """Starts programs through the spawner, `places` at once; more wait, first come first served."""

    def __init__(self, loop: asyncio.AbstractEventLoop, roll: Roll, places: int, max_waiting: int) -> None:
        self._loop = loop
        self._places = places
        self._max_waiting = max_waiting
        self._channel: socket.socket | None = None
        self._roll = roll
        self._running: dict[int, Program] = {}
        self._waiting: deque[Program] = deque()
        self._outbox: deque[tuple[int, bytes, list[int]]] = deque()
        self._last_id = 0
        self._young: dict[int, float] = {}  # run id: when it was started, the oldest first
        self._recheck: asyncio.TimerHandle | None = None
        self._buffer = memoryview(bytearray(wire.MESSAGE_LIMIT))

    def __repr__(self) -> str:
        return f"<Launcher: {len(self._running)} running, {len(self._waiting)} waiting>"

    @property
    def is_idle(self) -> bool:
        """Whether no program runs or waits."""
        return not self._running and not self._waiting

    def connect(self, channel: socket.socket) -> None:
        """Take the channel to a spawner, the first one or one in place of one that died."""
        self._disconnect()
        channel.setblocking(False)
        self._channel = channel
        self._loop.add_reader(channel.fileno(), self._read)
        self._admit()

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
        self._send(self._last_id, message, descriptors)
        return self._last_id

    def terminate(self, run_id: int) -> None:
        """End a run: TERM to its process group, later KILL."""
        if run_id in self._running:
            self._send(run_id, wire.encode_end(run_id), [])

    def _send(self, run_id: int, message: bytes, descriptors: list[int]) -> None:
        self._outbox.append((run_id, message, descriptors))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        channel = self._channel
        while self._outbox and channel:
            run_id, message, descriptors = self._outbox[0]
            try:
                if descriptors:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                    channel.sendmsg((message,), rights)
                else:
                    channel.send(message)
            except BlockingIOError:
                self._loop.add_writer(channel.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno in _FOR_NOW:
                    self._loop.call_later(_RETRY, self._flush)
                    return
                if error.errno != errno.EMSGSIZE:
                    return  # the spawner died; the reader learns it too, and tells everyone
                self._loop.call_soon(self._tell, ("failed", run_id, "exec", errno.E2BIG))
            self._outbox.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        if channel:
            self._loop.remove_writer(channel.fileno())

    def _read(self) -> None:
        assert self._channel
        try:
            length = self._channel.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if not length:
            self._disconnect()
            return
        for event in wire.decode_events(self._buffer[:length]):
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
        while self._waiting and self._channel and len(self._running) < self._places:
            if len(self._young) >= _YOUNG and not self._outgrown():
                return
            self._waiting.popleft().launch()

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

    def _disconnect(self) -> None:
        """The spawner is gone: end what it leaves, tell every run, and wait for another one."""
        if not self._channel:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._channel = None
        for _, _, descriptors in self._outbox:
            for descriptor in descriptors:
                os.close(descriptor)
        self._outbox.clear()
        # The roll lacks at most the one that was started last, if that very one killed the spawner.
        pipes = set().union(*(program.pipes() for program in self._running.values()))
        for pid in {*self._roll.clear(), *(groups_at(pipes) if pipes else ())}:
            signal_group(pid, signal.SIGKILL)
        self._young.clear()
        running, self._running = self._running, {}
        for program in running.values():
            program.lost()
