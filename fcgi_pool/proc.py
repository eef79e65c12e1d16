"""What /proc tells about a process. The parsers are pure; a process that has gone is no error but an empty answer.

Some facts about rights. A process's descriptors and system call are shown to its own user, and to root only with
CAP_SYS_PTRACE (ptrace(2), access mode checking), which root in a container mostly lacks. So where root is refused, it
looks again as the process's user; meanwhile it can be signalled by nobody else, since its real user stays (kill(2)).
That is the whole process's doing: whoever calls these functions as root has one thread.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SOCKET = re.compile(r"socket:\[([0-9]+)\]")
# Longer than anything read here but a kernel stack, which is cut.
_ROOM = 16 * 1024

# Numbers of system calls, by machine (syscall(2)): those that accept, and those that read from a descriptor.
# Their first argument is the descriptor.
_ACCEPTS = {"x86_64": (43, 288), "aarch64": (202, 242), "riscv64": (202, 242)}
_READS = {"x86_64": (0, 19, 45, 47), "aarch64": (63, 65, 207, 212), "riscv64": (63, 65, 207, 212)}
_MACHINE = os.uname().machine


class Call(NamedTuple):
    """A system call that a process waits in. `number`: -1 none, as when it runs."""

    number: int = -1
    first_argument: int = 0

    def accepts(self, descriptor: int) -> bool:
        """Whether it waits for a connection on that descriptor. False where the machine's numbers are not known."""
        return self.number in _ACCEPTS.get(_MACHINE, ()) and self.first_argument == descriptor

    def reads(self, descriptor: int) -> bool:
        """Whether it waits for bytes from that descriptor. False where the machine's numbers are not known."""
        return self.number in _READS.get(_MACHINE, ()) and self.first_argument == descriptor

    def takes_descriptor(self) -> bool:
        """Whether it is one of those, so that its first argument is a descriptor."""
        return self.accepts(self.first_argument) or self.reads(self.first_argument)


def parse_socket(link: str) -> int:
    """Return the inode of the socket that a link of /proc/PID/fd names, 0 for anything else."""
    match = _SOCKET.fullmatch(link)
    return int(match[1]) if match else 0


def parse_memory(text: str) -> int:
    """Return the resident bytes that /proc/PID/statm tells, 0 if it does not."""
    fields = text.split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def parse_call(text: str) -> Call:
    """Return the system call of /proc/PID/syscall."""
    fields = text.split()
    if len(fields) < 2 or fields[0] == "-1" or fields[0] == "running":
        return Call()
    return Call(int(fields[0]), int(fields[1], 16))


def parse_threads(text: str) -> int:
    """Return the number of threads that /proc/PID/stat tells, 0 if it does not."""
    # The name, in parentheses, may hold anything, parentheses and spaces too.
    fields = text.rpartition(")")[2].split()
    return int(fields[17]) if len(fields) > 17 else 0


def read(pid: int, name: str) -> str:
    """Return a file of /proc/PID, '' if the process has gone or we may not read it."""
    try:
        return _allowed(pid, _content, f"/proc/{pid}/{name}").decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def memory(pid: int) -> int:
    """Return a process's resident bytes, 0 if it has gone."""
    return parse_memory(read(pid, "statm"))


def call(pid: int) -> Call:
    """Return the system call that a process's first thread waits in."""
    return parse_call(read(pid, "syscall"))


def is_single_threaded(pid: int) -> bool:
    """Whether a process has one thread."""
    return parse_threads(read(pid, "stat")) == 1


def holds(pid: int, descriptor: int) -> int:
    """Return the inode of the socket that a process has as that descriptor, 0 if that is none."""
    try:
        return parse_socket(_allowed(pid, os.readlink, f"/proc/{pid}/fd/{descriptor}"))
    except OSError:
        return 0


def sockets(pid: int, wanted: Collection[int]) -> dict[int, int]:
    """Return which of the sockets `wanted` a process holds: inode and descriptor."""
    found = {}
    for name in _names(pid, "fd"):
        inode = holds(pid, int(name))
        if inode in wanted:
            found[inode] = int(name)
    return found


def links(pid: int) -> list[tuple[int, str]]:
    """Return the descriptors of a process and what each is, as /proc/PID/fd names it."""
    found = []
    for number in sorted(int(name) for name in _names(pid, "fd")):
        with contextlib.suppress(OSError):
            found.append((number, _allowed(pid, os.readlink, f"/proc/{pid}/fd/{number}")))
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children and so on."""
    found = []
    above = [pid]
    while above:
        parent = above.pop()
        for thread in _names(parent, "task"):
            for child in read(parent, f"task/{thread}/children").split():
                with contextlib.suppress(ValueError):
                    found.append(int(child))
                    above.append(int(child))
    return found


def _names(pid: int, directory: str) -> list[str]:
    try:
        return _allowed(pid, os.listdir, f"/proc/{pid}/{directory}")
    except OSError:
        return []


def _content(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _ROOM)
    finally:
        os.close(descriptor)


def _allowed(pid: int, look: Callable[[str], _T], path: str) -> _T:
    """Return `look(path)`; where root is refused, as the process's own user. Raises OSError."""
    try:
        return look(path)
    except PermissionError:
        owner = os.stat(f"/proc/{pid}")
        if os.geteuid() or not owner.st_uid:
            raise
    group = os.getegid()
    try:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        return look(path)
    finally:
        os.seteuid(0)
        os.setegid(group)
