"""Which limit a program has met with, in words that name its key, as far as that can be told from how it ended."""

from __future__ import annotations

import errno
import os
import re
import signal

from gateway.confinement.model import CgroupLimits, Confinement, Limits, is_set, shown

# What programs say of a call that failed, by what it is about: strerror(3), and what interpreters make of it.
_COMPLAINTS = (
    (
        "memory",
        re.compile(
            r"MemoryError|[Oo]ut of memory|[Cc]annot allocate memory|[Cc]an't allocate memory|bad_alloc|OutOfMemory"
            r"|memory exhausted|failed to map segment"
        ),
    ),
    (
        "processes",
        re.compile(r"Resource temporarily unavailable|[Cc]an(?:no|')t fork|can't start new thread|unable to fork"),
    ),
    ("files", re.compile(r"Too many open files|shared object file: Error 24")),
    ("file_size", re.compile(r"File too large|File size limit exceeded")),
)
_START = {errno.ENOMEM: "memory", errno.EAGAIN: "processes", errno.EMFILE: "files"}
# How a process ends that gets no memory and does not expect that.
_HELPLESS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL)


def limit_met(confinement: Confinement, status: int | None, cpu: float, stderr: str, oom: bool) -> str:
    """Return which limit a program has met with, '' where none is seen.

    `status`: its wait status, if it has ended. `cpu`: seconds that it has used. `oom`: the kernel has killed something
    in its cgroup for lack of memory.
    """
    limits = confinement.limits
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    used_up = number in (signal.SIGXCPU, signal.SIGKILL) and limits.cpu is not None and cpu >= limits.cpu - 0.5
    if number == signal.SIGXCPU or used_up:
        own = f"its {limits.cpu} s" if limits.cpu is not None else "its share"
        return f"it used more than {own} of CPU (limits.cpu)"
    if number == signal.SIGXFSZ:
        return _too_much(confinement, "file_size", "it wrote to a file beyond")
    if oom:
        return f"the cgroup of its programs was out of memory ({_key(confinement.cgroup, 'cgroup', 'memory')})"
    for name, complaint in _COMPLAINTS:
        if complaint.search(stderr):
            said = _too_much(confinement, name, "that may be for")
            if said:
                return said
    if number in _HELPLESS and limits.memory is not None:
        return _too_much(confinement, "memory", "that may be for")
    return ""


def start_limit(confinement: Confinement, error: int) -> str:
    """Return which limit may be the reason why no program could be started, with errno `error`; '' for none."""
    return _too_much(confinement, _START.get(error, ""), "that may be for")


def _too_much(confinement: Confinement, name: str, how: str) -> str:
    """Return words for what `name` limits, in a process or in all together; '' where neither is limited."""
    tables: tuple[tuple[str, Limits | CgroupLimits], ...] = (
        ("limits", confinement.limits), ("cgroup", confinement.cgroup),
    )  # fmt: skip
    keys = [_key(table, title, name) for title, table in tables if hasattr(table, name) and is_set(table, name)]
    if not keys:
        return ""
    whose = f" of {confinement.who}" if name == "processes" and confinement.account else ""
    return f"{how} {' or '.join(keys)}{whose}"


def _key(table: Limits | CgroupLimits, title: str, name: str) -> str:
    return f"{title}.{name} = {shown(table, name)}"
