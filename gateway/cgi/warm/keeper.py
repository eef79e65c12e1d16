"""The warm interpreters of one spawner: which script is run by which of them, and what is to be done cold, and why."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.cgi import wire
from gateway.cgi.warm.interpreter import Interpreter, Starter, Waiting
from gateway.cgi.warm.machine import Unknown
from gateway.cgi.warm.shebang import Recipe, recipe_for
from gateway.cgi.warm.verdicts import Verdicts

# A larger request could fill a socket's buffer, and is rare enough to start cold.
_MESSAGE_LIMIT = 96 * 1024
# What an interpreter that did not come up, or died soon, costs: seconds until the next attempt, doubled each time.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_HEALTHY = 10.0
# A request that has waited for a child so long, in seconds, is better off cold: the interpreter is at an import, say.
# One that must not be started cold waits longer.
_PATIENCE = 1.0
_LONG_PATIENCE = 30.0
# Interpreters at once: as many as there are of names, flags and virtual environments in first lines. Each is a process
# and its children; those of more scripts than that start cold.
_MOST = 64
# Looked after so often, in seconds.
CARE = 1.0
_REPORT_LIMIT = 64 * 1024
# The wait status of a child that could not be its script: exit status 127.
_FAILED = 127 << 8
_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid (unix(7))


@dataclass(frozen=True, slots=True)
class WarmMount:
    """What a warm interpreter needs to know of a mount: what is the same for all its requests."""

    environment: Mapping[bytes, bytes]
    is_required: bool  # a script that cannot be run warm is not run at all
    preload: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """The request runs in process `pid`."""

    pid: int


@dataclass(frozen=True, slots=True)
class Held:
    """The request waits for a process; it will be told of."""


@dataclass(frozen=True, slots=True)
class Cold:
    """The request has to be started cold, for the reason `why`; '' if that is no matter for the log."""

    why: str


@dataclass(slots=True)
class _Trouble:
    """Of a recipe that does not work."""

    why: str
    pause: float
    until: float


_Key = tuple[int, Recipe]


class Keeper:
    """Runs scripts warm.

    `spawn` starts a process, `limit` limits a child that waits, see `Interpreter`. `begun`: a request that was held has
    found its process. `cold`: it has to be started cold after all. `was_cold`: process `pid` has executed the script
    after all. Raises OSError.
    """

    def __init__(
        self,
        mounts: Mapping[int, WarmMount],
        spawn: Starter,
        limit: Callable[[int], None],
        begun: Callable[[wire.Start, int], None],
        cold: Callable[[wire.Start, list[int], str], None],
        was_cold: Callable[[int, str], None],
    ) -> None:
        self._mounts = mounts
        self._spawn = spawn
        self._limit = limit
        self._begun = begun
        self._cold = cold
        self._was_cold = was_cold
        self._interpreters: dict[_Key, Interpreter] = {}
        self._successors: dict[_Key, Interpreter] = {}  # each takes the place of one of those when it is ready
        self._children: dict[int, Interpreter] = {}  # pid, not reaped: whose child it is
        self._leaving: set[int] = set()  # pids of interpreters that end, and have not been reaped
        self._troubles: dict[_Key, _Trouble] = {}
        self._recipes: dict[int, Verdicts[Recipe | str]] = {}  # of each mount
        self._failures: dict[int, tuple[str, str]] = {}  # pid: what of a start has failed in it, and errno or reason
        self._cared = 0.0
        self._reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reports.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._address = f"gateway-{os.getpid()}-{secrets.token_hex(8)}".encode()
        self._reports.bind(b"\0" + self._address)
        self._reports.setblocking(False)

    def __repr__(self) -> str:
        return f"<Keeper: {list(self._interpreters.values())}>"

    @property
    def has_interpreters(self) -> bool:
        """Whether there is something to care for."""
        return bool(self._interpreters)

    @property
    def readers(self) -> dict[int, Callable[[], None]]:
        """What is to be called when which descriptor is readable."""
        readers: dict[int, Callable[[], None]] = {self._reports.fileno(): self._read_reports}
        for key, interpreter in self._all():
            readers[interpreter.fileno()] = functools.partial(self._read, key, interpreter)
        return readers

    def _all(self) -> list[tuple[_Key, Interpreter]]:
        return [*self._interpreters.items(), *self._successors.items()]

    # -- requests

    def start(self, start: wire.Start, descriptors: list[int]) -> Begun | Held | Cold:
        """Begin a request whose descriptors are [stdin,] stdout, stderr; they are closed here unless it is cold."""
        _, path, directory, environment, _, number = start
        mount = self._mounts[number]
        recipe = self._recipe(path, number)
        if isinstance(recipe, str):
            return Cold(recipe)
        interpreter = self._interpreter((number, recipe))
        if isinstance(interpreter, str):
            return Cold(interpreter)
        if interpreter.is_late and not mount.is_required:
            return Cold("")
        message = (
            b"\0".join(
                [b"W" if mount.is_required else b"w", path, directory]
                + [name + b"=" + value for name, value in environment.items()]
            )
            + b"\0"
        )
        if len(message) > _MESSAGE_LIMIT:
            return Cold("" if not mount.is_required else "its environment is too large")
        now = time.monotonic()
        until = now + (_LONG_PATIENCE if mount.is_required else _PATIENCE)
        pid = interpreter.submit(Waiting(start, message, descriptors, until), now)
        if not pid:
            self._release(interpreter)
        return Begun(pid) if pid else Held()

    def _submit(self, interpreter: Interpreter, request: Waiting) -> None:
        """Give an interpreter a request that has waited for another."""
        pid = interpreter.submit(request, time.monotonic())
        if pid:
            self._begun(request.start, pid)

    def withdraw(self, run_id: int) -> bool:
        """Forget a request that is held; return whether it was."""
        for interpreter in self._interpreters.values():
            request = interpreter.withdraw(run_id)
            if request:
                for descriptor in request.descriptors:
                    os.close(descriptor)
                return True
        return False

    def _recipe(self, path: bytes, number: int) -> Recipe | str:
        recipes = self._recipes.get(number)
        if not recipes:
            search = self._mounts[number].environment.get(b"PATH", b"")
            recipes = self._recipes[number] = Verdicts(lambda script: recipe_for(script, search))
        try:
            return recipes.of(path)
        except OSError as error:
            return f"{error.strerror}"

    def _interpreter(self, key: _Key) -> Interpreter | str:
        if key not in self._interpreters and len(self._interpreters) >= _MOST:
            return f"{_MOST} other interpreters are warm already"
        interpreter = self._interpreters.get(key) or self._new(key, None)
        if isinstance(interpreter, Interpreter):
            self._interpreters[key] = interpreter
        return interpreter

    def _new(self, key: _Key, before: Interpreter | None) -> Interpreter | str:
        """Start an interpreter, or say why it cannot be started."""
        trouble = self._troubles.get(key)
        if trouble and time.monotonic() < trouble.until:
            return trouble.why
        mount = self._mounts[key[0]]
        try:
            return Interpreter(
                key[1], mount.environment, mount.preload, self._address, self._spawn, self._limit, before
            )
        except (OSError, Unknown) as error:
            why = f"{os.fsdecode(key[1].executable)} cannot be started: {getattr(error, 'strerror', '') or error}"
            return self._note_trouble(key, why)

    def _replace(self, key: _Key) -> None:
        """Have another take the place of an interpreter when it is ready; until then this one serves."""
        if key not in self._successors:
            successor = self._new(key, self._interpreters[key])
            if isinstance(successor, Interpreter):
                self._successors[key] = successor

    def _note_trouble(self, key: _Key, why: str) -> str:
        before = self._troubles.get(key)
        pause = min(before.pause * 2, _LONGEST_PAUSE) if before else _FIRST_PAUSE
        self._troubles[key] = _Trouble(why, pause, time.monotonic() + pause)
        return why

    # -- what is told

    def _read(self, key: _Key, interpreter: Interpreter) -> None:
        if interpreter not in (self._interpreters.get(key), self._successors.get(key)):
            return  # its end was learnt by its reaping, a moment ago
        is_alive = interpreter.read()
        for request, pid in interpreter.take_begun():
            self._begun(request.start, pid)
        for pid in interpreter.take_born():
            self._children[pid] = interpreter
        self._release(interpreter)
        if not is_alive:
            self._drop(key, interpreter, "it ended")
        elif interpreter.has_children and self._successors.get(key) is interpreter:
            before = self._interpreters.get(key)
            self._interpreters[key] = self._successors.pop(key)
            if before:
                self._drop(key, before, "")

    def _release(self, interpreter: Interpreter) -> None:
        """Start cold what waits in vain."""
        for request in interpreter.take_refused(time.monotonic()):
            self._cold(request.start, request.descriptors, "")

    def _read_reports(self) -> None:
        """Take what children tell at their end. Who they are is the kernel's word."""
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        while True:
            try:
                message, ancillary, _, _ = self._reports.recvmsg(_REPORT_LIMIT, space)
            except OSError:
                return
            pid = _CREDENTIALS.unpack(ancillary[0][2][: _CREDENTIALS.size])[0] if ancillary else 0
            if pid in self._children:
                self._take_report(self._children[pid], pid, message.split(b"\n"))
            # Else it is nobody that we know, or was already reaped.

    def _take_report(self, interpreter: Interpreter, pid: int, lines: list[bytes]) -> None:
        for line in lines:
            verb, _, words = line.decode("utf-8", "backslashreplace").partition(" ")
            if verb in ("chdir", "exec", "unfit"):
                self._failures[pid] = verb, words
            elif verb == "cold":
                self._was_cold(pid, words)
        for key, current in list(self._interpreters.items()):
            if current is interpreter and interpreter.learn(lines, time.monotonic()):
                self._replace(key)

    # -- the end of processes

    def reaped(self, pid: int) -> bool:
        """Take note that `pid`, which is no request's, has ended; return whether it was known."""
        if pid in self._leaving:
            self._leaving.remove(pid)
            return True
        for key, interpreter in self._all():
            if interpreter.pid == pid:
                interpreter.is_reaped = True
                self._read(key, interpreter)
                if pid not in self._leaving:
                    self._drop(key, interpreter, "it ended")
                self._leaving.discard(pid)
                return True
        for key, interpreter in self._all():
            # It may have been born and not been seen yet.
            self._read(key, interpreter)
        forker = self._children.pop(pid, None)
        if forker:
            forker.lost(pid)
        return forker is not None

    def ended(self, pid: int, status: int) -> tuple[str, str] | None:
        """The process of a request has ended with a wait status. Return what of its start has failed, if that is so:
        chdir or exec, and errno; or ``unfit``, and why it could not be run warm."""
        if pid not in self._children:
            return None
        failed = None
        if status == _FAILED:
            self._read_reports()
            failed = self._failures.pop(pid, None)
        del self._children[pid]
        return failed

    def _drop(self, key: _Key, interpreter: Interpreter, why: str) -> None:
        """Have an interpreter end: it is worn, out of date (`why` is ''), or has failed."""
        for table in (self._interpreters, self._successors):
            if table.get(key) is interpreter:
                del table[key]
        said = interpreter.close()
        self._leaving.add(interpreter.pid)
        age = time.monotonic() - interpreter.born
        reason = ""
        if why and (not interpreter.is_ready or age < _HEALTHY):
            name = os.fsdecode(key[1].executable)
            early = "" if interpreter.is_ready else " before it was ready"
            words = f": {_last_line(said)}" if said else ""
            reason = self._note_trouble(key, f"the warm {name}: {why}{early}{words}")
        elif why:
            self._troubles.pop(key, None)
        heir: Interpreter | str | None = self._interpreters.get(key)
        if interpreter.waiting and not heir and why and self._mounts[key[0]].is_required:
            heir = self._interpreter(key)
        for request in interpreter.waiting:
            if isinstance(heir, Interpreter):
                self._submit(heir, request)
            else:
                self._cold(request.start, request.descriptors, reason)

    def care(self) -> None:
        """Replace what is worn or stuck, end what is unused, start cold what waits; to be called each second or so."""
        now = time.monotonic()
        if now - self._cared < CARE:
            return
        self._cared = now
        for key, interpreter in self._all():
            self._release(interpreter)
            if interpreter.is_stuck(now):
                self._drop(key, interpreter, "it does not answer")
            elif self._interpreters.get(key) is not interpreter:
                continue
            elif interpreter.is_idle(now):
                self._drop(key, interpreter, "")
            elif interpreter.is_worn(now):
                self._replace(key)

    def close(self) -> None:
        """Let all of them end."""
        for key, interpreter in self._all():
            self._drop(key, interpreter, "")
        self._reports.close()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
