"""The access log: one line per response, in three shapes for three readers: a file, a person, a machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii

from gateway.http.message import Refused, Request
from gateway.log_file import LogFile, escape


class Record:
    """What is known of one request when everything about it has ended.

    `request` is None for what was no request. Times in seconds, sizes in bytes; `memory` is the program's peak resident
    size, 0 where it is not known. `exit` is its exit status, or its signal's name, or the appStatus of FastCGI.
    """

    __slots__ = (
        "bytes", "client", "cpu", "duration", "exit", "id", "memory", "outcome", "pid", "request", "status", "time",
        "user",
    )  # fmt: skip

    def __init__(self, client: str, request: Request | None, request_id: str) -> None:
        self.time = time.time()
        self.client = client
        self.request = request
        self.id = request_id
        self.status = 0
        self.bytes = 0
        self.user = ""
        self.duration = 0.0
        self.pid = 0
        self.cpu = 0.0
        self.memory = 0
        self.exit = ""
        self.outcome = "ok"

    @property
    def line(self) -> tuple[str, str, str]:
        """Method, target and protocol."""
        request = self.request
        if request is None:
            return "-", "-", "-"
        protocol = "HTTP/1.1" if request.version >= (1, 1) else "HTTP/1.0"
        return request.method.decode("ascii"), request.target.decode("ascii"), protocol

    @property
    def origin(self) -> tuple[str, str]:
        """Referer and User-Agent."""
        request = self.request
        if request is None:
            return "", ""
        known = request.notes.get("origin")
        if known is None:
            known = request.notes["origin"] = _origin(request)
        assert isinstance(known, tuple)
        return known

    @property
    def quoted_origin(self) -> str:
        """Referer and User-Agent as the log in the combined format has them."""
        request = self.request
        known = request.notes.get("quoted") if request else '"-" "-"'
        if known is None:
            referer, agent = self.origin
            known = f'"{escape(referer) or "-"}" "{escape(agent) or "-"}"'
            if request:
                request.notes["quoted"] = known
        return str(known)


def refused_record(client: str, refused: Refused, size: int, outcome: str) -> Record:
    """Return the access log's record of what was no request."""
    record = Record(client, None, "-")
    record.status, record.bytes, record.outcome, record.duration = refused.status, size, outcome, 1e-6
    return record


def _origin(request: Request) -> tuple[str, str]:
    referer = agent = ""
    for name, value in request.fields:
        if name == b"user-agent":
            agent = value.decode("utf-8", "surrogateescape")
        elif name == b"referer":
            referer = value.decode("utf-8", "surrogateescape")
    return referer, agent


# Records that gather before they are written, at most. Formatted one after the other they cost less each.
_BATCH = 64



class AccessLog:
    """Formats records and writes them in batches: they gather until `flush`, or until there are many."""

    def __init__(self, path: str, log_format: str, standard: int = 1) -> None:
        """Open the log; raise OSError. `log_format` is ``combined`` or ``json``."""
        self._file = LogFile(path, standard)
        self._records: list[Record] = []
        self._second = 0
        self._stamp = ""
        self._format: Callable[[Record], str]
        if log_format == "json":
            self._format = self._json
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
            self._records.append(record)
            if len(self._records) >= _BATCH:
                self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if self._records:
            text = "".join(map(self._format, self._records))
            self._records.clear()
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
            else f"pid=- cpu=- mem=- exit={record.exit or '-'}"
        )
        # A method is a token (RFC 9110 section 9.1) and needs no escape.
        method, target, protocol = record.line
        return (
            f"{record.client} - {escape(record.user) if record.user else '-'} [{stamp}] "
            f'"{method} {escape(target)} {protocol}" {record.status} {record.bytes or "-"} {record.quoted_origin} '
            f"id={record.id} time={record.duration:.4f} {program} outcome={record.outcome}\n"
        )

    def _json(self, record: Record) -> str:
        # By hand: the library's encoder takes five times as long for it.
        if int(record.time) != self._second:
            self._second = int(record.time)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.time))
        method, target, protocol = record.line
        referer, agent = record.origin
        return (
            f'{{"time": "{self._stamp}.{int(record.time * 1000) % 1000:03d}Z", "client": {_text(record.client)}, '
            f'"user": {_text(record.user)}, "method": "{method}", "target": {_text(target)}, "protocol": "{protocol}", '
            f'"status": {record.status}, "bytes": {record.bytes}, "referer": {_text(referer)}, '
            f'"agent": {_text(agent)}, "id": "{record.id}", "duration": {record.duration:.6f}, '
            f'"pid": {record.pid or "null"}, "cpu": {f"{record.cpu:.6f}" if record.pid else "null"}, '
            f'"memory": {record.memory or "null"}, "exit": {_text(record.exit)}, "outcome": "{record.outcome}"}}\n'
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
        method, target, _ = record.line
        failed = f"  exit {record.exit}" if record.exit not in ("", "0") else ""
        return (
            f"\x1b[2m{stamp}\x1b[0m \x1b[{colour}m{record.status}\x1b[0m {record.duration * 1000:9.1f} ms "
            f"{_size(record.bytes):>8}  {program}  {escape(method):<5} {escape(target)}{outcome}{failed}"
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


def _text(text: str) -> str:
    """Return a text as JSON has it, and null for none."""
    return encode_basestring_ascii(text) if text else "null"
