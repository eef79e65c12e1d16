"""Starts a worker: fork, become what the configuration says, exec. The only file of the package that forks.

Some facts about starting a worker. FastCGI programs find the listening socket as descriptor 0 (section 2.2), and it
must block: libfcgi and php-cgi call accept and take EAGAIN for the end. That cannot be told to the worker alone, as the
flag belongs to the socket and not to the descriptor. The death signal is cleared by a change of user, so it is asked
for last, and then it is seen whether the manager died before. What fails between fork and exec is told through a pipe
that the exec closes: its end without a word is success.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded before any fork: a child between fork and exec should load nothing.
_LIBC = ctypes.CDLL(None)
# More is never told: a phase, a number.
_REPORT_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a worker. Everything is looked up beforehand: names of users are numbers, the program has a path.

    `user`, `group`: numbers, None to stay. `groups`: supplementary ones. `rlimit_files`, `rlimit_core`: None to keep.
    `inherited`: descriptors, besides 0, 1 and 2, that the worker keeps under their numbers.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] = ()
    chroot: str = ""
    chdir: str = ""
    rlimit_files: int | None = None
    rlimit_core: int | None = None
    priority: int | None = None
    inherited: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was forked. `report`: read by `exec_failure` once it is readable. `output`: what it writes."""

    pid: int
    report: int
    output: int


def start(launch: Launch, listener: int) -> Started:
    """Start a worker that listens on `listener`; raise OSError if no process or descriptor is left.

    The descriptors of the result are the caller's to close.
    """
    report, to_report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        output, to_output = os.pipe2(os.O_CLOEXEC)
    except OSError:
        os.close(report)
        os.close(to_report)
        raise
    manager = os.getpid()
    try:
        pid = _fork()
    except OSError:
        for descriptor in (report, to_report, output, to_output):
            os.close(descriptor)
        raise
    if not pid:
        _become(launch, listener, to_output, to_report, manager)
    os.close(to_report)
    os.close(to_output)
    os.set_blocking(output, False)
    return Started(pid, report, output)


def start_helper(run: Callable[[int], None], listener: int, name: str) -> int:
    """Fork a process that calls `run(listener)` and ends; it holds no descriptor of ours but standard error.

    Return its pid; raise OSError. `name` is shown by ps(1) as the thread's.
    """
    manager = os.getpid()
    pid = _fork()
    if pid:
        return pid
    status = 1
    with contextlib.suppress(BaseException):
        os.setsid()
        _reset_signals()
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name)
        os.dup2(listener, 0)
        for number in _open_descriptors():
            if number > 2:
                with contextlib.suppress(OSError):
                    os.close(number)
        die_with(manager)
        run(0)
        status = 0
    os._exit(status)


def _fork() -> int:
    """Fork; the child has all signals blocked until it calls `_reset_signals`.

    Until then it has the manager's handlers, and the descriptor that those write to: a signal that ends the child would
    be told to the manager, and end that.
    """
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def exec_failure(report: int) -> str | None:
    """Return why a worker was not started, in words; '' if it was; None if that is not known yet."""
    try:
        told = os.read(report, _REPORT_LIMIT)
    except BlockingIOError:
        return None
    if not told:
        return ""
    phase, number, subject = told.decode("utf-8", "backslashreplace").split("\0", 2)
    return _in_words(phase, int(number), subject)


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when `parent` dies, even if it is stopped or stuck (prctl(2))."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before it was asked


def _become(launch: Launch, listener: int, output: int, report: int, manager: int) -> NoReturn:
    phase, subject = "descriptors", ""
    try:
        os.setsid()
        _place_descriptors(listener, output, launch.inherited, report)
        for step in _steps(launch):
            phase, subject, act = step
            act()
        _reset_signals()
        os.umask(0o022)
        die_with(manager)
        phase, subject = "exec", launch.arguments[0]
        os.execve(launch.arguments[0], launch.arguments, launch.environment)
    except OSError as error:
        _tell(report, phase, error.errno or 0, subject)
    except BaseException:
        _tell(report, phase, 0, subject)
    os._exit(127)


def _place_descriptors(listener: int, output: int, inherited: tuple[int, ...], report: int) -> None:
    os.dup2(listener, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in _open_descriptors():
        if number > 2 and number != report:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(number, number in inherited)


def _steps(launch: Launch) -> list[tuple[str, str, Callable[[], object]]]:
    """Return what is done between fork and exec, in its order: phase, what it is about, and the deed."""
    steps: list[tuple[str, str, Callable[[], object]]] = []
    limits = (
        ("rlimit_files", resource.RLIMIT_NOFILE, launch.rlimit_files),
        ("rlimit_core", resource.RLIMIT_CORE, launch.rlimit_core),
    )
    for name, kind, value in limits:
        if value is not None:
            steps.append((name, str(value), partial(resource.setrlimit, kind, (value, value))))
    if launch.priority is not None:
        priority = launch.priority
        steps.append(("process_priority", str(priority), lambda: os.setpriority(os.PRIO_PROCESS, 0, priority)))
    if launch.chroot:
        steps.append(("chroot", launch.chroot, lambda: os.chroot(launch.chroot)))
        steps.append(("chdir", "/", lambda: os.chdir("/")))
    group, user = launch.group, launch.user
    if group is not None:
        steps.append(("group", str(group), lambda: os.setgroups(launch.groups)))
        steps.append(("group", str(group), lambda: os.setresgid(group, group, group)))
    if user is not None:
        steps.append(("user", str(user), lambda: os.setresuid(user, user, user)))
    if launch.chdir:
        # As the worker's user: what that one may not enter is no place for it.
        steps.append(("chdir", launch.chdir, lambda: os.chdir(launch.chdir)))
    return steps


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _reset_signals() -> None:
    """Put all signals at their default and block none; Python ignores SIGPIPE, and so would what it starts."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _tell(report: int, phase: str, number: int, subject: str) -> None:
    told = f"{phase}\0{number}\0{subject}".encode("utf-8", "surrogateescape")
    with contextlib.suppress(OSError):
        os.write(report, told[:_REPORT_LIMIT])


def _in_words(phase: str, number: int, subject: str) -> str:
    reason = os.strerror(number) if number else "unknown error"
    if phase != "exec":
        return f"{phase} {subject}: {reason}"
    if number == errno.ENOENT and os.path.exists(subject):
        return f"{subject}: the interpreter that its first line names does not exist{_first_line(subject)}"
    if number == errno.EACCES and _lacks_execute_bit(subject):
        return f"{subject}: not executable; chmod +x {subject}"
    if number == errno.ENOEXEC:
        return f"{subject}: no program and no script (its first line does not begin with #!)"
    return f"{subject}: {reason}"


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            line = file.readline(128)
    except OSError:
        return ""
    if not line.startswith(b"#!"):
        return ""
    words = ascii(line.rstrip(b"\n").decode("utf-8", "backslashreplace"))
    return f": {words}" + (" (it ends with a carriage return)" if line.endswith(b"\r\n") else "")


def _lacks_execute_bit(path: str) -> bool:
    try:
        found = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(found) and not found & 0o111
