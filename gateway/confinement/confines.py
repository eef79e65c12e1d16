"""What the master does for confinements: the cgroups, and a loud word about what this machine cannot enforce."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fcgi_pool.proc import descendants
from gateway.confinement import landlock
from gateway.confinement.cgroup import Cgroups, NoCgroup
from gateway.confinement.model import CgroupLimits, Confinement
from gateway.error_log import ErrorLog


class Confines:
    """What one generation's confinements need of the master. What cannot be had is logged by `prepare`."""

    def __init__(self, confinements: Sequence[Confinement], log: ErrorLog) -> None:
        self._confinements = confinements
        self._log = log
        self._cgroups: Cgroups | None = None

    def prepare(self) -> None:
        """See what can be enforced, and make room for cgroups, before any process is started."""
        for words in unenforced(self._confinements):
            self._log.warning(words)
        limited = with_cgroup(self._confinements)
        if limited:
            try:
                cgroups = Cgroups.found()
                cgroups.prepare(limited, _ours())
                cgroups.remove_unused()
                self._cgroups = cgroups
            except NoCgroup as error:
                self._log.warning(_no_cgroup(error))

    @property
    def directories(self) -> list[str]:
        """The directory of each confinement's cgroup, '' where it has none."""
        return [self._directory(confinement) for confinement in self._confinements]

    def _directory(self, confinement: Confinement) -> str:
        if self._cgroups and confinement in with_cgroup((confinement,)):
            return self._cgroups.directory(confinement)
        return ""

    def cgroup(self, number: int) -> str:
        """Have the cgroup of a confinement; return its directory, '' where it has none. Raise OSError."""
        confinement = self._confinements[number]
        return self._cgroups.make(confinement) if self._cgroups and self._directory(confinement) else ""

    def leave(self) -> None:
        """The generation has ended: remove the cgroups that nobody is in any more."""
        if self._cgroups:
            self._cgroups.remove_unused()


def with_cgroup(confinements: Sequence[Confinement]) -> list[Confinement]:
    """Return the confinements that have limits of a cgroup."""
    return [confinement for confinement in confinements if confinement.cgroup != CgroupLimits()]


def leave_cgroups() -> None:
    """The server ends: leave the cgroups as they were found."""
    try:
        Cgroups.found().undo()
    except NoCgroup:
        pass


def unenforced(confinements: Sequence[Confinement], tries_cgroup: bool = False) -> list[str]:
    """Return what this machine does not enforce, in words. `tries_cgroup`: of cgroups, too."""
    found = []
    why = landlock.missing() if any(confinement.landlock for confinement in confinements) else ""
    if why:
        found.append(f"the rules of landlock are NOT in force, programs reach all that their user may: {why}")
    counted = [confinement for confinement in confinements if confinement.limits.processes is not None]
    if not all(confinement.account.uid if confinement.account else os.geteuid() for confinement in counted):
        found.append("limits.processes is NOT in force for root, whom the kernel does not count: name a user")
    limited = with_cgroup(confinements)
    if limited and tries_cgroup:
        try:
            Cgroups.found().prepare(limited, _ours(), tries=True)
        except NoCgroup as error:
            found.append(f"{_no_cgroup(error)} (as seen from where this check runs)")
    return found


def _no_cgroup(error: NoCgroup) -> str:
    return f"the limits of cgroup are NOT in force: {error}"


def _ours() -> set[int]:
    return {os.getpid(), *descendants(os.getpid())}
