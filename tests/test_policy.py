"""Policy and lifecycle of pools: what was seen in, what to do out. Tables, no process."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_pool.config import PoolConfig
from fcgi_pool.lifecycle import FAST, Ladder, Lifecycle, Phase, Rung
from fcgi_pool.policy import (
    GRACE,
    Action,
    End,
    Failures,
    History,
    Kill,
    Retire,
    Slow,
    Spawn,
    Terminate,
    describe,
    judge,
    plan,
)
from fcgi_pool.snapshot import Snapshot, WorkerState

NOW = 1000.0
STARTED = History(is_started=True)


def config(pm: str, **values: object) -> PoolConfig:
    """Return a pool with 8 children at most."""
    return PoolConfig("a", command=("a",), pm=pm, **{"max_children": 8, **values})  # type: ignore[arg-type]


def snapshot(busy: int = 0, idle: int = 0, queue: int = 0, since: float = NOW) -> Snapshot:
    """Return busy workers 1, 2 … and after them idle ones, each idle for a second longer than the next."""
    workers = [WorkerState(pid, 0.0, True, since, 1, 0) for pid in range(1, busy + 1)]
    workers += [WorkerState(busy + n, 0.0, False, NOW - idle + n, 1, 0) for n in range(1, idle + 1)]
    return Snapshot(tuple(workers), queue, 128)


def actions(pool: PoolConfig, seen: Snapshot, history: History = STARTED, now: float = NOW) -> list[Action]:
    """Return what is planned."""
    return plan(pool, seen, now, history)[0]


@pytest.mark.parametrize(
    ("pool", "seen", "expected"),
    [
        (config("static"), snapshot(), [Spawn(8)]),
        (config("static"), snapshot(busy=3, idle=4), [Spawn(1)]),
        (config("static"), snapshot(busy=8, queue=9), []),
        # Below the least spare: one in the first second.
        (config("dynamic", min_spare_servers=3), snapshot(busy=4, idle=1), [Spawn(1)]),
        # Workers that died are replaced at once, and who waits gets one at once.
        (config("dynamic", min_spare_servers=3), snapshot(busy=1), [Spawn(2)]),
        (config("dynamic"), snapshot(busy=2, idle=1, queue=4), [Spawn(3)]),
        (config("dynamic"), snapshot(busy=2, idle=1, queue=1), []),
        (config("dynamic"), snapshot(busy=6, queue=30), [Spawn(2)]),
        (config("dynamic"), snapshot(busy=8, queue=30), []),
        (config("dynamic", max_spawn_rate=1), snapshot(busy=2, queue=5), [Spawn(1)]),
        # Above the most spare: the one that is idle for longest.
        (config("dynamic", max_spare_servers=2), snapshot(busy=1, idle=3), [
            Retire(2, "3 are idle, max_spare_servers is 2"),
        ]),
        (config("dynamic", max_spare_servers=3), snapshot(busy=1, idle=3), []),
        (config("ondemand"), snapshot(), []),
        (config("ondemand"), snapshot(queue=2), [Spawn(2)]),
        (config("ondemand"), snapshot(busy=1, idle=2, queue=2), []),
        (config("ondemand"), snapshot(busy=8, queue=2), []),
        (config("ondemand", process_idle_timeout=2.0), snapshot(idle=3), [
            Retire(1, "it was idle for process_idle_timeout, 2 s"),
        ]),
        (config("ondemand", process_idle_timeout=2.0), snapshot(idle=3, queue=3), []),
    ],
)  # fmt: skip
def test_how_many(pool: PoolConfig, seen: Snapshot, expected: list[Action]) -> None:
    """Static, dynamic and ondemand."""
    assert actions(pool, seen) == expected


def test_the_first_workers_of_a_dynamic_pool() -> None:
    """start_servers, or what php-fpm computes; once."""
    assert actions(config("dynamic", min_spare_servers=2, max_spare_servers=6), snapshot(), History()) == [Spawn(4)]
    first, history = plan(config("dynamic", start_servers=2), snapshot(), NOW, History())
    assert first == [Spawn(2)]
    assert actions(config("dynamic"), snapshot(busy=1, idle=1), history) == []


def test_the_rate_doubles_second_by_second() -> None:
    """1, 2, 4 up to max_spawn_rate, and 1 again when enough are idle."""
    pool = config("dynamic", max_children=100, min_spare_servers=50, max_spare_servers=60, max_spawn_rate=8)
    history, spawned = STARTED, []
    for second in range(6):
        planned, history = plan(pool, snapshot(busy=60, idle=2), NOW + second, history)
        spawned += [action.count for action in planned if isinstance(action, Spawn)]
        # Between two seconds nothing more.
        planned, history = plan(pool, snapshot(busy=60, idle=2), NOW + second + 0.5, history)
        assert not planned
    assert spawned == [1, 2, 4, 8, 8, 8]
    _, history = plan(pool, snapshot(busy=30, idle=55), NOW + 7, history)
    assert history.spawn_rate == 1


def test_a_request_that_takes_too_long() -> None:
    """TERM once, KILL after a grace, again and again until it is gone; then it is forgotten."""
    pool = config("static", max_children=1, request_terminate_timeout=5.0)
    assert actions(pool, snapshot(busy=1, since=NOW - 4.9)) == []
    planned, history = plan(pool, snapshot(busy=1, since=NOW - 5), NOW, STARTED)
    assert planned == [Terminate(1, "its request took 5.0 s, request_terminate_timeout is 5 s")]
    planned, history = plan(pool, snapshot(busy=1, since=NOW - 5), NOW + GRACE / 2, history)
    assert planned == []
    for turn in (1, 2):
        planned, history = plan(pool, snapshot(busy=1, since=NOW - 5), NOW + turn * GRACE, history)
        assert planned == [Kill(1)]
    planned, history = plan(pool, snapshot(), NOW + 3, history)
    assert (planned, history.kill_at) == ([Spawn(1)], {})


def test_a_slow_request_is_reported_once() -> None:
    """Once a request; the next request of the worker is another."""
    pool = config("static", max_children=1, request_slowlog_timeout=2.0)
    seen = snapshot(busy=1, since=NOW - 2)
    planned, history = plan(pool, seen, NOW, STARTED)
    assert planned == [Slow(1)]
    assert plan(pool, seen, NOW + 9, history)[0] == []
    assert plan(pool, snapshot(busy=1, since=NOW), NOW + 2, history)[0] == [Slow(1)]


def test_recycling() -> None:
    """By memory and by requests, told once; a worker that is to go is no spare one."""
    worker = WorkerState(1, 0.0, False, NOW, 10, 200 << 20)
    seen = Snapshot((worker,), 0, 128)
    pool = config("static", max_children=1, max_memory=100 << 20)
    planned, history = plan(pool, seen, NOW, STARTED)
    assert planned == [Retire(1, "it has 200 MiB, max_memory is 100 MiB")]
    assert plan(pool, seen, NOW, history)[0] == []
    counted = config("static", max_children=1, max_requests=10)
    assert actions(counted, seen) == [Retire(1, "it was seen with 10 requests, max_requests is 10")]
    spare = config("ondemand", max_requests=10)
    assert Spawn(1) in actions(spare, replace(seen, queue=1))


def test_failures_to_start() -> None:
    """The first is tried again at once; then the pause doubles, by rounds and not by workers, up to ten seconds."""
    failures = Failures()
    pauses = []
    now = NOW
    for _ in range(10):
        started = now
        for _ in range(4):
            failures = failures.failed(started, now + 0.01, "why")
        pauses.append(round(failures.not_before - now - 0.01, 3))
        now = failures.not_before + 0.01
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert failures.is_broken
    assert not Failures().failed(NOW, NOW, "an accident").is_broken
    waits = History(is_started=True, not_before=NOW + 1)
    assert actions(config("static"), snapshot(), waits) == []
    assert actions(config("static"), snapshot(), waits, NOW + 1) == [Spawn(8)]


def test_kills_are_no_failures_to_start() -> None:
    """However many: each puts off the next start for a moment, and no more; what is known of failures stays."""
    failures = Failures()
    for turn in range(20):
        failures = failures.killed(NOW + turn)
        assert not failures.is_broken
        assert failures.not_before == pytest.approx(NOW + turn + 0.1)
    broken = Failures(rounds=5, not_before=NOW + 1.6, reason="why", counted=NOW)
    assert broken.killed(NOW) == broken
    assert broken.killed(NOW + 1.6) == replace(broken, not_before=NOW + 1.7)
    once = Failures().failed(NOW, NOW, "why").killed(NOW)
    assert once.failed(NOW + 1, NOW + 2, "again").is_broken


_KILLS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
_FAULTS = ("SIGABRT", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP", "SIGPIPE", "SIGXCPU", "SIGXFSZ")


@pytest.mark.parametrize(
    ("codes", "booting", "up", "serves"),
    [
        # While it came up; early, without a request; and after one.
        ((1, 3, 127, 255), End.START, End.START, End.FAULT),
        ((0,), End.START, End.DONE, End.DONE),
        (_KILLS, End.KILLED, End.FAULT, End.FAULT),
        ((-34, -64), End.KILLED, End.FAULT, End.FAULT),
        (_FAULTS, End.START, End.FAULT, End.FAULT),
        (("SIGSEGV", "SIGBUS"), End.START, End.CRASH, End.CRASH),
    ],
)
def test_how_a_worker_ended(codes: tuple[str | int, ...], booting: End, up: End, serves: End) -> None:
    """By an exit status or a signal, a crash or a kill."""
    for given_code in codes:
        code = -signal.Signals[given_code] if isinstance(given_code, str) else given_code
        assert judge(code, 0.5) is judge(code, 600.0) is booting, code
        assert judge(code, 0.5, up=True) is up, code
        assert judge(code, 0.5, up=True, served=1) is judge(code, 0.5, served=1) is serves, code
        assert judge(code, 600.0, up=True) is serves, code
        assert judge(code, 0.5, execed=False) is End.START, code
        assert judge(code, 0.5, told=True, up=True) is End.TOLD, code


@given(
    st.sampled_from(["static", "dynamic", "ondemand"]),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 50)), max_size=20),
)
def test_never_more_than_max_children(pm: str, limit: int, looks: list[tuple[int, int, int]]) -> None:
    """Whatever is seen: no more are started than there is room for, and only workers that are there are told to go."""
    pool = PoolConfig("a", command=("a",), pm=pm, max_children=limit)
    history = History()
    for turn, (busy, idle, queue) in enumerate(looks):
        seen = snapshot(min(busy, limit), min(idle, max(0, limit - busy)), queue)
        planned, history = plan(pool, seen, NOW + turn * 0.3, history)
        assert sum(action.count for action in planned if isinstance(action, Spawn)) <= limit - len(seen.workers)
        there = {worker.pid for worker in seen.workers}
        assert {action.pid for action in planned if not isinstance(action, Spawn)} <= there


def test_a_pool_in_words() -> None:
    """People and tests read the same."""
    assert describe(snapshot(2, 1, 3)) == "2 active, 1 idle, 3 queued"


def test_the_ladder() -> None:
    """QUIT, TERM when the time is up, KILL; and who is in a hurry begins higher."""
    ladder = Ladder.graceful(NOW, 30.0)
    assert ladder.climb(NOW + 29.9) is ladder
    term = ladder.climb(NOW + 30)
    assert term.rung is Rung.TERM
    kill = term.climb(term.deadline)
    assert kill.rung is Rung.KILL
    assert kill.climb(kill.deadline) == Ladder(Rung.KILL, kill.deadline + FAST)
    assert ladder.hurried(NOW, Rung.TERM) == Ladder(Rung.TERM, NOW + FAST)
    assert kill.hurried(NOW, Rung.TERM) is kill


def test_phases_only_rise() -> None:
    """A reload does not undo an end, and the second TERM is KILL."""
    normal = Lifecycle()
    reloading = normal.ask(Phase.RELOADING)
    assert reloading.phase is Phase.RELOADING
    assert reloading.reloaded() == normal
    finishing = reloading.ask(Phase.FINISHING)
    assert finishing.ask(Phase.RELOADING) == finishing
    assert finishing.is_ending
    first = finishing.ask(Phase.TERMINATING)
    assert (first.phase, first.rung) == (Phase.TERMINATING, Rung.TERM)
    assert first.ask(Phase.TERMINATING).rung is Rung.KILL
    assert first.ask(Phase.FINISHING).phase is Phase.TERMINATING
