"""The status page of a pool, in the formats of php-fpm, so that what reads those reads this.

The fields have php-fpm's names, order and units; after them come ours: the configured limits, and why the pool cannot
start, if it cannot. Pure: values in, bytes out.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fcgi_pool.config import PoolConfig
from fcgi_pool.snapshot import Snapshot, WorkerState

Value = str | int | float
Fields = list[tuple[str, Value]]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# What XML 1.0 section 2.2 has no way to write.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TIMES = ("start time",)


@dataclass(slots=True)
class Counters:
    """What a pool has counted since it was started. `started`: `time.monotonic()` seconds.

    `max_children_reached`: how often more workers were wanted than max_children. `slow_requests`: how many passed
    request_slowlog_timeout. `trouble`: why no worker can be started, "" while some can. These three are the manager's
    to set; the rest comes from `note` and `ended`.
    """

    started: float
    accepted: int = 0
    max_queue: int = 0
    max_active: int = 0
    max_children_reached: int = 0
    slow_requests: int = 0
    trouble: str = ""
    _requests: dict[int, tuple[float, int]] = field(default_factory=dict)
    _is_told: bool = False

    def note(self, snapshot: Snapshot) -> None:
        """Take up what a look has shown; of every look."""
        requests = {}
        for worker in snapshot.workers:
            self._count(worker.pid, worker.started, worker.requests)
            requests[worker.pid] = (worker.started, worker.requests)
        self._requests = requests
        self._is_told = snapshot.requests is not None
        self.accepted = self.accepted if snapshot.requests is None else snapshot.requests
        self.max_queue = max(self.max_queue, snapshot.queue)
        self.max_active = max(self.max_active, snapshot.busy)

    def ended(self, pid: int, started: float, requests: int) -> None:
        """Take up what a worker that has ended had done since the last look."""
        self._count(pid, started, requests)
        self._requests[pid] = (started, requests)

    def _count(self, pid: int, started: float, requests: int) -> None:
        known, before = self._requests.get(pid, (started, 0))
        # Another worker had this pid.
        if known != started:
            before = 0
        # Fewer: it has begun to tell itself, and counts from its own start.
        if not self._is_told:
            self.accepted += max(0, requests - before)


class Page(NamedTuple):
    """A page: its Content-Type and its bytes."""

    content_type: str
    body: bytes


class _Status(NamedTuple):
    """Everything that a page shows, in php-fpm's words and ours."""

    name: str
    pool: Fields
    ours: Fields
    workers: list[Fields]
    snapshot: Snapshot
    now: float


def render(
    query: str, config: PoolConfig, snapshot: Snapshot, counters: Counters, now: float, wall: float | None = None
) -> Page:
    """Return the page that a query string asks for: ``json``, ``html``, ``xml`` or ``openmetrics``, else text.

    With ``full`` it has a row for each worker; openmetrics always has. `now`: `time.monotonic()` seconds, `wall`: the
    same moment as `time.time()` seconds, by default the present.
    """
    asked = {part.partition("=")[0] for part in query.split("&")}
    encode = next((encoder for name, encoder in _ENCODERS if name in asked), _text)
    offset = (time.time() if wall is None else wall) - now
    status = _Status(
        config.name,
        _pool_fields(config, snapshot, counters, now, offset),
        _own_fields(config, counters),
        [_worker_fields(worker, now, offset) for worker in snapshot.workers],
        snapshot,
        now,
    )
    return encode(status, "full" in asked)


def _pool_fields(config: PoolConfig, snapshot: Snapshot, counters: Counters, now: float, offset: float) -> Fields:
    return [
        ("pool", config.name),
        ("process manager", config.pm),
        ("start time", int(counters.started + offset)),
        ("start since", int(now - counters.started)),
        ("accepted conn", counters.accepted),
        ("listen queue", snapshot.queue),
        ("max listen queue", max(counters.max_queue, snapshot.queue)),
        ("listen queue len", snapshot.queue_limit),
        ("idle processes", snapshot.idle),
        ("active processes", snapshot.busy),
        ("total processes", len(snapshot.workers)),
        ("max active processes", max(counters.max_active, snapshot.busy)),
        ("max children reached", counters.max_children_reached),
        ("slow requests", counters.slow_requests),
    ]


def _own_fields(config: PoolConfig, counters: Counters) -> Fields:
    low, high = config.spare
    limits: Fields = [
        ("max children", config.max_children),
        ("start servers", config.first),
        ("min spare servers", low),
        ("max spare servers", high),
        ("max spawn rate", config.max_spawn_rate),
        ("process idle timeout", config.process_idle_timeout),
        ("max requests", config.max_requests),
        ("max memory", config.max_memory),
        ("request terminate timeout", config.request_terminate_timeout),
        ("request slowlog timeout", config.request_slowlog_timeout),
        ("process control timeout", config.process_control_timeout),
    ]
    # Whole seconds as such, as php-fpm has all its numbers.
    plain = [(name, int(value) if isinstance(value, float) and value.is_integer() else value) for name, value in limits]
    return [*plain, ("trouble", counters.trouble or "-")]


def _worker_fields(worker: WorkerState, now: float, offset: float) -> Fields:
    request = worker.request
    if worker.is_busy:
        duration = now - (request.started if request else worker.since)
    else:
        duration = worker.since - request.started if request else 0.0
    # php-fpm's, in percent of the time that the request took.
    cpu = request.cpu / duration * 100 if request and duration > 0 and not worker.is_busy else 0.0
    return [
        ("pid", worker.pid),
        ("state", "Running" if worker.is_busy else "Idle"),
        ("start time", int(worker.started + offset)),
        ("start since", int(now - worker.started)),
        ("requests", worker.requests),
        ("request duration", max(0, int(duration * 1e6))),
        ("request method", (request and request.method) or "-"),
        ("request uri", (request and request.uri) or "-"),
        ("content length", request.content_length if request else 0),
        ("user", (request and request.user) or "-"),
        ("script", (request and request.script) or "-"),
        ("last request cpu", round(cpu, 2)),
        ("last request memory", worker.memory),
    ]


def _date(wall: int) -> str:
    moment = time.localtime(wall)
    return time.strftime(f"%d/{_MONTHS[moment.tm_mon - 1]}/%Y:%H:%M:%S %z", moment)


def _shown(name: str, value: Value) -> str:
    """A value as people read it."""
    if name in _TIMES:
        return _date(int(value))
    return _number(name, value)


def _number(name: str, value: Value) -> str:
    if name == "last request cpu":
        return f"{value:.2f}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _text(status: _Status, is_full: bool) -> Page:
    def lines(fields: Fields) -> Iterator[str]:
        for name, value in fields:
            # php-fpm writes this one in capitals, here alone.
            shown = "request URI" if name == "request uri" else name
            # A control character would make a line of its own.
            words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _shown(name, value))
            yield f"{shown + ':':<21} {words}\n"

    parts = [*lines(status.pool), *lines(status.ours)]
    for worker in status.workers if is_full else ():
        parts += ["\n************************\n", *lines(worker)]
    return Page("text/plain;charset=UTF-8", _encoded(parts))


def _json(status: _Status, is_full: bool) -> Page:
    content: dict[str, object] = dict(status.pool + status.ours)
    if is_full:
        content["processes"] = [dict(worker) for worker in status.workers]
    return Page("application/json", json.dumps(content, separators=(",", ":")).encode())


def _html(status: _Status, is_full: bool) -> Page:
    title = html.escape(f"Status of the pool {status.name}")
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n',
        "<table>\n",
    ]
    for name, value in status.pool + status.ours:
        parts.append(f"<tr><th>{name}</th><td>{html.escape(_shown(name, value))}</td></tr>\n")
    parts.append("</table>\n")
    if is_full:
        parts.append('<table border="1">\n')
        for number, worker in enumerate(status.workers):
            if not number:
                parts.append("<tr>" + "".join(f"<th>{name}</th>" for name, _ in worker) + "</tr>\n")
            cells = "".join(f"<td>{html.escape(_shown(name, value))}</td>" for name, value in worker)
            parts.append(f"<tr>{cells}</tr>\n")
        parts.append("</table>\n")
    parts.append("</body></html>\n")
    return Page("text/html;charset=UTF-8", _encoded(parts))


def _xml(status: _Status, is_full: bool) -> Page:
    def elements(fields: Fields) -> Iterator[str]:
        for name, value in fields:
            tag = name.replace(" ", "-")
            yield f"<{tag}>{html.escape(_NOT_XML.sub('�', _number(name, value)))}</{tag}>"

    parts = ['<?xml version="1.0" encoding="UTF-8" ?>\n<status>\n']
    parts += [f"{element}\n" for element in elements(status.pool + status.ours)]
    if is_full:
        parts.append("<processes>\n")
        parts += [f"<process>{''.join(elements(worker))}</process>\n" for worker in status.workers]
        parts.append("</processes>\n")
    parts.append("</status>\n")
    return Page("text/xml;charset=UTF-8", _encoded(parts))


# php-fpm's name, kind and words for each of its fields.
_METRICS = (
    ("start since", "start_since", "counter", "The number of seconds since the pool has started."),
    ("accepted conn", "accepted_connections", "counter", "The number of requests accepted by the pool."),
    ("listen queue", "listen_queue", "gauge", "The number of requests in the queue of pending connections."),
    (
        "max listen queue",
        "max_listen_queue",
        "counter",
        "The maximum number of requests in the queue of pending connections since the pool has started.",
    ),
    ("listen queue len", "listen_queue_length", "gauge", "The size of the socket queue of pending connections."),
    ("idle processes", "idle_processes", "gauge", "The number of idle processes."),
    ("active processes", "active_processes", "gauge", "The number of active processes."),
    ("total processes", "total_processes", "gauge", "The number of idle + active processes."),
    (
        "max active processes",
        "max_active_processes",
        "counter",
        "The maximum number of active processes since the pool has started.",
    ),
    (
        "max children reached",
        "max_children_reached",
        "counter",
        "The number of times the process limit has been reached when more were wanted.",
    ),
    (
        "slow requests",
        "slow_requests",
        "counter",
        "The number of requests that exceeded the 'request_slowlog_timeout' value.",
    ),
)


def _openmetrics(status: _Status, is_full: bool) -> Page:
    """php-fpm's metrics as it writes them, though its counters lack the suffix _total; ours are OpenMetrics 1.0."""
    pool = dict(status.pool)
    label = re.sub(r'[\\"]', r"\\\g<0>", status.name)
    parts = _metric(
        "phpfpm_up",
        "gauge",
        f"Could pool {status.name} using a {pool['process manager']} PM be reached?",
        [("", 1)],
    )
    for name, metric, kind, words in _METRICS:
        parts += _metric(f"phpfpm_{metric}", kind, words, [("", pool[name])])
    for name, value in status.ours:
        if not isinstance(value, str):
            metric = f"fcgi_pool_{name.replace(' ', '_')}"
            parts += _metric(metric, "gauge", f"The configured {name}.", [(f'{{pool="{label}"}}', value)])
    is_up = int(dict(status.ours)["trouble"] == "-")
    parts += _metric(
        "fcgi_pool_can_start", "gauge", "Whether workers can be started.", [(f'{{pool="{label}"}}', is_up)]
    )
    for metric, kind, words, of_worker in _OF_WORKERS:
        samples = [
            (f'{{pool="{label}",pid="{worker.pid}"}}', of_worker(worker, status.now))
            for worker in status.snapshot.workers
        ]
        parts += _metric(f"fcgi_pool_worker_{metric}", kind, words, samples)
    parts.append("# EOF\n")
    return Page("application/openmetrics-text; version=1.0.0; charset=utf-8", _encoded(parts))


_OF_WORKERS: tuple[tuple[str, str, str, Callable[[WorkerState, float], Value]], ...] = (
    ("busy", "gauge", "Whether the worker serves a request.", lambda worker, now: int(worker.is_busy)),
    (
        "state_seconds",
        "gauge",
        "How long the worker has been busy, or idle.",
        lambda worker, now: round(max(0.0, now - worker.since), 3),
    ),
    ("uptime_seconds", "gauge", "How long the worker has run.", lambda worker, now: round(now - worker.started, 3)),
    ("memory_bytes", "gauge", "The worker's resident memory.", lambda worker, now: worker.memory),
    ("requests", "counter", "How many requests the worker has begun.", lambda worker, now: worker.requests),
)


def _metric(name: str, kind: str, words: str, samples: Iterable[tuple[str, Value]]) -> list[str]:
    suffix = "_total" if kind == "counter" and name.startswith("fcgi_pool_") else ""
    return [
        f"# HELP {name} {words}\n# TYPE {name} {kind}\n",
        *(f"{name}{suffix}{labels} {_number(name, value)}\n" for labels, value in samples),
    ]


def _encoded(parts: list[str]) -> bytes:
    # A path that was no UTF-8 comes with lone surrogates (PEP 383).
    return "".join(parts).encode("utf-8", "backslashreplace")


_ENCODERS: tuple[tuple[str, Callable[[_Status, bool], Page]], ...] = (
    ("html", _html),
    ("xml", _xml),
    ("json", _json),
    ("openmetrics", _openmetrics),
)
