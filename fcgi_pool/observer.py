"""Who is busy, and since when, in a pool of programs that do not tell.

Some facts about looking from outside. A FastCGI program serves one connection at a time, so a worker that holds an
accepted connection is busy, and cannot take another. Where the web server opens a connection for each request, its age
is the age of the request. Where it keeps connections, a worker that waits for bytes from its peer has no request under
way, so its time starts anew whenever it is seen waiting; between two requests that follow at once it is not, unless the
web server tells. What begins and ends between two looks is not seen: that worker was idle, and its request is not
counted, unless the web server tells.

A look costs one dump of the kernel's sockets, and a link or a file of /proc for each connection. A program accepts
nearly always on the same descriptor, so a new connection is looked for there first; among all descriptors, and those of
the worker's children, only when it is still there at the next look. A connection that is nobody's is given up after
three looks.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fcgi_pool import proc
from fcgi_pool.scoreboard import Row, Scoreboard
from fcgi_pool.snapshot import RequestInfo, Snapshot, WorkerState
from fcgi_pool.sock_diag import Connection, SockDiag, Sockets
from fcgi_pool.told import Carried, Told

# FastCGI 1.0 section 2.2: the listening socket is descriptor 0.
_LISTENER = 0
# Seconds for which a worker's memory is taken as read.
_MEMORY_AGE = 1.0
# Seconds of processor time, some thirty years: more is nonsense.
_CPU_LIMIT = 1e9
# Looks in which a connection's holder is searched for: it may have been between accepting and having a descriptor, or
# between a parent and its child.
_SEARCHES = 3


@dataclass(slots=True)
class _Held:
    """An accepted connection and who has it: `pid` is the worker, `holder` itself or a child of it, 0 not known.

    `peer`: the inode of the other side. `not_before`: when it was not accepted yet; a request that waited for that is
    no older. `counted`: how many of its requests were added to a worker's.
    """

    since: float
    peer: int = 0
    not_before: float = float("-inf")
    counted: int = 0
    pid: int = 0
    holder: int = 0
    descriptor: int = -1
    searches: int = 0
    is_idle: bool = False
    request: RequestInfo | None = None


@dataclass(slots=True)
class _Worker:
    """What is remembered of a worker from look to look."""

    since: float
    is_busy: bool = False
    requests: int = 0
    memory: int = 0
    memory_read: float = float("-inf")
    # Where it had its last connection.
    descriptor: int = -1
    request: RequestInfo | None = None
    held: list[_Held] = field(default_factory=list)


class Observer:
    """Looks at the workers of one pool, which accept on `listener`; `scoreboard` is what those that tell write in.

    Raises OSError where the kernel tells nothing of its sockets.
    """

    def __init__(self, listener: socket.socket, scoreboard: Scoreboard | None = None) -> None:
        self._diag = SockDiag(listener)
        self._scoreboard = scoreboard
        self._workers: dict[int, _Worker] = {}
        self._held: dict[int, _Held] = {}  # inode: who has it
        self._sockets = Sockets()
        self._looked = float("-inf")
        self._usual = -1  # where a worker, whichever, had a connection last

    def close(self) -> None:
        """Give the descriptor back."""
        self._diag.close()

    def connections(self) -> Collection[int]:
        """Return the inodes of the connections that are accepted at this moment; raise OSError if that is not told."""
        return self._diag.look().connections.keys()

    def look(self, pids: Mapping[int, float], now: float, told: Told | None = None) -> Snapshot:
        """Return the pool as it is now. Raises nothing: a worker that has gone meanwhile is idle.

        `pids`: the workers and when each was started. `now`: `time.monotonic()` seconds. `told`: what a web server of
        ours says of its connections.
        """
        # A kernel short of memory refuses now and then; then the last answer holds.
        with contextlib.suppress(OSError):
            self._sockets = self._diag.look()
        rows = self._scoreboard.rows() if self._scoreboard else {}
        for pid in self._workers.keys() - pids.keys():
            del self._workers[pid]
        for pid in pids.keys() - self._workers.keys():
            self._workers[pid] = _Worker(pids[pid])
        silent = [pid for pid in pids if pid not in rows]
        carried = told.connections if told else {}
        for held in self._held.values():
            # Before it is forgotten: it may be closed by now.
            self._count(held, carried.get(held.peer), now)
        self._forget()
        if silent:
            self._place(silent, now)
        self._judge(now, carried)
        self._looked = now
        states = []
        for pid in sorted(pids):
            worker = self._workers[pid]
            if now - worker.memory_read >= _MEMORY_AGE:
                worker.memory, worker.memory_read = proc.memory(pid), now
            row = rows.get(pid)
            states.append(_as_told(row, pids[pid], worker.memory, now) if row else self._as_seen(pid, pids[pid], now))
        requests = told.requests if told else None
        return Snapshot(tuple(states), self._sockets.queue, self._sockets.limit, requests)

    def _count(self, held: _Held, carried: Carried | None, now: float) -> None:
        """Add to its worker's requests those that a connection has had since."""
        worker = self._workers.get(held.pid)
        if worker and carried and carried.requests > held.counted:
            worker.requests += carried.requests - held.counted
            worker.since = now
            # Of those that were short nothing is known.
            worker.request = None
            held.counted = carried.requests

    def _forget(self) -> None:
        """Drop the connections that are no longer where they were."""
        connections = self._sockets.connections
        for inode, held in list(self._held.items()):
            if held.holder:
                if held.pid in self._workers and proc.holds(held.holder, held.descriptor) == inode:
                    continue
                # Perhaps given to a child: its age and that it was counted are kept.
                held.holder, held.searches = 0, 1
            if inode not in connections:
                del self._held[inode]

    def _place(self, pids: list[int], now: float) -> None:
        """Find out which worker has each new connection."""
        connections = self._sockets.connections
        for inode in connections.keys() - self._held.keys():
            self._held[inode] = _Held(now, connections[inode].peer, self._looked)
        wanted = {inode for inode, held in self._held.items() if not held.holder and held.searches < _SEARCHES}
        if not wanted:
            return
        for pid in pids:
            descriptor = self._workers[pid].descriptor
            descriptor = self._usual if descriptor < 0 else descriptor
            if descriptor >= 0 and (inode := proc.holds(pid, descriptor)) in wanted:
                self._found(inode, pid, pid, descriptor, wanted)
        thorough = {inode for inode in wanted if self._held[inode].searches or self._usual < 0}
        for pid, holder in _in_turn(pids) if thorough else ():
            for inode, descriptor in proc.sockets(holder, thorough).items():
                self._found(inode, pid, holder, descriptor, wanted)
                thorough.remove(inode)
            if not thorough:
                break
        for inode in wanted:
            self._held[inode].searches += 1

    def _found(self, inode: int, pid: int, holder: int, descriptor: int, wanted: set[int]) -> None:
        held = self._held[inode]
        worker = self._workers[pid]
        if held.pid != pid:
            worker.requests += 1
            worker.request = None
            held.counted = max(1, held.counted)
        if holder == pid:
            worker.descriptor = self._usual = descriptor
        held.pid, held.holder, held.descriptor = pid, holder, descriptor
        wanted.discard(inode)

    def _judge(self, now: float, told: Mapping[int, Carried]) -> None:
        """Find out what each connection's worker does with it."""
        for worker in self._workers.values():
            worker.held.clear()
        for inode, held in self._held.items():
            if not held.holder:
                continue
            self._workers[held.pid].held.append(held)
            connection = self._sockets.connections.get(inode)
            carried = told.get(connection.peer) if connection else None
            if carried:
                self._count(held, carried, now)
                _take(held, carried, now)
                # It cannot take who waits.
                held.is_idle = carried.request is None and not self._sockets.queue
            elif held.since < now:
                _judge_by_call(held, connection, now)

    def _as_seen(self, pid: int, started: float, now: float) -> WorkerState:
        worker = self._workers[pid]
        busy = [held for held in worker.held if not held.is_idle]
        if busy:
            oldest = min(busy, key=lambda held: held.since)
            worker.since = oldest.since
            worker.request = oldest.request
        elif worker.is_busy:
            worker.since = now
        worker.is_busy = bool(busy)
        return WorkerState(pid, started, worker.is_busy, worker.since, worker.requests, worker.memory, worker.request)


def _in_turn(pids: Iterable[int]) -> Iterable[tuple[int, int]]:
    """Yield worker and process to search: all workers first, then what they started."""
    for pid in pids:
        yield pid, pid
    for pid in pids:
        for child in proc.descendants(pid):
            yield pid, child


def _take(held: _Held, carried: Carried, now: float) -> None:
    """Take what a web server tells of a connection's request."""
    request = carried.request
    held.since = max(request.started, held.not_before) if request else now
    held.request = replace(request, started=held.since) if request else None


def _judge_by_call(held: _Held, connection: Connection | None, now: float) -> None:
    """Say whether a worker that has had a connection for some time works, by the system call it waits in."""
    call = proc.call(held.holder)
    held.is_idle = held.holder == held.pid and call.accepts(_LISTENER) and proc.is_single_threaded(held.pid)
    if call.reads(held.descriptor) and not (connection and connection.unread):
        held.since = now


def _as_told(row: Row, started: float, memory: int, now: float) -> WorkerState:
    """Return a worker's own words, where they make sense."""
    since = _between(row.since, started, now)
    request = None
    if row.requests:
        request = RequestInfo(
            row.method,
            row.uri,
            max(0, row.content_length),
            row.user,
            row.script,
            _between(row.started, started, now),
            _between(row.cpu, 0.0, _CPU_LIMIT),
        )
    return WorkerState(row.pid, started, row.is_busy, since, row.requests, memory, request)


def _between(value: float, low: float, high: float) -> float:
    # Not a number is neither.
    return value if low <= value <= high else low
