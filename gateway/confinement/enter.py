"""How a process gives up what a confinement does not let it have, for good."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable, Iterator

from gateway.confinement import landlock
from gateway.confinement.cgroup import join
from gateway.confinement.model import Confinement
from gateway.privileges import forbid_new_privileges


class NotConfined(Exception):
    """It cannot be given up; the text says what, and why."""


# What a process that starts programs needs beyond what it has mapped, in bytes; and its descriptors, those of warm
# interpreters and their children too.
_ROOM = 64 * 1024 * 1024
_FILES, _FILES_WARM = 64, 2048


def enter(confinement: Confinement, cgroup: str, read: Iterable[str], is_warm: bool) -> None:
    """Confine this process and all that it will start; raise NotConfined.

    `cgroup`: the directory of the cgroup to be in, '' to stay. `read`: what can be read besides what the rules for the
    file system name. `is_warm`: it will have warm interpreters.
    """
    files = min(_FILES_WARM if is_warm else _FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if cgroup:
        with _doing(f"enter the cgroup {cgroup}"):
            join(cgroup)
    rules = None
    if confinement.landlock and not landlock.missing():
        with _doing("make the rules for the file system (landlock)"):
            rules = landlock.ruleset(confinement.landlock, read)
    account = confinement.account
    if account:
        with _doing(f"become {confinement.who}"):
            account.become()
    # Of these the number of processes is the user's: not before it is that one.
    for kind, soft, hard in confinement.limits.of_the_spawner(_mapped() + _ROOM, files):
        with _doing(f"set a limit to {soft} (limits)"):
            resource.setrlimit(kind, (soft, hard))
    if confinement.no_new_privileges or confinement.landlock:
        forbid_new_privileges()
    if rules:
        with _doing("put the rules for the file system in force (landlock)"):
            rules.enforce()


def _mapped() -> int:
    """Return the bytes of this process's address space (proc(5), statm)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        where = f" {error.filename}:" if isinstance(error, OSError) and error.filename else ""
        words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise NotConfined(f"it could not {what}:{where} {words}") from None
