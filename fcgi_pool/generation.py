"""The workers of a pool that were started from one configuration: started, looked at, judged, ended.

A reload makes a new generation beside the old one; both accept on the same socket until the old one has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial

from fcgi_pool import probe, process
from fcgi_pool.handover import Line
from fcgi_pool.lifecycle import Ladder, Rung
from fcgi_pool.log import Log
from fcgi_pool.lookup import runs_our_runtime
from fcgi_pool.loop import Loop
from fcgi_pool.observer import Observer
from fcgi_pool.policy import End, Failures, History, Kill, Retire, Slow, Spawn, Terminate, judge, plan
from fcgi_pool.prepare import Prepared
from fcgi_pool.process import Launch
from fcgi_pool.scoreboard import Scoreboard
from fcgi_pool.slowlog import SlowLog, Trace
from fcgi_pool.snapshot import Snapshot, WorkerState
from fcgi_pool.sock_diag import SockDiag
from fcgi_pool.status import Counters
from fcgi_pool.told import Reader
from fcgi_pool.worker import Output, Worker, describe_end

# Seconds after which a worker of which nothing can be seen is taken to have come up.
_COMES_UP_WITHIN = 5.0
# Seconds after which a request is expected to take longer still.
_LONG = 1.0


class Generation:
    """The workers of a pool as it was `prepared`; `counters` are the pool's. Raises OSError: no descriptor is left.

    `told`: reads what a web server says of its connections.
    """

    def __init__(
        self, prepared: Prepared, loop: Loop, log: Log, counters: Counters, told: Reader | None = None
    ) -> None:
        self.prepared = prepared
        self.config = config = prepared.config
        self._listener = listener = prepared.sockets.listener
        self.workers: dict[int, Worker] = {}
        self.snapshot = Snapshot()
        self.failures = Failures()
        self.ladder: Ladder | None = None
        self._counters = counters
        self._told = told
        self._wants_more = False
        self.wanted = 0  # workers it began with
        self._loop = loop
        self._log = log
        self._history = History()
        self._diag = _asked(listener)
        self._slowlog = SlowLog(config.slowlog) if config.slowlog else None
        tells = runs_our_runtime(config)
        self._scoreboard = Scoreboard(config.max_children) if tells else None
        self._line = Line() if tells and config.max_children > 1 else None
        if not tells:
            # Programs wait in accept. Our own runtime does not, and says so to the socket, which all share, by itself.
            listener.setblocking(True)
        self._observer = Observer(listener, self._scoreboard) if self._diag else None
        if not self._observer:
            self.say("warning", "the kernel tells nothing of its sockets: who is busy is not known")

    def __repr__(self) -> str:
        snapshot = self.snapshot
        return f"<Generation {self.config.name}: {snapshot.busy} active, {snapshot.idle} idle, {snapshot.queue} queued>"

    def say(self, level: str, text: str) -> None:
        """Log something about the pool."""
        self._log.write(level, text, self.config.name)

    # -- starting

    def spawn(self, count: int, now: float) -> None:
        """Start `count` workers, or as many as can be."""
        for _ in range(min(count, self.config.max_children - len(self.workers))):
            slot = self._scoreboard.reserve() if self._scoreboard else None
            trace = None
            try:
                # Only Python can be armed for it, and we know that it is for an application.
                trace = Trace() if self.config.app and self._slowlog else None
                started = process.start(self._launch_with(slot, trace), self._listener.fileno())
            except OSError as error:
                self._give_back(slot, trace)
                self._failed(now, now, f"no worker can be started: {error.strerror}")
                return
            pid = started.pid
            output = Output(self._loop, started.output, partial(self._worker_wrote, pid))
            worker = Worker(pid, now, started.report, output, slot, trace)
            self.workers[pid] = worker
            self._loop.watch(started.report, partial(self._exec_told, worker))
            self.say("debug", f"worker {pid} started")

    def begin_with(self, count: int, now: float) -> None:
        """Start so many workers at first, whatever the mode."""
        self.wanted = count
        self._history = replace(self._history, is_started=True)
        self.spawn(count, now)

    def _launch_with(self, slot: int | None, trace: Trace | None) -> Launch:
        launch = self.prepared.launch
        environment = dict(launch.environment)
        inherited = list(launch.inherited)
        if self._scoreboard and slot is not None:
            environment["FCGI_POOL_SCOREBOARD"] = f"{self._scoreboard.fileno()}:{slot}"
            inherited.append(self._scoreboard.fileno())
        if self._line:
            environment["FCGI_POOL_HANDOVER"] = self._line.environment
            inherited += self._line.filenos()
        if trace:
            environment["FCGI_POOL_TRACE"] = trace.environment
            inherited.append(trace.fileno())
        return replace(launch, environment=environment, inherited=tuple(inherited))

    def _give_back(self, slot: int | None, trace: Trace | None) -> None:
        if self._scoreboard and slot is not None:
            self._scoreboard.release(slot)
        if trace:
            trace.close()

    def _exec_told(self, worker: Worker) -> None:
        why = process.exec_failure(worker.report)
        if why is not None:
            worker.exec_failure = why
            self._close_report(worker)

    def _close_report(self, worker: Worker) -> None:
        if worker.report >= 0:
            self._loop.ignore(worker.report)
            os.close(worker.report)
            worker.report = -1

    def _worker_wrote(self, pid: int, line: str) -> None:
        if self.config.catch_workers_output:
            self.say("warning", f"worker {pid} says: {line}")

    def _failed(self, started: float, now: float, reason: str) -> None:
        was_broken = self.failures.is_broken
        self.failures = self.failures.failed(started, now, reason)
        pause = self.failures.not_before - now
        more = f"; the next is started in {pause:.1f} s" if pause > 0 else ""
        self.say("error" if self.failures.is_broken or was_broken else "warning", reason + more)

    # -- looking

    @property
    def booting(self) -> list[Worker]:
        """The workers that have not come up yet."""
        return [worker for worker in self.workers.values() if not worker.is_ready and worker.told is None]

    @property
    def is_waiting(self) -> bool:
        """Whether a worker should be looked at soon: it comes up, or is to go when it is idle."""
        leaving = any(worker.told is Rung.QUIT and not worker.heard for worker in self.workers.values())
        return leaving or bool(self.booting)

    @property
    def is_up(self) -> bool:
        """Whether a worker serves."""
        return any(worker.is_ready and worker.told is None for worker in self.workers.values())

    @property
    def is_full(self) -> bool:
        """Whether no more workers may be started."""
        return len(self.workers) >= self.config.max_children

    def look(self, now: float) -> Snapshot:
        """See what the workers do."""
        pids = {pid: worker.started for pid, worker in self.workers.items()}
        if self._observer:
            self.snapshot = self._observer.look(pids, now, self._told.read(now) if self._told else None)
        else:
            states = (WorkerState(pid, started, False, started, 0, 0) for pid, started in sorted(pids.items()))
            self.snapshot = Snapshot(tuple(states))
        if self.booting:
            self._look_at_booting(now)
        return self.snapshot

    def _look_at_booting(self, now: float) -> None:
        busy = {state.pid for state in self.snapshot.workers if state.is_busy or state.requests}
        rows = self._scoreboard.rows() if self._scoreboard else {}
        for worker in self.booting:
            if worker.report >= 0 or worker.exec_failure:
                continue
            if self._scoreboard:
                worker.is_ready = worker.pid in rows
            else:
                is_old = now - worker.started > _COMES_UP_WITHIN
                worker.is_ready = worker.pid in busy or probe.accepts(worker.pid) or is_old
            if worker.is_ready:
                self.say("debug", f"worker {worker.pid} serves, after {now - worker.started:.2f} s")
                if self.failures.is_broken:
                    self.say("notice", f"worker {worker.pid} serves: the pool has recovered")
                self.failures = Failures()

    # -- judging

    def step(self, now: float) -> None:
        """Look, and do what the policy says."""
        snapshot = self.look(now)
        history = replace(self._history, not_before=self.failures.not_before)
        actions, self._history = plan(self.config, self._with_line(snapshot), now, history)
        for action in actions:
            if isinstance(action, Spawn):
                if self.ladder is None:
                    # While nothing comes up, one attempt at a time is enough.
                    self.spawn(min(action.count, 1) if self.failures.is_broken else action.count, now)
            elif isinstance(action, Retire):
                self.say("debug", f"worker {action.pid} is to go: {action.why}")
                self._tell(self.workers[action.pid], Rung.QUIT, action.why)
            elif isinstance(action, Terminate):
                asked = _asked_for(snapshot, action.pid)
                self.say("warning", f"worker {action.pid} is terminated: {action.why}{asked}")
                self._tell(self.workers[action.pid], Rung.TERM, action.why)
            elif isinstance(action, Kill):
                self._tell(self.workers[action.pid], Rung.KILL, "")
            elif isinstance(action, Slow):
                self._counters.slow_requests += 1
                self._report_slow(snapshot, action.pid, now)
        if self.failures.is_broken and not self.workers and now >= self.failures.not_before and self.ladder is None:
            # Also where nobody waits, as who comes is turned away at once.
            self.spawn(1, now)
        for worker in self.workers.values():
            if worker.told is Rung.QUIT and not worker.heard:
                self._quit(worker)
        if self._slowlog:
            self._slowlog.write_due(now)
        self._note_limit(snapshot)

    def _with_line(self, snapshot: Snapshot) -> Snapshot:
        """Count who stands in the line while all are busy: a request may have come. How many is not known."""
        if self._line and not snapshot.idle and not self._line.is_empty:
            return replace(snapshot, queue=snapshot.queue + 1)
        return snapshot

    def _note_limit(self, snapshot: Snapshot) -> None:
        """Count and tell when somebody waits and no more workers may be started."""
        wanted_more = self._wants_more
        self._wants_more = self.config.pm != "static" and self.is_full and bool(snapshot.queue) and not snapshot.idle
        if self._wants_more and not wanted_more:
            self._counters.max_children_reached += 1
            self.say("warning", f"max_children is reached: {self.config.max_children}; {snapshot.queue} wait")

    def _report_slow(self, snapshot: Snapshot, pid: int, now: float) -> None:
        self.say("warning", f"worker {pid} is slow{_asked_for(snapshot, pid)}")
        for state in snapshot.workers:
            if state.pid == pid and self._slowlog:
                self._slowlog.begin(self.config.name, state, now, self.workers[pid].trace)

    def reopen(self) -> None:
        """Open the slow log again; raise OSError."""
        if self._slowlog:
            self._slowlog.reopen()

    # -- ending

    def descend(self, ladder: Ladder) -> None:
        """Have all workers go: `ladder` says how urgently."""
        self.ladder = ladder
        for worker in self.workers.values():
            self._tell(worker, ladder.rung, "")

    def push(self, now: float) -> None:
        """Send who has not gone in time to the next rung."""
        if self.ladder and self.workers:
            after = self.ladder.climb(now)
            if after is not self.ladder:
                names = ", ".join(map(str, sorted(self.workers)))
                self.say("warning", f"workers {names} have not ended in time: {after.rung.name}")
                self.descend(after)

    def _tell(self, worker: Worker, rung: Rung, why: str) -> None:
        was_told = worker.told is not None and (worker.told > rung or (worker.told == rung and worker.heard))
        if was_told and rung is not Rung.KILL:
            return
        worker.told, worker.why, worker.heard = rung, why or worker.why, True
        if rung is Rung.QUIT:
            self._quit(worker)
        elif rung is Rung.TERM:
            probe.signal_group(worker.pid, signal.SIGTERM)
            # Who is stopped takes no TERM before it goes on.
            probe.signal_group(worker.pid, signal.SIGCONT)
        else:
            probe.signal_group(worker.pid, signal.SIGKILL)

    def _quit(self, worker: Worker) -> None:
        """Let a worker go if it is idle; `heard` stays false if it has to be tried again."""
        if self._scoreboard:
            # Our own runtime finishes what it is at.
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGUSR1)
            worker.heard = True
        elif not self._is_at_something_long(worker):
            # Tried until it has ended: a program may be told between its look whether it was and its accept.
            probe.terminate_if_idle(worker.pid, self._connections)
            worker.heard = False

    def _is_at_something_long(self, worker: Worker) -> bool:
        """Whether a worker need not be disturbed by asking: it was busy and will be for some time."""
        states = [state for state in self.snapshot.workers if state.pid == worker.pid]
        return bool(states and states[0].is_busy and time.monotonic() - states[0].since > _LONG)

    def _connections(self) -> Collection[int]:
        if not self._diag:
            raise OSError("not known")
        return self._diag.look().connections

    def ended(self, pid: int, status: int, now: float) -> End:
        """Forget a worker that has been reaped with `status`; return how it ended."""
        worker = self.workers.pop(pid)
        if worker.report >= 0:
            self._exec_told(worker)
        self._close_report(worker)
        worker.output.close()
        served = next((state.requests for state in self.snapshot.workers if state.pid == pid), 0)
        if self._scoreboard and worker.slot is not None:
            row = self._scoreboard.row(worker.slot)
            served = row.requests if row else served
        self._counters.ended(pid, worker.started, served)
        if self._slowlog:
            self._slowlog.forget(pid)
        self._give_back(worker.slot, worker.trace)
        code = os.waitstatus_to_exitcode(status)
        age = now - worker.started
        told, execed = worker.told is not None, not worker.exec_failure
        end = judge(code, age, told=told, execed=execed, up=worker.is_ready, served=served)
        words = f"worker {pid} {describe_end(status)} after {age:.1f} s"
        said = f": {worker.output.tail}" if worker.output.tail else ""
        if end is End.START:
            if worker.exec_failure:
                self._failed(worker.started, now, f"no worker can be started: {worker.exec_failure}")
            else:
                words = f"worker {pid} {describe_end(status)} before it served, after {age:.1f} s"
                if not status:
                    words += " (a FastCGI program goes on: is this one a CGI program?)"
                self._failed(worker.started, now, words + said)
        elif end is End.KILLED:
            self.failures = self.failures.killed(now)
            self.say("warning", f"worker {pid} {describe_end(status)} as it came up, after {age:.1f} s{said}")
        elif end in (End.FAULT, End.CRASH):
            self.say("warning", words + said)
        else:
            self.say("debug", words)
        return end

    def close(self) -> None:
        """Give the descriptors back; all workers have ended."""
        if self._observer:
            self._observer.close()
        if self._diag:
            self._diag.close()
        if self._scoreboard:
            self._scoreboard.close()
        if self._line:
            self._line.close()
        if self._slowlog:
            self._slowlog.close()


def _asked(listener: socket.socket) -> SockDiag | None:
    try:
        return SockDiag(listener)
    except OSError:
        return None


def _asked_for(snapshot: Snapshot, pid: int) -> str:
    """Return what a worker works on, if it is known, as the end of a sentence."""
    for state in snapshot.workers:
        if state.pid == pid and state.request and state.request.method:
            return f": {state.request.method} {state.request.uri}"
    return ""
