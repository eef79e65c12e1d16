"""Pools of FastCGI processes that the server starts: each has a manager of its own, ``python -m fcgi_pool``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from fcgi_pool import cli
from fcgi_pool.config import PoolConfig
from gateway.privileges import forbid_new_privileges
from gateway.settings import Pool

# From the start of a manager until it listens, in seconds. Its workers may take longer; who connects then waits.
PATIENCE = 10.0


def default_children() -> int:
    """Return how many processes a pool has where nobody says: two for each CPU, at least 4."""
    return max(2 * len(os.sched_getaffinity(0)), 4)


def check_pool(pool: Pool) -> None:
    """Raise ConfigError if the manager of `pool` would not start, as far as that is known before."""
    cli.check(_pool_arguments(pool))


def config_of(pool: Pool) -> PoolConfig:
    """Return what the manager of `pool` reads; raise ConfigError."""
    return cli.pool_of(_pool_arguments(pool))


def become_manager(pool: Pool, ready: int, told: int, lent: Mapping[str, int]) -> NoReturn:
    """Turn this process into the manager of `pool`, which writes to the descriptor `ready` once it listens.

    `told`: the memory in which the workers tell what their connections carry. `lent`: sockets that listen already, by
    the option that takes each.
    """
    given = {"--ready-fd": ready, "--told-fd": told, **lent}
    own = ["--die-with-parent"]
    if pool.no_new_privileges:
        forbid_new_privileges()
    for option, descriptor in given.items():
        os.set_inheritable(descriptor, True)
        own += [option, str(descriptor)]
    os.execv(sys.executable, [sys.executable, "-m", "fcgi_pool", *own, *_pool_arguments(pool)])


def _pool_arguments(pool: Pool) -> list[str]:
    server = pool.server
    arguments = ["--name", server.name, "--listen", str(server.address), "--children", str(server.connections)]
    arguments += [f"--env={name}={value}" for name, value in pool.env]
    arguments += [f"--set={directive}" for directive in pool.directives]
    return [*arguments, "--app", pool.app] if pool.app else [*arguments, "--", *pool.command]
