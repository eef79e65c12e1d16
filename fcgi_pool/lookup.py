"""From a pool's configuration to what a worker is started with: names become numbers, a program gets its path.

What can be known to fail is refused here, before anything runs, so that a reload with a mistake changes nothing.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import sys

from fcgi_pool.account_number import account_number
from fcgi_pool.config import ConfigError, PoolConfig
from fcgi_pool.process import Launch

# The program of a worker of our own.
RUNTIME = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runtime", "__main__.py")
# execvp(3) and most shells search there if there is no PATH.
_PATH = "/usr/local/bin:/usr/bin:/bin"
# Of our own and for a manager's parent; no worker is to take them for its own.
_PRIVATE = "FCGI_POOL_"


def launch_for(config: PoolConfig) -> Launch:
    """Return how to start a worker of a pool; raise ConfigError for what is not there or not permitted."""
    user, group, groups, home = _account(config)
    environment = _environment(config, home)
    arguments = config.command or _runtime_command(config)
    program = arguments[0] if config.chroot else _program(config, arguments[0], environment["PATH"])
    _check_directory(config, "chroot", config.chroot)
    if config.chroot and os.geteuid():
        raise ConfigError(f"pools.{config.name}.chroot = {config.chroot!r}: only root can do that; leave it out")
    if not config.chroot:
        _check_directory(config, "chdir", config.chdir)
    return Launch(
        (program, *arguments[1:]),
        environment,
        user=user,
        group=group,
        groups=groups,
        chroot=config.chroot,
        chdir=config.chdir,
        rlimit_files=config.rlimit_files,
        rlimit_core=config.rlimit_core,
        priority=config.process_priority,
    )


def socket_owner(config: PoolConfig) -> tuple[int, int]:
    """Return the numbers of the owner and the group of the pool's Unix socket, -1 to leave one; raise ConfigError."""
    owner = _passwd(config, "listen_owner", config.listen_owner)[0] if config.listen_owner else -1
    group = _group(config, "listen_group", config.listen_group) if config.listen_group else -1
    return owner, group


def runs_our_runtime(config: PoolConfig) -> bool:
    """Whether a worker is our own runtime, which tells what it does, and takes what others hand over to it."""
    if config.app:
        return config.runner == "own"
    if RUNTIME not in config.command:
        return False
    return not any("flup" in word for word in config.command[config.command.index(RUNTIME) :])


def _runtime_command(config: PoolConfig) -> tuple[str, ...]:
    runner = () if config.runner == "own" else ("--runner", config.runner)
    return (config.python or sys.executable, RUNTIME, *runner, config.app)


def _account(config: PoolConfig) -> tuple[int | None, int | None, tuple[int, ...], str]:
    """Return user, group, supplementary groups and home directory; None and '' where nothing changes."""
    if not config.user and not config.group:
        return None, None, (), ""
    uid, gid, name, home = os.geteuid(), os.getegid(), "", ""
    if config.user:
        uid, gid, name, home = _passwd(config, "user", config.user)
    if config.group:
        gid = _group(config, "group", config.group)
    if os.geteuid():
        if (uid, gid) != (os.geteuid(), os.getegid()):
            key = "user" if uid != os.geteuid() else "group"
            value = getattr(config, key)
            raise ConfigError(f"pools.{config.name}.{key} = {value!r}: only root can become another; leave it out")
        return None, None, (), home
    groups = tuple(os.getgrouplist(name, gid)) if name else (gid,)
    return uid, gid, groups, home


def _passwd(config: PoolConfig, key: str, value: str) -> tuple[int, int, str, str]:
    number = None
    try:
        number = account_number(value)
        entry = pwd.getpwnam(value) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):
        if number is not None:
            return number, number, "", ""
        raise ConfigError(f"pools.{config.name}.{key} = {value!r}: there is no such user; see getent passwd") from None
    return entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir


def _group(config: PoolConfig, key: str, value: str) -> int:
    try:
        number = account_number(value)
        return grp.getgrnam(value).gr_gid if number is None else number
    except (KeyError, ValueError):
        raise ConfigError(f"pools.{config.name}.{key} = {value!r}: there is no such group; see getent group") from None


def _environment(config: PoolConfig, home: str) -> dict[str, str]:
    """Return a worker's variables: those of `env`, PATH, and with clear_env none of our own."""
    if config.clear_env:
        found = {"PATH": os.environ.get("PATH") or _PATH}
    else:
        found = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
        found.setdefault("PATH", _PATH)
    if home:
        found |= {"HOME": home, "USER": config.user}
    found |= config.env
    if config.app or runs_our_runtime(config):
        if config.max_requests:
            found["FCGI_POOL_MAX_REQUESTS"] = str(config.max_requests)
    else:
        # php-cgi counts itself, up to 500 unless told; 0 is no limit there, too.
        found.setdefault("PHP_FCGI_MAX_REQUESTS", str(config.max_requests))
    if config.listen_allowed_clients:
        # Section 3.2: programs look at it themselves.
        found["FCGI_WEB_SERVER_ADDRS"] = ",".join(config.listen_allowed_clients)
    return found


def _program(config: PoolConfig, name: str, path: str) -> str:
    key = "python" if config.app else "command"
    where = f"pools.{config.name}.{key} = {name!r}"
    if "/" not in name:
        found = shutil.which(name, path=path)
        if not found:
            raise ConfigError(f"{where}: there is no such program in {path}; install it, or write its path")
        return os.path.abspath(found)
    found = os.path.abspath(name)
    if not os.path.exists(found):
        raise ConfigError(f"{where}: there is no such file; write the path of a program")
    if os.path.isdir(found):
        raise ConfigError(f"{where}: a directory; write the path of a program")
    if not os.access(found, os.X_OK):
        raise ConfigError(f"{where}: not executable; chmod +x {found}")
    return found


def _check_directory(config: PoolConfig, key: str, path: str) -> None:
    if path and not os.path.isdir(path):
        raise ConfigError(f"pools.{config.name}.{key} = {path!r}: there is no such directory; create it")
