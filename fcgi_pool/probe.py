"""What a worker is at, now and for certain: for what must not be decided by a look that is a moment old.

Some facts about ending a program that does not cooperate without losing a request. A process that is stopped
(SIGSTOP) accepts nothing, since it has left the kernel's line of those that wait. So it is stopped, then its
descriptors are looked at, and if none is an accepted connection, TERM is sent before it goes on: the connection that
comes in that moment is another worker's. If there is one, it just goes on and has noticed nothing. Its own signal for
a graceful end is no better where a program has one: libfcgi, told by USR1 while it waits for the first byte of a
connection, drops that connection and then turns in circles; and PHP's sleep() ends early. But a web server that keeps
its connections busy leaves no moment without one. So those two, of which it is known that they finish their request,
are told also at work, while they compute: then no system call is interrupted. (libfcgi then still serves a connection
that is kept until the web server closes it.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection

from fcgi_pool import proc

_LISTENER = 0
# Numbers of the system calls that wait for one of several descriptors, by machine: poll, select and epoll.
_WAITS = {
    "x86_64": (7, 23, 232, 270, 271, 281, 441),
    "aarch64": (22, 72, 73, 441),
    "riscv64": (22, 72, 73, 441),
}.get(os.uname().machine, ())
# Seconds for a stop to take effect; it takes microseconds, unless the process waits for a disk.
_STOPS_WITHIN = 0.05


def accepts(pid: int) -> bool:
    """Whether a worker, or a process it has started, waits for connections."""
    for process in (pid, *proc.descendants(pid)):
        call = proc.call(process)
        if call.accepts(_LISTENER) or call.number in _WAITS:
            return True
    return False


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; False if it has gone."""
    for line in proc.read(pid, "status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line[7:], 16) >> (number - 1) & 1)
    return False


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group of a worker that has not been reaped."""
    try:
        os.killpg(pid, number)
    except OSError:
        # Between fork and setsid it has no group yet.
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def terminate_if_idle(pid: int, connections: Callable[[], Collection[int]]) -> bool:
    """Send TERM to a worker's group unless one of it holds a connection that would break; return whether it was sent.

    `connections`: returns the inodes of the connections that have been accepted, asked for once the worker is stopped;
    raises OSError if that cannot be told, and then nothing is sent.
    """
    signal_group(pid, signal.SIGSTOP)
    is_idle = False
    try:
        group = (pid, *proc.descendants(pid))
        if all(_is_stopped(process) for process in group):
            with contextlib.suppress(OSError):
                accepted = connections()
                is_idle = not any(proc.sockets(process, accepted) for process in group) or _finishes(pid)
        if is_idle:
            signal_group(pid, signal.SIGTERM)
    finally:
        signal_group(pid, signal.SIGCONT)
    return is_idle


def _finishes(pid: int) -> bool:
    """Whether a stopped worker computes, and is of those that take TERM to mean: after this request."""
    if proc.call(pid).number != -1 or not catches(pid, signal.SIGTERM):
        return False
    return proc.read(pid, "comm").startswith("php-cgi") or _maps(pid, b"/libfcgi.so")


def _maps(pid: int, library: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return library in file.read()
    except OSError:
        return False


def _is_stopped(pid: int) -> bool:
    deadline = time.monotonic() + _STOPS_WITHIN
    while True:
        state = proc.read(pid, "stat").rpartition(")")[2].split()[:1]
        if not state or state[0] in "TtZX":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
