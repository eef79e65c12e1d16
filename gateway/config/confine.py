"""What the programs of a route may do: the server's defaults, and what the route has instead."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fcgi_pool.config import seconds, size
from gateway.config.errors import Mistake, Where
from gateway.config.keys import Cgroup, Landlock, Route, Server
from gateway.config.keys import Limits as LimitKeys
from gateway.confinement.model import (
    SYSTEM_PATHS,
    CgroupLimits,
    Confinement,
    Limits,
    PathRules,
    kernel_number,
    merged,
    shown,
)
from gateway.privileges import UnknownAccount, account_of, has_capability
from gateway.settings import Pool

_UNLIMITED = "unlimited"
_CAP_SYS_RESOURCE = 24
# Larger than any that is meant; the kernel counts in 63 bits.
_MOST = 2**62
# Of these a pool knows nothing.
_NOT_OF_POOLS = ("cpu", "memory", "processes", "file_size")
_SERVER: Where = ("server",)

_Reader = Callable[[Any], Any]


class Confiner:
    """Makes confinements; raises Mistake. `path` makes a path whole that is written in the file."""

    def __init__(self, server: Server, path: Callable[[str], str]) -> None:
        self._server = server
        self._path = path
        self.account = _account(_SERVER, server.user, server.group)
        self._default = replace(
            self._tables(_SERVER, server, Confinement(self.account)), no_new_privileges=server.no_new_privileges
        )

    def of(self, where: Where, route: Route) -> Confinement:
        """Return that of a route with programs."""
        found = self._tables(where, route, self._default)
        if route.no_new_privileges is not None:
            found = replace(found, no_new_privileges=route.no_new_privileges)
        if route.user or route.group:
            # A user's group is not the server's.
            found = replace(found, account=_account(where, route.user or self._server.user, route.group))
        return found

    def _tables(self, where: Where, table: Server | Route, default: Confinement) -> Confinement:
        return replace(
            default,
            limits=_limits((*where, "limits"), table.limits, default.limits) if table.limits else default.limits,
            cgroup=_cgroup((*where, "cgroup"), table.cgroup, default.cgroup) if table.cgroup else default.cgroup,
            landlock=self._rules((*where, "landlock"), table.landlock, default.landlock),
        )

    def _rules(self, where: Where, said: Landlock | bool | None, default: PathRules | None) -> PathRules | None:
        if said is None:
            return default
        if said is False:
            return None
        table = Landlock() if said is True else said
        system = tuple(path for path in SYSTEM_PATHS if os.path.exists(path))
        read = system if table.read is None else self._there((*where, "read"), table.read)
        return PathRules(read, self._there((*where, "write"), table.write))

    def _there(self, where: Where, texts: list[str]) -> tuple[str, ...]:
        paths = tuple(map(self._path, texts))
        for at, path in enumerate(paths):
            if not os.path.exists(path):
                raise Mistake((*where, at), f"{path} does not exist; create it, or leave it out")
        return paths


def confined_pool(where: Where, pool: Pool, confinement: Confinement) -> Pool:
    """Return a pool that runs the scripts of a route with `confinement`; raise Mistake for what a pool cannot have."""
    limits = confinement.limits
    beyond = [f"limits.{name}" for name in _NOT_OF_POOLS if getattr(limits, name) is not None]
    beyond += ["landlock"] if confinement.landlock else []
    beyond += ["cgroup"] if confinement.cgroup != CgroupLimits() else []
    if beyond:
        raise Mistake(
            (*where, "warm"),
            f'reuse does not go with {", ".join(beyond)}: pools have user, group, no_new_privileges, limits.files and '
            "limits.core; write warm = true, or take those away from this route",
        )
    given = {"rlimit_files": limits.files, "rlimit_core": limits.core}
    return replace(
        pool, directives=(*pool.directives, *(f"{key}={value}" for key, value in given.items() if value is not None))
    )


def _account(where: Where, user: str, group: str) -> Any:
    try:
        return account_of(user, group)
    except UnknownAccount as error:
        raise Mistake((*where, "user" if user else "group"), str(error)) from None


def _limits(where: Where, table: LimitKeys, default: Limits) -> Limits:
    readers: dict[str, _Reader] = {
        "cpu": _whole_seconds, "memory": size, "processes": _count, "files": _count, "file_size": size, "core": size,
    }  # fmt: skip
    given, removed = _given(where, table, readers)
    found = Limits(**given)
    if not has_capability(_CAP_SYS_RESOURCE):
        for kind, _, wanted in (*found.of_each_program, *found.of_the_spawner(0, 0)):
            hard = resource.getrlimit(kind)[1]
            if hard != resource.RLIM_INFINITY and wanted > hard:
                name = next(name for name in given if kernel_number(name) == kind)
                raise Mistake((*where, name), f"{shown(found, name)}: more than the server itself may have, {hard}")
    return merged(default, found, removed)


def _cgroup(where: Where, table: Cgroup, default: CgroupLimits) -> CgroupLimits:
    given, removed = _given(where, table, {"memory": size, "processes": _count, "cpu": _share})
    return merged(default, CgroupLimits(**given), removed)


def _given(where: Where, table: object, readers: dict[str, _Reader]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the values that are given, by name, and the names of those that there shall not be."""
    given = {}
    removed = []
    for name, reader in readers.items():
        value = getattr(table, name)
        if value == _UNLIMITED:
            removed.append(name)
        elif value is not None:
            try:
                given[name] = reader(value)
            except ValueError as error:
                raise Mistake((*where, name), f'{value!r} is not {error}, or "unlimited"') from None
            if given[name] > _MOST or (not given[name] and name not in ("core", "file_size")):
                raise Mistake((*where, name), f"{value!r}: with that nothing runs; a limit above 0, or \"unlimited\"")
    return given, tuple(removed)


def _whole_seconds(value: Any) -> int:
    return math.ceil(seconds(value))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a whole number")
    return value


def _share(value: Any) -> float:
    if isinstance(value, str) or not math.isfinite(value) or value < 0:
        raise ValueError("a number of CPUs, as 0.5")
    return float(value)
