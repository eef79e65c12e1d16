"""The command line of the pool manager: options into a configuration, mistakes into one line each."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fcgi_pool.config import ConfigError, ManagerConfig, PoolConfig, read_manager
from fcgi_pool.log import LEVELS, Log
from fcgi_pool.lookup import launch_for, socket_owner
from fcgi_pool.manager import Manager
from fcgi_pool.prepare import Prepared, prepare
from fcgi_pool.process import die_with
from fcgi_pool.told import Reader

_NAME = "www"
# Where the age of a connection may stand for that of its request, in seconds: the gateway uses one for so long.
_LEAST_GUESSED = 1.0
# Options that are directives of the pool, under their names.
_DIRECTIVES = (
    "app", "python", "runner", "listen", "listen_owner", "listen_group", "listen_mode", "status_listen", "user",
    "group", "chdir", "pm", "slowlog",
)  # fmt: skip


class UsageError(ConfigError):
    """A mistake on the command line; the text says what is wrong and what would be right."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see python -m fcgi_pool --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m fcgi_pool",
        usage="python -m fcgi_pool --listen ADDRESS [OPTIONS] -- COMMAND... | --app MODULE:CALLABLE\n"
        "       python -m fcgi_pool --config FILE",
        description="Keeps a pool of FastCGI programs: php-fpm for any of them.",
        epilog="Example: python -m fcgi_pool --listen unix:/run/blog.sock --children 4 -- php-cgi",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML with a table [pools.NAME] for each pool")
    add("--check", action="store_true", help="say what would be run, and what would fail; run nothing")
    group = parser.add_argument_group("a pool")
    add = group.add_argument
    add("--listen", metavar="ADDRESS", help="unix:PATH, HOST:PORT or tcp:HOST:PORT")
    add("--app", metavar="MODULE:CALLABLE", help="a WSGI application, run by our own runtime")
    add("--python", metavar="PATH", help="the interpreter that runs it (default: this one)")
    add("--runner", metavar="NAME", help="own, flup-threaded or flup-forked (default own)")
    add("--name", metavar="NAME", default=_NAME, help=f"of the pool, in logs (default {_NAME})")
    add("--children", metavar="N", help="workers at most (default 5)")
    add("--pm", metavar="MODE", help="static, dynamic or ondemand (default static)")
    add("--max-requests", metavar="N", help="a worker ends after so many requests (default 0: never)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the workers; repeatable")
    add("--chdir", metavar="DIR", help="the directory that workers run in")
    add("--user", metavar="USER", help="whom workers run as; needs root")
    add("--group", metavar="GROUP", help="and with which group")
    add("--listen-owner", metavar="USER", help="owner of the Unix socket")
    add("--listen-group", metavar="GROUP", help="group of the Unix socket")
    add("--listen-mode", metavar="MODE", help="mode of the Unix socket (default 0660)")
    add("--status-listen", metavar="ADDRESS", help="where the manager answers /status and /ping, over FastCGI")
    add("--slowlog", metavar="PATH", help="where slow requests are reported")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="any directive of a pool, as in a configuration file; repeatable")  # fmt: skip
    group = parser.add_argument_group("the manager")
    add = group.add_argument
    add("--error-log", metavar="PATH", help="a path, or - for standard error (default -)")
    add("--log-level", metavar="LEVEL", help=f"{', '.join(LEVELS)} (default notice)")
    add("--pid-file", metavar="PATH", help="holds the manager's pid while it runs")
    add("--ready-fd", metavar="N", help="write a line to this descriptor when all pools listen, and close it")
    add("--listen-fd", metavar="N", help="what listens at --listen already, and is not this manager's own")
    add("--status-fd", metavar="N", help="the same for --status-listen")
    add("--told-fd", metavar="N", help="shared memory in which a gateway tells of its connections to the pool")
    add("--die-with-parent", action="store_true", help="be killed when the process that started this one dies")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="a FastCGI program, after --")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 for a mistake that is told in one line."""
    try:
        options = _parser().parse_args(arguments)
        ready = _descriptor("--ready-fd", options.ready_fd)
        told = _told(options)
        lent = _lent("--listen-fd", options.listen_fd, options), _lent("--status-fd", options.status_fd, options)
        _keep_descriptors()
        if options.die_with_parent:
            # Not TERM: a manager that is stopped or stuck would outlive its parent, and so would the workers.
            die_with(os.getppid())
        config = read_options(options)
        if options.check:
            return _report(config)
        return _serve(config, lambda: read_options(options), ready, told, lent)
    except ConfigError as error:
        print(f"fcgi_pool: {error}", file=sys.stderr)
        return 2


def check(arguments: Sequence[str]) -> None:
    """Raise ConfigError if a manager with this command line would not start, as far as that is known before."""
    pool = pool_of(arguments)
    launch_for(pool)
    socket_owner(pool)


def pool_of(arguments: Sequence[str]) -> PoolConfig:
    """Return the pool that a command line without a file stands for; raise ConfigError."""
    (pool,) = read_options(_parser().parse_args(arguments), is_told=True).pools
    return pool


def read_options(options: argparse.Namespace, is_told: bool = False) -> ManagerConfig:
    """Return the configuration that `options` stand for, read anew; raise UsageError or ConfigError.

    `is_told`: a web server will tell of its requests.
    """
    if options.config:
        given = [name for name in _DIRECTIVES if getattr(options, name)]
        if given or options.command or options.children or options.settings:
            name = f"--{given[0].replace('_', '-')}" if given else "COMMAND, --children and --set"
            raise UsageError(f"{name}: stands for a pool, and so does --config; write it into the file")
        document = _read_file(options.config)
    else:
        document = {"pools": {options.name: _pool_table(options)}}
    table = dict(document.get("global", {}))
    for option, key in (("error_log", "error_log"), ("log_level", "log_level"), ("pid_file", "pid")):
        if getattr(options, option):
            table[key] = getattr(options, option)
    config = read_manager({**document, "global": table})
    if not is_told and options.told_fd is None:
        for pool in config.pools:
            _refuse_guesses(pool)
    return config


def _refuse_guesses(pool: PoolConfig) -> None:
    """Raise ConfigError for a limit that would end workers which do nothing wrong."""
    limit = pool.request_terminate_timeout
    if 0 < limit < _LEAST_GUESSED and not (pool.app and pool.runner == "own"):
        raise ConfigError(
            f"pools.{pool.name}.request_terminate_timeout = {limit:g}: less than {_LEAST_GUESSED:g} s. Of such a "
            "program it is known for how long it has a connection, not a request, and web servers keep them longer; "
            f"write {_LEAST_GUESSED:g}s or more, or have the pool started by python -m gateway, which tells"
        )


def _pool_table(options: argparse.Namespace) -> dict[str, Any]:
    table: dict[str, Any] = {name: getattr(options, name) for name in _DIRECTIVES if getattr(options, name)}
    if not options.listen:
        raise UsageError("--listen is missing; write, say, --listen unix:/run/name.sock")
    if options.command:
        table["command"] = options.command
    elif not options.app:
        raise UsageError("the program is missing; write it after --, as -- php-cgi, or --app MODULE:CALLABLE")
    table.setdefault("pm", "static")
    for option, key in (("children", "max_children"), ("max_requests", "max_requests")):
        if getattr(options, option) is not None:
            table[key] = _number(f"--{option.replace('_', '-')}", getattr(options, option))
    variables = {}
    for text in options.env:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--env {text}: no value; write NAME=VALUE")
        variables[name] = value
    if variables:
        table["env"] = variables
    for text in options.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: no value; write KEY=VALUE, as --set max_memory=128M")
        table[name] = _value(value)
    return table


def _value(text: str) -> Any:
    """Return the number that a text is, or the text."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) and not re.fullmatch(r"0[0-9]+", text) else text


def _number(option: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{option} {text}: no whole number; write, say, {option} 4")
    return int(text)


def _read_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not TOML: {error}") from None


def _told(options: argparse.Namespace) -> Reader | None:
    descriptor = _descriptor("--told-fd", options.told_fd)
    if descriptor < 0:
        return None
    if options.config:
        raise UsageError("--told-fd: stands for one pool, and so not with --config")
    try:
        reader = Reader(descriptor)
    except (OSError, ValueError) as error:
        raise UsageError(f"--told-fd {descriptor}: {error}") from None
    os.close(descriptor)
    return reader


def _lent(option: str, text: str | None, options: argparse.Namespace) -> socket.socket | None:
    descriptor = _descriptor(option, text)
    if descriptor < 0:
        return None
    if options.config:
        raise UsageError(f"{option}: stands for one pool, and so not with --config")
    lent = socket.socket(fileno=descriptor)
    lent.setblocking(False)
    return lent


def _descriptor(option: str, text: str | None) -> int:
    """Return an inherited descriptor, -1 for none."""
    if text is None:
        return -1
    try:
        descriptor = int(text)
        os.fstat(descriptor)
    except (ValueError, OSError):
        raise UsageError(f"{option} {text}: no open descriptor; it has to be inherited") from None
    return descriptor


def _keep_descriptors() -> None:
    """Have the standard streams, and pass nothing else that this process was started with on to the workers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _report(config: ManagerConfig) -> int:
    """Say what would be run; raise ConfigError for what would fail."""
    for pool in config.pools:
        launch = launch_for(pool)
        socket_owner(pool)
        print(f"pool {pool.name}: {pool.pm}, {pool.max_children} workers at most, on {pool.listen or 'no address yet'}")
        print(f"    {' '.join(launch.arguments)}")
    return 0


def _serve(
    config: ManagerConfig,
    reread: Callable[[], ManagerConfig],
    ready: int,
    told: Reader | None,
    lent: tuple[socket.socket | None, socket.socket | None],
) -> int:
    try:
        log = Log(config.error_log, config.log_level)
    except OSError as error:
        raise ConfigError(f"error_log = {config.error_log!r}: {error.strerror}") from None
    prepared: list[Prepared] = []
    try:
        prepared.extend(prepare(pool, *lent, lent) for pool in config.pools)
        if config.pid_file:
            _write_pid(config.pid_file)
    except ConfigError:
        for entry in prepared:
            entry.undo()
        raise
    try:
        manager = Manager(prepared, log, reread, told)
        if ready >= 0:
            with contextlib.suppress(OSError):
                os.write(ready, b"ready\n")
                os.close(ready)
        return manager.run()
    finally:
        if config.pid_file:
            with contextlib.suppress(OSError):
                os.unlink(config.pid_file)
        log.close()


def _write_pid(path: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise ConfigError(f"global.pid = {path!r}: {error.strerror}") from None
