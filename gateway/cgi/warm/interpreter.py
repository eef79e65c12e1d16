"""One warm interpreter as the spawner sees it: started, asked for children, given requests through them.

Children are forked ahead of time, so that the fork is not in a request's way: as many wait as requests have come close
together lately. A request for which none is left waits for the next one, which is sooner than a cold start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.cgi import wire
from gateway.cgi.warm.machine import Unknown, calls
from gateway.cgi.warm.shebang import Recipe

# Starts a process from a path, arguments, an environment, and descriptors by the numbers that it is to have them at.
Starter = Callable[[bytes, list[bytes], Mapping[bytes, bytes], Mapping[int, int]], int]
# The descriptor over which it is asked. perl has its program at 3, the first that is free.
_CONTROL = 4
_HERE = os.path.dirname(os.path.abspath(__file__))
_BOOTSTRAP = {"python": os.path.join(_HERE, "bootstrap.py"), "perl": os.path.join(_HERE, "bootstrap.pl")}
# Children that wait, at least and at most; each is some megabytes of memory, most of it shared.
_FEWEST = 1
MOST = 16
# Seconds without a shortage after which one child less is kept.
_CALM = 5.0
# An interpreter is replaced after so many seconds: all that it forks have the seed of its hashes.
_AGE = 3600.0
# ... or when it has grown by so much, bytes, since it was ready.
_GROWTH = 64 * 1024 * 1024
# One that nobody wants for so many seconds ends.
_UNUSED = 600.0
# After it could not fork, so long it is not asked for children, in seconds.
_NO_ROOM = 1.0
# An interpreter that was asked and has said nothing for so long is stuck, in seconds.
_STUCK = 30.0
# A script is read ahead at most so often, seconds.
_AGAIN = 1.0
# Of what a broken interpreter has said, kept for the log.
_WORDS = 2048


@dataclass(slots=True)
class Child:
    """A process that waits for a request."""

    pid: int
    connection: socket.socket


@dataclass(slots=True)
class Waiting:
    """A request: how it was asked for, the message that tells a child of it, [stdin,] stdout, stderr; and until when,
    `time.monotonic()` seconds, it waits for a child."""

    start: wire.Start
    message: bytes
    descriptors: list[int]
    until: float


@dataclass(slots=True)
class Demand:
    """How many children should wait. Pure."""

    wanted: int = _FEWEST
    calm_since: float = field(default=float("-inf"))

    def short(self, now: float) -> None:
        """A request has found none."""
        self.wanted = min(self.wanted * 2, MOST)
        self.calm_since = now

    def calm(self, now: float) -> None:
        """A request has found one."""
        if now - self.calm_since > _CALM and self.wanted > _FEWEST:
            self.wanted -= 1
            self.calm_since = now


class Interpreter:
    """A process that forks children; raises OSError or Unknown if it cannot be started.

    `start` starts it. `limit` gives a child its limits before it has a request. `reports`: the address at which
    children tell what they have met with. `before`: the one whose place it is to take; it has ready what that one has.
    """

    def __init__(
        self,
        recipe: Recipe,
        environment: Mapping[bytes, bytes],
        preload: tuple[str, ...],
        reports: bytes,
        start: Starter,
        limit: Callable[[int], None],
        before: Interpreter | None = None,
    ) -> None:
        self.recipe = recipe
        self._limit = limit
        self.is_ready = False
        self.is_reaped = False  # its pid may be another's by now
        self.is_late = False  # requests have waited for it in vain since it was heard
        self.born = time.monotonic()
        self.waiting: deque[Waiting] = deque()
        self.refused: set[bytes] = set()  # modules that are not to be imported ahead
        self.learnt: set[bytes] = set()
        self.version = ""
        self._kept_at: dict[bytes, float] = {}  # scripts whose code it was told to keep, and when
        self._demand = Demand()
        self._born: list[int] = []
        self._begun: list[tuple[Waiting, int]] = []
        self._children: deque[Child] = deque()
        self._asked = 0  # children that were asked for and are not here
        self._used = self.born
        self._heard = self.born  # or was asked when it owed nothing
        self._no_room_until = float("-inf")
        self._size = 0  # resident memory when it became ready
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words, writing = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.set_blocking(self._words, False)
            os.set_blocking(writing, False)
            self._control.setblocking(False)
            arguments = [*recipe.arguments, os.fsencode(_BOOTSTRAP[recipe.kind]), b"%d" % _CONTROL]
            name = b"script" if recipe.is_named_after_script else b"interpreter"
            arguments += [*calls(recipe.kind), reports, name, *map(os.fsencode, preload)]
            descriptors = {0: null, 1: writing, 2: writing, _CONTROL: theirs.fileno()}
            self.pid = start(recipe.executable, arguments, environment, descriptors)
        except (OSError, Unknown):
            self._control.close()
            os.close(self._words)
            raise
        finally:
            theirs.close()
            os.close(writing)
            os.close(null)
        if before:
            self._demand.wanted = before._demand.wanted
            self.learn([b"m " + name for name in before.learnt - before.refused], self.born)
            self.learn([b"s " + path for path in before._kept_at], self.born)

    def __repr__(self) -> str:
        return f"<Interpreter {self.pid}: {len(self._children)} children wait, {len(self.waiting)} requests>"

    @property
    def has_children(self) -> bool:
        """Whether children wait: it has imported ahead what it was told to."""
        return bool(self._children)

    def fileno(self) -> int:
        """Return the descriptor on which it tells."""
        return self._control.fileno()

    # -- requests

    def submit(self, request: Waiting, now: float) -> int:
        """Give a request to a child; return the child's pid, 0 if the request has to wait for one."""
        self._used = now
        while self._children:
            child = self._children.popleft()
            if self._hand_over(child, request):
                self._demand.calm(now)
                self._refill()
                return child.pid
        self._demand.short(now)
        self.waiting.append(request)
        self._refill()
        return 0

    def withdraw(self, run_id: int) -> Waiting | None:
        """Take a request that waits back."""
        for request in self.waiting:
            if request.start[0] == run_id:
                self.waiting.remove(request)
                return request
        return None

    def _hand_over(self, child: Child, request: Waiting) -> bool:
        """Give `request` to `child`; return False if it has died."""
        with child.connection as connection:
            try:
                # It fits into the socket's buffer, or something is wrong with the child: nothing is waited for here.
                connection.setblocking(False)
                self._limit(child.pid)
                length = len(request.message).to_bytes(8, sys.byteorder)
                sent = socket.send_fds(connection, [length, request.message], request.descriptors)
            except OSError:
                return False
            if sent < 8 + len(request.message):
                return False
        for descriptor in request.descriptors:
            os.close(descriptor)
        return True

    def _refill(self) -> None:
        """Ask for children, several at once, when half of them are used up."""
        wanted = self._demand.wanted + len(self.waiting)
        there = len(self._children) + self._asked
        if (
            self.is_ready
            and time.monotonic() >= self._no_room_until
            and (there <= wanted // 2 or self.waiting)
            and there < wanted
        ):
            count = wanted - there
            with contextlib.suppress(OSError):  # its death is learnt by reading
                self._control.send(b"f %d" % count)
                if not self._asked:
                    self._heard = time.monotonic()
                self._asked += count

    # -- what it tells

    def take_begun(self) -> list[tuple[Waiting, int]]:
        """Return the requests that have found a child since the last time, and its pid."""
        begun, self._begun = self._begun, []
        return begun

    def take_refused(self, now: float) -> list[Waiting]:
        """Return the requests for which there is no child and will be none, or none in time."""
        is_hopeless = now < self._no_room_until and not self._asked
        refused = []
        while self.waiting and (is_hopeless or now > self.waiting[0].until):
            self.is_late = not is_hopeless
            refused.append(self.waiting.popleft())
        return refused

    def take_born(self) -> list[int]:
        """Return the pids of the children that were forked since the last time."""
        born, self._born = self._born, []
        return born

    def read(self) -> bool:
        """Take what it tells; return False if it has ended."""
        for _ in range(MOST):
            try:
                # Not recv_fds, which drops the flags: a program would have the descriptor, too.
                message, rights, _, _ = self._control.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                return False
            self._heard = time.monotonic()
            self.is_late = False
            verb, _, words = message.partition(b" ")
            if not message:
                return False
            if verb == b"c" and not rights:
                # There was no room for its descriptor; the child learns that by the end of its connection.
                self._asked = max(0, self._asked - 1)
                self._no_room_until = time.monotonic() + _NO_ROOM
            elif verb == b"c":
                self._asked = max(0, self._asked - 1)
                self._born.append(int(words))
                child = Child(int(words), socket.socket(fileno=int.from_bytes(rights[0][2][:4], sys.byteorder)))
                if self.waiting and self._hand_over(child, self.waiting[0]):
                    self._begun.append((self.waiting.popleft(), child.pid))
                elif not self.waiting:
                    self._children.append(child)
            elif verb == b"r":
                self.is_ready, self.version = True, words.decode("ascii", "replace")
                self._size = resident(self.pid)
            elif verb == b"n":
                self.refused.add(words)
            elif verb == b"e":
                self._asked = max(0, self._asked - 1)
                self._no_room_until = time.monotonic() + _NO_ROOM
        self._refill()
        return True

    def learn(self, lines: list[bytes], now: float) -> bool:
        """Have modules and scripts ready for later children; return whether something that it has is out of date."""
        new = []
        for line in lines:
            kind, _, name = line.partition(b" ")
            if kind == b"o":
                return True
            # One that cannot be kept is asked for again and again.
            if kind == b"s" and now - self._kept_at.get(name, float("-inf")) > _AGAIN:
                self._kept_at[name] = now
                new.append(line)
            elif kind == b"m" and name.isascii() and name not in self.refused and name not in self.learnt:
                self.learnt.add(name)
                new.append(line)
        if new:
            with contextlib.suppress(OSError):
                self._control.send(b"\n".join([b"l", *new]))
        return False

    def lost(self, pid: int) -> None:
        """A child that waited has been reaped."""
        for child in self._children:
            if child.pid == pid:
                self._children.remove(child)
                child.connection.close()
                self._refill()
                break

    def is_idle(self, now: float) -> bool:
        """Whether nobody has wanted it for long."""
        return not self.waiting and now - self._used > _UNUSED

    def is_stuck(self, now: float) -> bool:
        """Whether it does not do what it was asked for, its start included."""
        return (bool(self._asked) or not self.is_ready) and now - self._heard > _STUCK

    def is_worn(self, now: float) -> bool:
        """Whether another one should take its place."""
        return now - self.born > _AGE or (self.is_ready and resident(self.pid) > self._size + _GROWTH)

    # -- the end

    def close(self) -> str:
        """End it, and its children that wait; return the last that it said. None of these has been reaped."""
        said = b""
        with contextlib.suppress(OSError):
            while piece := os.read(self._words, 65536):
                said = (said + piece)[-_WORDS:]
        os.close(self._words)
        self._control.close()
        for child in self._children:
            child.connection.close()
            _kill(child.pid)
        self._children.clear()
        if not self.is_reaped:
            _kill(self.pid)
        return said.decode("utf-8", "backslashreplace").strip()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 if it is gone (proc(5), statm)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
