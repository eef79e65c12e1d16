"""How many workers a pool should have, and which of them must go. Pure: what was seen in, what to do out.

The modes are php-fpm's. Static keeps max_children. Dynamic keeps between min_spare_servers and max_spare_servers idle:
once a second it starts what is missing, 1, 2, 4 … up to max_spawn_rate in seconds that follow each other, or ends the
one that is idle for longest. Ondemand starts workers when somebody waits and ends those that were idle for
process_idle_timeout. Unlike php-fpm, a connection that waits with nobody free to take it is reason enough to start a
worker at once, in either mode; a worker that was just started is free to take one.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from fcgi_pool.config import PoolConfig
from fcgi_pool.snapshot import Snapshot, WorkerState

# Seconds from TERM to KILL for a worker whose request took too long. php-fpm: until its next look, below a second.
GRACE = 1.0
_SECOND = 1.0
# Seconds between two attempts to start a worker that does not come up. systemd waits 0.1 s and gives up at the fifth
# time, php-fpm does not wait at all; we slow down and never give up.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
# Seconds until the next start after a worker was killed as it came up: whoever kills them all is not to be outrun.
_AFTER_KILL = 0.1
# Seconds after which the death of a worker that has come up is no longer a failure to start.
_HEALTHY = 10.0
# The signals that a program brings upon itself (signal(7)); any other was sent to it. Those that dump core for a bad
# address are php-fpm's crashes.
_CRASHES = frozenset((signal.SIGSEGV, signal.SIGBUS))
_OWN_FAULTS = _CRASHES | {
    signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGPIPE, signal.SIGSYS, signal.SIGTRAP, signal.SIGXCPU,
    signal.SIGXFSZ,
}  # fmt: skip
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start so many workers."""

    count: int


@dataclass(frozen=True, slots=True)
class Retire:
    """End a worker as soon as it is idle; no request may be lost."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """End a worker with what it does."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker that was told to and did not."""

    pid: int


@dataclass(frozen=True, slots=True)
class Slow:
    """Report what a worker does: its request is slow."""

    pid: int


Action = Spawn | Retire | Terminate | Kill | Slow


@dataclass(frozen=True, slots=True)
class History:
    """What was done before. Times are those of `now` in `plan`.

    `retiring`: workers told to go. `kill_at`: those terminated, and when they are killed. `reported`: those whose slow
    request was reported, and since when it ran. `not_before`: no worker is started earlier, since the last ones failed.
    """

    is_started: bool = False
    spawn_rate: int = 1
    next_check: float = float("-inf")
    retiring: frozenset[int] = frozenset()
    kill_at: Mapping[int, float] = field(default_factory=dict)
    reported: Mapping[int, float] = field(default_factory=dict)
    not_before: float = float("-inf")


def plan(config: PoolConfig, snapshot: Snapshot, now: float, history: History) -> tuple[list[Action], History]:
    """Return what to do about a pool that looks like `snapshot` at `now` (monotonic seconds), and the new history."""
    pids = {worker.pid for worker in snapshot.workers}
    history = replace(
        history,
        retiring=history.retiring & pids,
        kill_at={pid: at for pid, at in history.kill_at.items() if pid in pids},
        reported={pid: since for pid, since in history.reported.items() if pid in pids},
    )
    actions: list[Action] = []
    history = _terminate(config, snapshot, now, history, actions)
    history = _report_slow(config, snapshot, now, history, actions)
    history = _recycle(config, snapshot, history, actions)
    if config.pm == "static":
        _spawn(config.max_children - len(pids), now, history, actions)
        return actions, history
    if config.pm == "dynamic":
        history = _keep_spare(config, snapshot, now, history, actions)
    else:
        history = _end_idle(config, snapshot, now, history, actions)
        free = len(_free(snapshot, history))
        wanted = min(snapshot.queue - free, config.max_spawn_rate)
        _spawn(min(wanted, config.max_children - len(pids)), now, history, actions)
    return actions, history


@dataclass(frozen=True, slots=True)
class Failures:
    """Workers that ended before they served, one round of starts after the other.

    `rounds`: how many failed since one came up. `not_before`: when the next may be started, monotonic seconds.
    `reason`: why the last one ended. `counted`: when the present round was counted.
    """

    rounds: int = 0
    not_before: float = float("-inf")
    reason: str = ""
    counted: float = float("-inf")

    @property
    def is_broken(self) -> bool:
        """Whether the pool cannot boot. One failure is an accident; it is tried again at once."""
        return self.rounds > 1

    def failed(self, started: float, now: float, reason: str) -> Failures:
        """Return what is true after one that was `started` then ended before it served: the pause doubles by rounds."""
        if started < self.counted:
            # One of a round that is counted already.
            return replace(self, reason=reason)
        pause = min(_FIRST_PAUSE * 2 ** (self.rounds - 1), _LONGEST_PAUSE) if self.rounds else 0.0
        return Failures(self.rounds + 1, now + pause, reason, now)


    def killed(self, now: float) -> Failures:
        """Return what is true after one was killed from outside before it served. That tells nothing of the program."""
        return replace(self, not_before=max(self.not_before, now + _AFTER_KILL))


class End(Enum):
    """How a worker ended: as it was told, of its own accord, by a fault, by a crash; or as it came up, by itself or
    killed by somebody else."""

    TOLD = "told"
    DONE = "done"
    FAULT = "fault"
    CRASH = "crash"
    START = "start"
    KILLED = "killed"


def judge(code: int, age: float, *, told: bool = False, execed: bool = True, up: bool = False, served: int = 0) -> End:
    """Return how a worker ended: with status `code`, or by the signal -`code`, `age` seconds after its start.

    `told`: it was sent away. `execed`: the program was begun at all. `up`: it was seen ready. `served`: requests.
    """
    if told:
        return End.TOLD
    if not execed:
        return End.START
    if not served and not up:
        return End.KILLED if code < 0 and -code not in _OWN_FAULTS else End.START
    if not served and code > 0 and age < _HEALTHY:
        return End.START
    if not code:
        return End.DONE
    return End.CRASH if -code in _CRASHES else End.FAULT


def describe(snapshot: Snapshot) -> str:
    """Return a pool in words, the same for people and tests."""
    return f"{snapshot.busy} active, {snapshot.idle} idle, {snapshot.queue} queued"


def _spawn(count: int, now: float, history: History, actions: list[Action]) -> None:
    if count > 0 and now >= history.not_before:
        actions.append(Spawn(count))


def _free(snapshot: Snapshot, history: History) -> list[WorkerState]:
    """Return the idle workers that stay, the longest idle first."""
    gone = history.retiring | history.kill_at.keys()
    idle = [worker for worker in snapshot.workers if not worker.is_busy and worker.pid not in gone]
    return sorted(idle, key=lambda worker: worker.since)


def _terminate(
    config: PoolConfig, snapshot: Snapshot, now: float, history: History, actions: list[Action]
) -> History:
    kill_at = dict(history.kill_at)
    for pid, moment in history.kill_at.items():
        if now >= moment:
            actions.append(Kill(pid))
            kill_at[pid] = now + GRACE
    limit = config.request_terminate_timeout
    for worker in snapshot.workers if limit else ():
        if worker.is_busy and now - worker.since >= limit and worker.pid not in kill_at:
            why = f"its request took {now - worker.since:.1f} s, request_terminate_timeout is {limit:g} s"
            actions.append(Terminate(worker.pid, why))
            kill_at[worker.pid] = now + GRACE
    return replace(history, kill_at=kill_at)


def _report_slow(
    config: PoolConfig, snapshot: Snapshot, now: float, history: History, actions: list[Action]
) -> History:
    limit = config.request_slowlog_timeout
    if not limit:
        return history
    reported = dict(history.reported)
    for worker in snapshot.workers:
        if worker.is_busy and now - worker.since >= limit and reported.get(worker.pid) != worker.since:
            reported[worker.pid] = worker.since
            actions.append(Slow(worker.pid))
    return replace(history, reported=reported)


def _recycle(config: PoolConfig, snapshot: Snapshot, history: History, actions: list[Action]) -> History:
    """Let go whoever has grown too large or, if it does not count itself, has served enough."""
    retiring = set(history.retiring)
    for worker in snapshot.workers:
        if worker.pid in retiring or worker.pid in history.kill_at:
            continue
        why = ""
        if config.max_memory and worker.memory > config.max_memory:
            why = f"it has {worker.memory / _MIB:.0f} MiB, max_memory is {config.max_memory / _MIB:.0f} MiB"
        elif config.max_requests and worker.requests >= config.max_requests:
            why = f"it was seen with {worker.requests} requests, max_requests is {config.max_requests}"
        if why:
            actions.append(Retire(worker.pid, why))
            retiring.add(worker.pid)
    return replace(history, retiring=frozenset(retiring))


def _keep_spare(
    config: PoolConfig, snapshot: Snapshot, now: float, history: History, actions: list[Action]
) -> History:
    room = config.max_children - len(snapshot.workers)
    if not history.is_started:
        _spawn(min(config.first, room), now, history, actions)
        return replace(history, is_started=now >= history.not_before, next_check=now + _SECOND)
    low, high = config.spare
    free = _free(snapshot, history)
    # Waiting connections, and workers that died, are not left for the next second.
    at_once = max(min(snapshot.queue - len(free), config.max_spawn_rate), low - len(snapshot.workers), 0)
    count = at_once
    if now >= history.next_check:
        rate = 1
        missing = low - len(free)
        if missing > 0:
            count = max(at_once, min(missing, history.spawn_rate))
            rate = min(history.spawn_rate * 2, config.max_spawn_rate)
        elif len(free) > high and not at_once:
            actions.append(Retire(free[0].pid, f"{len(free)} are idle, max_spare_servers is {high}"))
            history = replace(history, retiring=history.retiring | {free[0].pid})
        history = replace(history, spawn_rate=rate, next_check=now + _SECOND)
    _spawn(min(count, room), now, history, actions)
    return history


def _end_idle(
    config: PoolConfig, snapshot: Snapshot, now: float, history: History, actions: list[Action]
) -> History:
    retiring = set(history.retiring)
    if not snapshot.queue:
        for worker in _free(snapshot, history):
            if now - worker.since >= config.process_idle_timeout:
                limit = config.process_idle_timeout
                actions.append(Retire(worker.pid, f"it was idle for process_idle_timeout, {limit:g} s"))
                retiring.add(worker.pid)
    return replace(history, retiring=frozenset(retiring))
