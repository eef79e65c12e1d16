"""The access log: one line per response, in three shapes for three readers: a file, a person, a machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.log_file import LogFile, escape


@dataclass(slots=True)
class Record:
    """What is known of one request when everything about it has ended.

    Times in seconds, sizes in bytes; `memory` is the program's peak resident size, 0 where
    it is not known. `exit` is the program's exit
    status, or its signal's name.
    """

    time: float
    client: str
    method: str
    target: str
    protocol: str
    referer: str
    agent: str
    id: str
    status: int = 0
    bytes: int = 0
    user: str = ""
    duration: float = 0.0
    pid: int = 0
    cpu: float = 0.0
    memory: int = 0
    exit: str = ""
    outcome: str = "ok"


class AccessLog:
    """Formats records and writes them in batches: lines gather until `flush`."""

    def __init__(self, path: str, log_format: str, standard: int = 1) -> None:
        """Open the log; raise OSError. `log_format` is ``combined`` or ``json``."""
        self._file = LogFile(path, standard)
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""
        self._format: Callable[[Record], str]
        if log_format == "json":
            self._format = _as_json
        elif self._file.is_terminal:
            self._format = self._for_terminal
        else:
            self._format = self._combined

    @property
    def is_off(self) -> bool:
        """Whether nothing is logged."""
        return self._file.is_off

    def add(self, record: Record) -> None:
        """Take one record."""
        if not self._file.is_off:
            self._lines.append(self._format(record))

    def flush(self) -> None:
        """Write what has gathered."""
        if self._lines:
            text = "".join(self._lines)
            self._lines.clear()
            self._file.write(text)

    def reopen(self) -> None:
        """Write what has gathered and open the log's path again."""
        self.flush()
        self._file.reopen()

    def _time(self, moment: float, pattern: str) -> str:
        if int(moment) != self._second:
            self._second = int(moment)
            self._stamp = time.strftime(pattern, time.localtime(moment))
        return self._stamp

    def _combined(self, record: Record) -> str:
        stamp = self._time(record.time, "%d/%b/%Y:%H:%M:%S %z")
        memory = f"{record.memory // 1024}K" if record.memory else "-"
        program = (
            f"pid={record.pid} cpu={record.cpu:.4f} mem={memory} exit={record.exit or '-'}"
            if record.pid
            else "pid=- cpu=- mem=- exit=-"
        )
        return (
            f"{record.client} - {escape(record.user) or '-'} [{stamp}] "
            f'"{escape(record.method)} {escape(record.target)} {record.protocol}" '
            f'{record.status} {record.bytes or "-"} '
            f'"{escape(record.referer) or "-"}" "{escape(record.agent) or "-"}" '
            f"id={record.id} time={record.duration:.4f} {program} outcome={record.outcome}\n"
        )

    def _for_terminal(self, record: Record) -> str:
        stamp = self._time(record.time, "%H:%M:%S")
        colour = {2: 32, 3: 36, 4: 33, 5: 31}.get(record.status // 100, 37)
        program = (
            f"pid {record.pid:<7} cpu {record.cpu * 1000:7.1f} ms  {_size(record.memory) if record.memory else '':>9}"
            if record.pid
            else " " * 38
        )
        outcome = "" if record.outcome == "ok" else f"  \x1b[31m{record.outcome}\x1b[0m"
        failed = f"  exit {record.exit}" if record.exit not in ("", "0") else ""
        return (
            f"\x1b[2m{stamp}\x1b[0m \x1b[{colour}m{record.status}\x1b[0m {record.duration * 1000:9.1f} ms "
            f"{_size(record.bytes):>8}  {program}  {escape(record.method):<5} {escape(record.target)}{outcome}{failed}"
            f"  \x1b[2m{record.id}\x1b[0m\n"
        )


def _size(count: float) -> str:
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


def _as_json(record: Record) -> str:
    program = record.pid != 0
    return (
        json.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.time))
                + f".{int(record.time * 1000) % 1000:03d}Z",
                "client": record.client,
                "user": record.user or None,
                "method": record.method,
                "target": record.target,
                "protocol": record.protocol,
                "status": record.status,
                "bytes": record.bytes,
                "referer": record.referer or None,
                "agent": record.agent or None,
                "id": record.id,
                "duration": round(record.duration, 6),
                "pid": record.pid or None,
                "cpu": round(record.cpu, 6) if program else None,
                "memory": record.memory or None,
                "exit": record.exit or None,
                "outcome": record.outcome,
            }
        )
        + "\n"
    )
