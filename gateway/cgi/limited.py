"""Starts a program with limits of its own, which the process that starts programs must not have itself.

It is a fork, and not posix_spawn, which knows no limits: so they are there before the first instruction of the program,
and no child that it forks at once is without. That costs some tenths of a millisecond, of those programs alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterable, Mapping
from typing import NoReturn

# The kernel's number of a limit, soft and hard limit.
Limit = tuple[int, int, int]


def start_limited(
    path: bytes, environment: Mapping[bytes, bytes], descriptors: tuple[int, int, int], limits: Iterable[Limit]
) -> int:
    """Execute `path`, in a session of its own, with descriptors 0, 1 and 2; return the pid once it runs.

    Raise OSError: no process could be made, or execve(2) failed.
    """
    report, to_report = os.pipe2(os.O_CLOEXEC)
    # A signal that comes before the exec would be told to the parent, by what the child has of it.
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
        if not pid:
            _become(path, environment, descriptors, limits, to_report)
    finally:
        os.close(to_report)
        if pid < 0:
            os.close(report)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        told = os.read(report, 16)
    finally:
        os.close(report)
    if told:
        os.waitpid(pid, 0)
        raise OSError(int(told), os.strerror(int(told)))
    return pid


def limit_process(pid: int, limits: Iterable[Limit]) -> None:
    """Give limits to a process of the same user that has not begun with a program yet; raise OSError."""
    for kind, soft, hard in limits:
        resource.prlimit(pid, kind, (soft, hard))


def _become(
    path: bytes,
    environment: Mapping[bytes, bytes],
    descriptors: tuple[int, int, int],
    limits: Iterable[Limit],
    report: int,
) -> NoReturn:
    error = errno.EPERM  # what setrlimit(2) refuses, which Python has no errno for
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        signal.set_wakeup_fd(-1)
        for caught in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(caught, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for kind, soft, hard in limits:
            resource.setrlimit(kind, (soft, hard))
        os.execve(path, (path,), environment)
    except OSError as failed:
        error = failed.errno or error
    finally:
        os.write(report, b"%d" % error)
        os._exit(127)
