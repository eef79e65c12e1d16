"""What the kernel tells of running programs."""

from __future__ import annotations

import contextlib
import os

_PF_EXITING = 0x4  # include/linux/sched.h


def is_ending(pid: int) -> bool:
    """Whether process `pid` is on its way out, waits to be reaped, or is gone (proc(5), state and flags in stat)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group that `pid` leads, if it is still there and ours to signal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def groups_at(pipes: set[int]) -> set[int]:
    """Return the process groups, other than our own, of which a process has one of `pipes` as its stdout or stderr.

    `pipes` are inodes, as fstat(2) tells them. Processes that may not be looked at are left out.
    """
    wanted = {f"pipe:[{inode}]" for inode in pipes}
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            for descriptor in ("1", "2"):
                try:
                    if os.readlink(f"/proc/{name}/fd/{descriptor}") in wanted:
                        found.add(os.getpgid(int(name)))
                except OSError:
                    pass
    return found - {os.getpgid(0)}
