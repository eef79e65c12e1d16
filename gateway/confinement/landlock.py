"""Rules for the file system that a process gives itself, for good (landlock(7), Linux 5.13).

The C library has no functions for it, so the system calls are made by number; these are the same on every machine. A
kernel knows so many rights as its version of the interface says; one that it does not know is not asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable

from gateway.confinement.model import DEVICES, PathRules

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH

# include/uapi/linux/landlock.h, LANDLOCK_ACCESS_FS_*.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_VERSION_1 = (1 << 13) - 1  # with removing and making of each kind
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# Rights that a rule for something that is no directory can have.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

# A system call by its number: what it returns; raises OSError.
Call = Callable[..., int]


def system_call(number: int, *arguments: object) -> int:
    """Make a system call (syscall(2)); raise OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def version(call: Call = system_call) -> int:
    """Return the version of the interface that the kernel has; raise OSError where it has none."""
    return call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))


def missing(call: Call = system_call) -> str:
    """Return why there are no such rules on this machine, '' if there are."""
    try:
        version(call)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return "Landlock is switched off in this kernel: boot it with lsm=landlock,…"
        if error.errno == errno.ENOSYS:
            return "this kernel has no Landlock: it needs Linux 5.13, built with CONFIG_SECURITY_LANDLOCK"
        return f"Landlock cannot be used: {error.strerror}"
    return ""


class Ruleset:
    """Rules that are written down, and not in force yet; raises OSError."""

    def __init__(self, call: Call = system_call) -> None:
        self._call = call
        known = version(call)
        self._handled = _ALL_OF_VERSION_1
        for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
            if known >= since:
                self._handled |= right
        attributes = struct.pack("=Q", self._handled)
        self._descriptor = call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))

    def allow_reading(self, paths: Iterable[str]) -> None:
        """Let what is at or below `paths` be read and executed."""
        for path in paths:
            self._allow(path, _READ)

    def allow_all(self, paths: Iterable[str]) -> None:
        """Let it be changed, too."""
        for path in paths:
            self._allow(path, self._handled)

    def _allow(self, path: str, rights: int) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= _OF_FILES
            rule = struct.pack("=Qi", rights & self._handled, descriptor)
            self._call(_ADD_RULE, self._descriptor, _PATH_BENEATH, rule, ctypes.c_uint32(0))
        finally:
            os.close(descriptor)

    def enforce(self) -> None:
        """Hold this process to the rules, and all that it starts; it must have no_new_privs (prctl(2))."""
        self._call(_RESTRICT_SELF, self._descriptor, ctypes.c_uint32(0))
        os.close(self._descriptor)


def ruleset(rules: PathRules, also: Iterable[str], call: Call = system_call) -> Ruleset:
    """Return `rules` for the kernel; raise OSError. `also`: paths that are read, too."""
    made = Ruleset(call)
    made.allow_reading((*rules.read, *also))
    made.allow_all(rules.write)
    for device in DEVICES:
        with contextlib.suppress(FileNotFoundError):
            made.allow_all((device,))
    return made
