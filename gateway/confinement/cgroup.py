"""A control group for the programs of each confinement, below the one that the server is in (cgroups(7), version 2).

Some facts about control groups. Limits are files in a group's directory; those of a controller are there if the group
above lists it in ``cgroup.subtree_control``, and that can be written only while no process is in that group itself: so
the server moves its own processes into a group ``server`` beside those of the programs. All this is permitted where the
group was handed over to the server, as systemd does for ``Delegate=yes``. Where others are in the group, it was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.confinement.model import CgroupLimits, Confinement

_OWN = "server"
_PERIOD = 100_000  # microseconds over which CPU time is counted (cpu.max); the kernel's default
_MOST_PIDS = 2**22  # PID_MAX_LIMIT: pids.max takes no larger number, and there can be no more
_CURE = "start the server by a unit of systemd with Delegate=yes, or by systemd-run --scope -p Delegate=yes"


class NoCgroup(Exception):
    """There can be no such groups; the text says why, and what would be right."""


@dataclass(frozen=True, slots=True)
class _File:
    controller: str
    name: str
    value: str


def _files(limits: CgroupLimits) -> list[_File]:
    """Return which files of a group say its limits."""
    found = []
    if limits.memory is not None:
        found.append(_File("memory", "memory.max", str(limits.memory)))
    if limits.processes is not None:
        found.append(_File("pids", "pids.max", str(min(limits.processes, _MOST_PIDS))))
    if limits.cpu is not None:
        found.append(_File("cpu", "cpu.max", f"{max(1000, round(limits.cpu * _PERIOD))} {_PERIOD}"))
    return found


def own_directory(mounts: str, own: str) -> str:
    """Return the directory of the group that a process is in; raise NoCgroup. Pure.

    `mounts`: its ``/proc/self/mountinfo``. `own`: its ``/proc/self/cgroup``.
    """
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "")
    for line in mounts.splitlines():
        first, _, last = line.partition(" - ")
        fields = first.split()
        if path and last.startswith("cgroup2 ") and len(fields) > 4:
            root, mounted = fields[3], fields[4]
            below = path.removeprefix(root) if root != "/" else path
            return os.path.normpath(f"{mounted}/{below}")
    raise NoCgroup("there is no cgroup v2 mounted; boot with systemd.unified_cgroup_hierarchy=1")


class Cgroups:
    """The groups of a server's programs, below `base`; see `found`."""

    def __init__(self, base: str) -> None:
        self.base = base

    @classmethod
    def found(cls) -> Cgroups:
        """Return those below the group that this process is in; raise NoCgroup."""
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mounts = file.read()
            with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                own = file.read()
        except OSError as error:
            raise NoCgroup(f"/proc cannot be read: {error.strerror}") from None
        directory = own_directory(mounts, own)
        # After an upgrade the server starts where the one before it was.
        is_own = os.path.basename(directory) == _OWN
        return cls(os.path.dirname(directory) if is_own else directory)

    def prepare(self, confinements: Iterable[Confinement], ours: Iterable[int], tries: bool = False) -> None:
        """Make room for groups with the limits of `confinements`; raise NoCgroup.

        `ours`: the processes of this server. `tries`: see whether it could be done, and do nothing.
        """
        wanted = {file.controller for confinement in confinements for file in _files(confinement.cgroup)}
        try:
            there = set(self._read("cgroup.controllers").split())
            if lacking := wanted - there:
                named = ", ".join(sorted(lacking))
                raise NoCgroup(f"{self.base} has no controller for {named} (see its cgroup.controllers); {_CURE}")
            if not os.access(self._path("cgroup.subtree_control"), os.W_OK):
                raise NoCgroup(f"{self.base} may not be written to; {_CURE}")
            inside = {int(pid) for pid in self._read("cgroup.procs").split()}
            # The group at the root may have processes, and others' are in it always.
            is_root = not os.path.exists(self._path("cgroup.type"))
            if not is_root and inside - set(ours):
                raise NoCgroup(f"other processes are in {self.base}, too; {_CURE}")
            if tries:
                return
            if not is_root:
                os.makedirs(self._path(_OWN), exist_ok=True)
                self._move(inside)
            missing = wanted - set(self._read("cgroup.subtree_control").split())
            if missing:
                _write(self._path("cgroup.subtree_control"), " ".join(f"+{name}" for name in sorted(missing)))
        except OSError as error:
            raise NoCgroup(f"{error.filename or self.base}: {error.strerror}; {_CURE}") from None

    def _move(self, inside: set[int]) -> None:
        """Move processes into the group of the server, and those that they fork meanwhile."""
        while inside:
            for pid in inside:
                with contextlib.suppress(ProcessLookupError):
                    _write(self._path(_OWN, "cgroup.procs"), str(pid))
            inside = {int(pid) for pid in self._read("cgroup.procs").split()} - inside

    def directory(self, confinement: Confinement) -> str:
        """Return the directory of a confinement's group; the same limits and user have the same after a reload."""
        name = hashlib.sha256(repr(confinement).encode()).hexdigest()[:12]
        return self._path(f"programs-{name}")

    def make(self, confinement: Confinement) -> str:
        """Have the group of a confinement, with its limits; return its directory. Raise OSError."""
        directory = self.directory(confinement)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        for file in _files(confinement.cgroup):
            _write(os.path.join(directory, file.name), file.value)
        return directory

    def remove_unused(self) -> None:
        """Remove the groups in which nobody is any more, those of a server that was killed, too."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.base):
                if name.startswith("programs-"):
                    with contextlib.suppress(OSError):  # somebody is in it
                        os.rmdir(self._path(name))

    def undo(self) -> None:
        """Have this process, the last of the server, where it was at first, and leave nothing behind."""
        self.remove_unused()
        with contextlib.suppress(OSError):
            if self._read(_OWN, "cgroup.procs").split() != [str(os.getpid())]:
                return  # after an upgrade the next server is in it
            enabled = self._read("cgroup.subtree_control").split()
            if enabled:
                _write(self._path("cgroup.subtree_control"), " ".join(f"-{name}" for name in enabled))
            join(self.base)
            os.rmdir(self._path(_OWN))

    def _path(self, *names: str) -> str:
        return os.path.join(self.base, *names)

    def _read(self, *names: str) -> str:
        with open(self._path(*names), encoding="ascii") as file:
            return file.read()


def join(directory: str) -> None:
    """Move this process into a group; raise OSError."""
    _write(os.path.join(directory, "cgroup.procs"), str(os.getpid()))


class OomWatch:
    """Tells whether the kernel has killed in a group for lack of memory since the last time. `directory` '': never."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "memory.events") if directory else ""
        self._seen = self._count()

    def has_killed(self) -> bool:
        """Return whether it has."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        try:
            with open(self._path, encoding="ascii") as file:
                fields = dict(line.split() for line in file)
        except (OSError, ValueError):
            return 0
        return int(fields.get("oom_kill", 0))


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # ProcessLookupError for ESRCH
    finally:
        os.close(descriptor)
