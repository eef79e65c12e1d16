"""What a pool looked like at one moment. Values only: seen by the observer, judged by the policy, shown by the status.

All times are `time.monotonic()` seconds, so that a clock that is set back changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """One request, as the worker that answers it tells, or the web server that has sent it.

    `content_length`: bytes of its body. `user`: who it was made as (REMOTE_USER), or "". `script`: SCRIPT_FILENAME.
    `cpu`: seconds of processor time it took; 0.0 until it has been answered.
    """

    method: str
    uri: str
    content_length: int
    user: str
    script: str
    started: float
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker.

    `since`: when it became busy or idle. `requests`: how many it has begun; of a program that does not tell, how many
    were seen, so at most as many. `memory`: resident bytes, 0 if it could not be read. `request`: the one it answers,
    or, when idle, the one it answered last; None where nothing tells.
    """

    pid: int
    started: float
    is_busy: bool
    since: float
    requests: int
    memory: int
    request: RequestInfo | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool: its workers in the order of their pids, and the connections that wait to be accepted.

    `queue_limit`: how many the kernel lets wait; more are refused, or block in connect(2). `requests`: how many there
    have been in all, where a web server tells.
    """

    workers: tuple[WorkerState, ...] = ()
    queue: int = 0
    queue_limit: int = 0
    requests: int | None = None

    @property
    def busy(self) -> int:
        """How many workers are busy."""
        return sum(worker.is_busy for worker in self.workers)

    @property
    def idle(self) -> int:
        """How many workers are idle."""
        return len(self.workers) - self.busy
