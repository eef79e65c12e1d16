"""What a spawner is: confined first, then the starter of programs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator

from gateway.cgi.roll import Roll
from gateway.cgi.spawner import Spawner
from gateway.cgi.variables import mount_variables
from gateway.cgi.warm import interpreter
from gateway.cgi.warm.keeper import WarmMount
from gateway.confinement.enter import NotConfined, enter
from gateway.error_log import ErrorLog
from gateway.settings import CgiMount, Settings

# Of a spawner that could not be confined.
_NOT_CONFINED = 1


def be_spawner(
    settings: Settings,
    part: int,
    to_worker: socket.socket,
    worker_end: socket.socket,
    roll: Roll,
    cgroup: str,
    name: str,
) -> None:
    """Start the programs of the confinement numbered `part` for one worker, until that is gone.

    `cgroup`: the directory of its cgroup, '' for none. `name`: what the log calls it.
    """
    # While anybody but the worker holds the worker's end, its death would not be seen.
    worker_end.close()
    confinement = settings.confinements[part]
    mounts = {
        number: mount
        for number, mount in enumerate(settings.mounts)
        if isinstance(mount, CgiMount) and mount.confinement == confinement
    }
    log = _open_log(settings.error_log)
    try:
        enter(confinement, cgroup, _needed(mounts.values()), any(mount.warm for mount in mounts.values()))
    except NotConfined as error:
        log.error(f"{name} does not start any program: {error}")
        os._exit(_NOT_CONFINED)
    log.close()
    warm = {
        number: WarmMount(
            mount_variables(os.fsencode(mount.directory), mount.env), mount.warm == "require", mount.preload
        )
        for number, mount in mounts.items()
        if mount.warm
    }
    Spawner(to_worker, roll, settings.timeouts.kill, warm, confinement.limits.of_each_program).run()


def _open_log(path: str) -> ErrorLog:
    try:
        return ErrorLog(path)
    except OSError:
        return ErrorLog("-")


def _needed(mounts: Iterable[CgiMount]) -> Iterator[str]:
    """Return what has to be read besides what somebody has written down: the programs, and what runs in a warm one."""
    for mount in mounts:
        yield mount.directory
        if mount.warm:
            yield os.path.dirname(interpreter.__file__)
