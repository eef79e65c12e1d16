"""The configuration of pools: a mapping, as a TOML file gives it, into values. Reads no file and looks nothing up.

The keys are php-fpm's directives, so that whoever has a pool file can copy it line by line: ``pm.max_children`` may be
written so (in quotes, for TOML), as a table ``[pools.NAME.pm]``, as ``pm_max_children`` or short ``max_children``.
A number of seconds or bytes may have php-fpm's units. Nothing is guessed: what is not understood is a ConfigError.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fcgi_pool.listener import Address, AddressError
from fcgi_pool.log import LEVELS

MODES = ("static", "dynamic", "ondemand")
RUNNERS = ("own", "flup-threaded", "flup-forked")

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"([0-9]+)([KMG]?)B?", re.IGNORECASE)
_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"/[\x21-\x7e]*")


class ConfigError(ValueError):
    """A mistake in the configuration: one line that names the key, its value, and what would be right."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One pool. Times are seconds, sizes bytes; 0 for a limit: there is none.

    Either `command`, the program and its arguments, or `app`, a WSGI callable ``MODULE:CALLABLE`` that `python` runs
    by `runner`. `listen` is None where the web server chooses the address. Users and groups are names or numbers as
    written, '' to stay as one is.
    """

    name: str
    command: tuple[str, ...] = ()
    app: str = ""
    python: str = ""
    runner: str = "own"
    listen: Address | None = None
    listen_owner: str = ""
    listen_group: str = ""
    listen_mode: int = 0o660
    # php-fpm 511; the kernel cuts it at net.core.somaxconn.
    listen_backlog: int = 4096
    listen_allowed_clients: tuple[str, ...] = ()
    status_listen: Address | None = None
    status_path: str = "/status"
    ping_path: str = "/ping"
    ping_response: str = "pong"
    user: str = ""
    group: str = ""
    chroot: str = ""
    chdir: str = ""
    pm: str = "dynamic"
    max_children: int = 5
    start_servers: int = 0  # 0: min + (max - min) / 2 of the spare servers, as in php-fpm
    min_spare_servers: int = 1
    max_spare_servers: int = 0  # 0: 3, or max_children if that is less
    max_spawn_rate: int = 32
    process_idle_timeout: float = 10.0
    max_requests: int = 0
    max_memory: int = 0
    request_terminate_timeout: float = 0.0
    request_slowlog_timeout: float = 0.0
    slowlog: str = ""
    # php-fpm's default is 0: there a reload breaks off what runs.
    process_control_timeout: float = 30.0
    clear_env: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    rlimit_files: int | None = None
    rlimit_core: int | None = None
    process_priority: int | None = None
    catch_workers_output: bool = False
    emergency_restart_threshold: int = 0
    emergency_restart_interval: float = 60.0

    @property
    def spare(self) -> tuple[int, int]:
        """The least and the most idle workers of a dynamic pool."""
        return self.min_spare_servers, self.max_spare_servers or max(self.min_spare_servers, min(3, self.max_children))

    @property
    def first(self) -> int:
        """How many workers are started at once at first."""
        if self.pm == "static":
            return self.max_children
        if self.pm == "ondemand":
            return 0
        low, high = self.spare
        return self.start_servers or low + (high - low) // 2


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """What one manager looks after. `error_log`: a path, - for standard error. `pid_file`: '' for none."""

    pools: tuple[PoolConfig, ...]
    error_log: str = "-"
    log_level: str = "notice"
    pid_file: str = ""


def seconds(value: Any) -> float:
    """Return the seconds that `value` means, such as 30, "30s" or "5m"; raise ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    found = float(match[1]) * _SECONDS[match[2]] if match else -1.0
    if not 0 <= found < 1e11:
        raise ValueError('a time, as 30, "30s", "5m", "2h" or "1d"')
    return found


def size(value: Any) -> int:
    """Return the bytes that `value` means, such as 1048576 or "128M"; raise ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError('a size, as "512K", "128M" or "2G"')
    return int(match[1]) * _BYTES[match[2].upper()]


def read_pools(tables: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> tuple[PoolConfig, ...]:
    """Return the pools of the table ``pools``, in their order; raise ConfigError.

    `defaults`: keys that hold for every pool which does not say otherwise.
    """
    pools = []
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"pools.{name}: no name for a pool; use letters, digits, ., _ and -")
        if not isinstance(table, Mapping):
            raise ConfigError(f"pools.{name} = {table!r}: not a table; write [pools.{name}] and its keys below")
        pools.append(read_pool(name, table, defaults))
    _refuse_shared_addresses(pools)
    return tuple(pools)


def read_pool(name: str, table: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> PoolConfig:
    """Return the pool `name` of which `table` holds the keys; raise ConfigError."""
    values: dict[str, Any] = dict(defaults or {})
    seen: set[str] = set()
    for written, value in flattened(table):
        key = key_of(written)
        where = f"pools.{name}.{written}"
        if key not in _READERS:
            raise ConfigError(f"{where}: there is no such key{_nearest(key)}")
        if key in seen:
            raise ConfigError(f"{where}: given twice, under two names; keep one")
        seen.add(key)
        values[key] = _read(where, key, value)
    config = PoolConfig(name, **values)
    _check(config, seen)
    return config


def read_manager(document: Mapping[str, Any]) -> ManagerConfig:
    """Return what a whole configuration file means: ``[global]`` and ``[pools.NAME]``; raise ConfigError.

    The tables ``server`` and ``routes`` are a web server's and passed over, so that one file serves both.
    """
    for key in document:
        if key not in ("global", "pools", "server", "routes"):
            raise ConfigError(f"{key}: there is no such table; there are [global] and [pools.NAME]")
    table = document.get("global", {})
    pools = document.get("pools", {})
    if not isinstance(table, Mapping) or not isinstance(pools, Mapping):
        raise ConfigError("global, pools: not tables; write [global] and [pools.NAME]")
    if not pools:
        raise ConfigError("pools: there is none; write [pools.NAME] with listen and command")
    values: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        where = f"global.{key}"
        if key in _GLOBAL:
            values[_GLOBAL_NAMES.get(str(key), str(key))] = _convert(where, value, _GLOBAL[key])
        elif key in _FOR_ALL_POOLS:
            defaults[key] = _read(where, key, value)
        else:
            known = ", ".join([*_GLOBAL, *_FOR_ALL_POOLS])
            raise ConfigError(f"{where}: there is no such key; there are {known}")
    return ManagerConfig(read_pools(pools, defaults), **values)


def flattened(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the keys of a pool's table and of the tables in it, joined by dots; `env` is a value."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and prefix + key != "env":
            found += flattened(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def key_of(written: str) -> str:
    """Return the field that a key means, however it was written."""
    key = written.replace(".", "_")
    if key == "listen_address":
        return "listen"
    if key in ("pm_mode", "pm_pm"):
        return "pm"
    return key.removeprefix("pm_")


def _nearest(key: str) -> str:
    if key in ("access_log", "access_format", "security_limit_extensions", "process_dumpable", "prefix"):
        return "; this directive of php-fpm has no meaning here, leave it out"
    if key.startswith(("php_value", "php_flag", "php_admin")):
        return "; give PHP its settings by arguments: command = ['php-cgi', '-d', 'memory_limit=128M']"
    alike = [known for known in _READERS if known.startswith(key[:6]) or key in known]
    return f"; did you mean {' or '.join(alike[:3])}?" if alike else f"; there are {', '.join(_READERS)}"


def _read(where: str, key: str, value: Any) -> Any:
    return _convert(where, value, _READERS[key])


def _convert(where: str, value: Any, reader: Callable[[Any], Any]) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise ConfigError(f"{where} = {value!r}: not {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text")
    return value


def _directory(value: Any) -> str:
    if not _text(value).startswith("/"):
        raise ValueError("an absolute path, as /srv/blog")
    return str(value)


def _number(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def _yes_or_no(value: Any) -> bool:
    # php-fpm's files write yes, no, 1, 0, on, off.
    if value in (True, "yes", "on", "1"):
        return True
    if value in (False, "no", "off", "0"):
        return False
    raise ValueError("yes or no; write true or false")


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return read


def _account(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError("the name or the number of a user or group")
    return value


def _mode(value: Any) -> int:
    # 0o660 in TOML, "0660" as in php-fpm. 660 is taken for what it looks like, or it would mean 01224.
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777 and value != 666:
        return value
    raise ValueError('the mode of a file; write "0660"')


def _address(value: Any) -> Address:
    text = _text(value)
    if text.startswith("/"):
        text = f"unix:{text}"
    try:
        return Address.parse(text.removeprefix("tcp:"))
    except AddressError as error:
        raise ValueError(f"an address: {error}") from None


def _clients(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(str(ipaddress.ip_address(name.strip())) for name in names)
    except (ValueError, AttributeError, TypeError):
        raise ValueError('a list of IP addresses, as ["127.0.0.1", "10.0.0.7"]') from None


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"a list; write {value.split()!r}: no shell takes it apart")
    if not isinstance(value, list | tuple) or not value or not all(isinstance(word, str) for word in value):
        raise ValueError('a program and its arguments, as ["php-cgi"]')
    if not value[0] or any("\0" in word for word in value):
        raise ValueError("a program and its arguments: the name is empty, or there is a NUL")
    return tuple(value)


def _application(value: Any) -> str:
    if not isinstance(value, str) or not _CALLABLE.fullmatch(value):
        raise ValueError("MODULE:CALLABLE, as wiki.app:application")
    return value


def _runner(value: Any) -> str:
    return _one_of(RUNNERS)("flup-threaded" if value == "flup" else value)


def _variables(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError('a table of variables, as { WIKI_HOME = "/srv/wiki" }')
    found = {}
    for name, content in value.items():
        if not _VARIABLE.fullmatch(name) or isinstance(content, bool) or not isinstance(content, str | int | float):
            raise ValueError(f"a table of variables: look at {name!r}")
        if "\0" in str(content):
            raise ValueError(f"a table of variables: there is a NUL in {name}")
        found[name] = str(content)
    return found


def _uri(value: Any) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        raise ValueError("a path that begins with a slash, as /status")
    return value


def _limit(value: Any) -> int:
    if value == "unlimited":
        return -1
    return _number(0, 2**31 - 1)(value)


_COUNT = _number(1, 100_000)
_COUNT_OR_NONE = _number(0, 100_000)
_READERS: dict[str, Callable[[Any], Any]] = {
    "command": _words,
    "app": _application,
    "python": _text,
    "runner": _runner,
    "listen": _address,
    "listen_owner": _account,
    "listen_group": _account,
    "listen_mode": _mode,
    "listen_backlog": _number(1, 65_535),
    "listen_allowed_clients": _clients,
    "status_listen": _address,
    "status_path": _uri,
    "ping_path": _uri,
    "ping_response": _text,
    "user": _account,
    "group": _account,
    "chroot": _directory,
    "chdir": _directory,
    "pm": _one_of(MODES),
    "max_children": _COUNT,
    "start_servers": _COUNT,
    "min_spare_servers": _COUNT,
    "max_spare_servers": _COUNT,
    "max_spawn_rate": _COUNT,
    "process_idle_timeout": seconds,
    "max_requests": _number(0, 2**31 - 1),
    "max_memory": size,
    "request_terminate_timeout": seconds,
    "request_slowlog_timeout": seconds,
    "slowlog": _text,
    "process_control_timeout": seconds,
    "clear_env": _yes_or_no,
    "env": _variables,
    "rlimit_files": _number(3, 2**31 - 1),
    "rlimit_core": _limit,
    "process_priority": _number(-20, 19),
    "catch_workers_output": _yes_or_no,
    "emergency_restart_threshold": _COUNT_OR_NONE,
    "emergency_restart_interval": seconds,
}
# php-fpm has these once for all pools; here a pool may have its own.
_FOR_ALL_POOLS = (
    "process_control_timeout", "emergency_restart_threshold", "emergency_restart_interval", "rlimit_files",
    "rlimit_core", "process_priority",
)  # fmt: skip
_GLOBAL: dict[str, Callable[[Any], Any]] = {
    "error_log": _text,
    "log_level": _one_of(LEVELS),
    "pid": _text,
}
_GLOBAL_NAMES = {"pid": "pid_file"}


def _check(config: PoolConfig, given: set[str]) -> None:
    """Refuse what does not go together; raise ConfigError."""
    where = f"pools.{config.name}"
    if bool(config.command) == bool(config.app):
        what = "both command and app are given; keep one" if config.app else "command is missing, or app"
        raise ConfigError(f'{where}: {what}: command = ["php-cgi"] or app = "MODULE:CALLABLE"')
    if config.command and given & {"python", "runner"}:
        raise ConfigError(f"{where}: python and runner go with app; command names its own program")
    if config.listen_allowed_clients and config.listen and config.listen.path:
        raise ConfigError(f"{where}.listen.allowed_clients: for TCP; a Unix socket has listen_owner, _group and _mode")
    if given & {"status_path", "ping_path", "ping_response"} and not config.status_listen:
        raise ConfigError(f'{where}.status_listen: missing; the manager answers there, say "127.0.0.1:9001"')
    if config.request_slowlog_timeout and not config.slowlog:
        raise ConfigError(f"{where}.slowlog: missing; say where request_slowlog_timeout writes: slowlog = PATH")
    _check_spare(config, given)


def _check_spare(config: PoolConfig, given: set[str]) -> None:
    where = f"pools.{config.name}"
    if config.pm != "dynamic":
        return
    low, high = config.spare
    if low > config.max_children:
        raise ConfigError(f"{where}.min_spare_servers = {low}: more than max_children, {config.max_children}")
    if high > config.max_children:
        raise ConfigError(f"{where}.max_spare_servers = {high}: more than max_children, {config.max_children}")
    if low > high:
        raise ConfigError(f"{where}.min_spare_servers = {low}: more than max_spare_servers, {high}")
    if "start_servers" in given and not low <= config.start_servers <= high:
        what = f"not from {low} to {high}, the least and most spare servers"
        raise ConfigError(f"{where}.start_servers = {config.start_servers}: {what}")


def _refuse_shared_addresses(pools: list[PoolConfig]) -> None:
    users: dict[str, str] = {}
    for pool in pools:
        for key, address in (("listen", pool.listen), ("status_listen", pool.status_listen)):
            if not address or not (address.path or address.port):
                continue
            name = f"pools.{pool.name}.{key}"
            if str(address) in users:
                raise ConfigError(f"{name} = {address}: {users[str(address)]} listens there; give each its own")
            users[str(address)] = name


