"""``--check --run``: each program and pool is asked once, by a server of these settings that nobody else sees."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote

from fcgi_pool.listener import Address
from gateway.clients.settings import ClientSettings
from gateway.master import Master
from gateway.prepare import prepare
from gateway.private_directory import private_directory
from gateway.settings import CgiMount, Route, Settings
from gateway.systemd import Notifier
from gateway.upgrade import Predecessor

# Beyond a program's own deadline, in seconds.
_GRACE = 10.0
_HOST = "check.invalid"
_LOG_LINE = re.compile(r"^\S+ error \[(?P<id>[^\]]+)\] (?P<words>5\d\d .*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Question:
    """A request that shows whether something works; or `skipped`, why it is not made."""

    host: str
    path: str
    skipped: str = ""


def run_all(settings: Settings, sockets: str) -> int:
    """Ask every program and pool, and print what came of it; return 0, or 1 if something fails.

    `sockets`: the directory that pools listen in.
    """
    with private_directory() as directory:
        address = Address(path=os.path.join(directory, "front.sock"))
        log = os.path.join(directory, "errors")
        alone = replace(
            settings,
            listen=(address,), workers=1, access_log="off", error_log=log, pid_file="", tls=None, https_port=0,
            rewrites=(), authorizers=(), clients=ClientSettings(), routes=tuple(map(_open, settings.routes)),
        )  # fmt: skip
        pid = _start(alone, sockets)
        try:
            failed = sum(_ask(alone, address, log, question) for question in _questions(alone))
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
    print(f"{failed} failed" if failed else "all ran well")
    return 1 if failed else 0


def _open(route: Route) -> Route:
    """Return a route that lets everybody in, as often as they like."""
    limits = route.limits and replace(route.limits, rate=None, connections=0)
    return replace(route, limits=limits, auth=None)


def _start(settings: Settings, sockets: str) -> int:
    prepared = prepare(settings, [])
    pid = os.fork()
    if pid:
        for listener in prepared.listeners:
            listener.leave()
        return pid
    status = 1
    try:
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            os.environ.pop(name, None)
        status = Master(prepared, lambda: settings, sockets, Predecessor(), Notifier()).run()
    finally:
        os._exit(status)


def _questions(settings: Settings) -> Iterator[Question]:
    for route in settings.routes:
        skipped = ""
        if route.internal:
            skipped = "internal"
        elif route.methods and "GET" not in route.methods:
            skipped = f"only for {', '.join(route.methods)}"
        host = route.hosts[0].replace("*", "check") if route.hosts else _HOST
        if isinstance(route.mount, CgiMount):
            for path in _programs(route.mount):
                yield Question(host, path, skipped)
        elif route.mount:
            yield Question(host, route.prefix, skipped)


def _programs(mount: CgiMount) -> Iterator[str]:
    for directory, _, names in sorted(os.walk(mount.directory)):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                yield mount.prefix + quote(os.path.relpath(path, mount.directory))


def _ask(settings: Settings, address: Address, log: str, question: Question) -> bool:
    """Print what became of one request; return whether it failed."""
    shown = question.path if question.host == _HOST else f"{question.host}{question.path}"
    if question.skipped:
        print(f"  -      {shown}: not asked, {question.skipped}")
        return False
    begun = time.monotonic()
    try:
        status, words = _answer(settings, address, log, question)
    except (OSError, http.client.HTTPException) as error:
        status, words = 0, f"no answer: {error}"
    has_failed = not 0 < status < 500
    taken = (time.monotonic() - begun) * 1000
    print(f"  {'FAILS ' if has_failed else 'ran   '} {shown}: {words if has_failed else f'{status} in {taken:.0f} ms'}")
    return has_failed


def _answer(settings: Settings, address: Address, log: str, question: Question) -> tuple[int, str]:
    connection = http.client.HTTPConnection(question.host, timeout=settings.timeouts.script + _GRACE)
    with contextlib.closing(connection), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(settings.timeouts.script + _GRACE)
        client.connect(address.path)
        connection.sock = client
        connection.request("GET", question.path, headers={"User-Agent": "gateway --check --run"})
        response = connection.getresponse()
        request_id = response.headers.get("X-Request-Id", "")
        response.read()
        if response.status < 500:
            return response.status, ""
    with open(log, encoding="utf-8", errors="backslashreplace") as file:
        said = {found["id"]: found["words"] for found in _LOG_LINE.finditer(file.read())}
    return response.status, said.get(request_id, f"{response.status} by the program itself")
