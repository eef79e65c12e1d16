"""What a program may do: as whom, with how much, and where. Pure."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from gateway.privileges import Account

_Table = TypeVar("_Table", "Limits", "CgroupLimits")

# From the soft limit of CPU time, at which a program is sent SIGXCPU, to the hard one, where it is killed, in seconds.
_CPU_GRACE = 2
_KINDS = {
    "cpu": resource.RLIMIT_CPU,
    "memory": resource.RLIMIT_AS,
    "processes": resource.RLIMIT_NPROC,
    "files": resource.RLIMIT_NOFILE,
    "file_size": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
}
# Who has these is held to them, too, and the process that starts programs would run out of them. So it has them with
# room for itself, or not at all, and gives each program its own right after its start. The others it has as they are.
_OF_EACH = ("cpu", "memory", "files")
_OF_THE_SPAWNER = ("memory", "processes", "files", "file_size", "core")
_SIZES = ("memory", "file_size", "core")
_UNITS = ((1024**3, "G"), (1024**2, "M"), (1024, "K"))

# What of the file system a program can read if nothing else is said: so much that Python, Perl and a shell run, and
# names of hosts are found. Those that there are not are left out.
SYSTEM_PATHS = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/proc", "/dev", "/run/systemd/resolve",
)  # fmt: skip
# Without these hardly any program runs; they hold nothing.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of each process (setrlimit(2)). None: as the server itself has it.

    cpu: seconds of CPU time. memory: bytes of address space (RLIMIT_AS). processes: of the user, with all that run
    elsewhere (RLIMIT_NPROC). files: open descriptors (RLIMIT_NOFILE). file_size, core: bytes of a file that is written.
    """

    cpu: int | None = None
    memory: int | None = None
    processes: int | None = None
    files: int | None = None
    file_size: int | None = None
    core: int | None = None

    @property
    def of_each_program(self) -> tuple[tuple[int, int, int], ...]:
        """The limits that are set in each program: the kernel's number, soft and hard limit."""
        return tuple(self._numbers(_OF_EACH))

    def of_the_spawner(self, memory: int, files: int) -> tuple[tuple[int, int, int], ...]:
        """Return the limits of the process that starts programs, which needs so much itself: bytes and descriptors."""
        room = {resource.RLIMIT_AS: memory, resource.RLIMIT_NOFILE: files}
        return tuple(
            (kind, max(soft, room.get(kind, 0)), max(hard, room.get(kind, 0)))
            for kind, soft, hard in self._numbers(_OF_THE_SPAWNER)
        )

    def _numbers(self, names: tuple[str, ...]) -> Iterator[tuple[int, int, int]]:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if name in names and value is not None:
                yield kind, value, value + (_CPU_GRACE if name == "cpu" else 0)


def kernel_number(name: str) -> int:
    """Return the kernel's number of the limit `name`."""
    return _KINDS[name]


@dataclass(frozen=True, slots=True)
class PathRules:
    """What of the file system can be read and executed, and what can be changed, too (landlock(7)); absolute paths."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """Limits of all programs of a confinement together, in all workers (cgroup v2). None: none.

    memory: bytes. processes: how many. cpu: how many CPUs, as 0.5.
    """

    memory: int | None = None
    processes: int | None = None
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program may do. The default is what the server itself may."""

    account: Account | None = None
    no_new_privileges: bool = False
    limits: Limits = Limits()
    landlock: PathRules | None = None
    cgroup: CgroupLimits = CgroupLimits()

    @property
    def who(self) -> str:
        """As whom, for a sentence; '' for the server's own user."""
        return f"user {self.account.name}" if self.account else ""

    def words(self) -> list[str]:
        """Return what `--check` says of it, a line each."""
        account = self.account
        found = []
        if account:
            groups = ", ".join(map(str, account.groups))
            found.append(f"as user {account.name} (uid {account.uid}, gid {account.gid}, groups {groups})")
        if self.no_new_privileges or self.landlock:
            found.append("no_new_privileges")
        found += [f"{name} {', '.join(said)}" for name, said in _tables(self) if said]
        if self.landlock:
            found.append(f"landlock.read {' '.join(self.landlock.read)}")
            found.append(f"landlock.write {' '.join(self.landlock.write) or 'nothing'}")
        return found


def _tables(confinement: Confinement) -> Iterator[tuple[str, list[str]]]:
    for name, table in (("limits", confinement.limits), ("cgroup", confinement.cgroup)):
        names = [field.name for field in fields(table) if is_set(table, field.name)]
        yield name, [f"{one} = {shown(table, one)}" for one in names]


def is_set(table: Limits | CgroupLimits, name: str) -> bool:
    """Whether a table has a limit of that name."""
    return getattr(table, name) is not None


def shown(table: Limits | CgroupLimits, name: str) -> str:
    """Return a limit as it is written in the configuration: ``512M``, ``10``."""
    value = getattr(table, name)
    if name in _SIZES and value:
        for unit, letter in _UNITS:
            if value % unit == 0:
                return f"{value // unit}{letter}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def merged(table: _Table, over: _Table, removed: tuple[str, ...]) -> _Table:
    """Return `table` with the limits that `over` has instead, and without those in `removed`."""
    own = {field.name: getattr(over, field.name) for field in fields(over) if is_set(over, field.name)}
    return replace(table, **{**own, **dict.fromkeys(removed)})
