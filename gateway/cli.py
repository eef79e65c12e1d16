"""The command line: options into settings, mistakes into one line each."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from fcgi_pool.config import ConfigError, key_of
from fcgi_pool.listener import Address, AddressError
from gateway.cgi.variables import mount_variables
from gateway.cgi.warm.reuse import CATCHING, pool_command, recipes_below
from gateway.check import report
from gateway.config import ConfigFileError, effective, read_file
from gateway.confinement.model import Confinement
from gateway.fastcgi.backend import resolve
from gateway.fastcgi.tokens import MOST
from gateway.http.limits import Limits
from gateway.limit_options import client_settings
from gateway.listeners import given
from gateway.master import Master
from gateway.options import DEFAULT_LISTEN, DEFAULT_PREFIX, make_parser
from gateway.places import directory_trouble, installation_trouble, module_trouble, prefix_trouble, spool_trouble
from gateway.pools import check_pool, default_children
from gateway.prepare import prepare
from gateway.private_directory import let_pass, private_directory
from gateway.privileges import Account, UnknownAccount, account_of, for_account, for_worker
from gateway.settings import (
    CgiMount,
    FastCgiMount,
    FastCgiServer,
    Mount,
    Pool,
    Route,
    Settings,
    SiteMount,
    Timeouts,
)
from gateway.static_options import static_mounts
from gateway.systemd import Notifier, given_descriptors
from gateway.tls.options import plain, tls_of
from gateway.trial import run_all
from gateway.upgrade import Predecessor
from gateway.usage import UsageError

_SIZE = re.compile(r"([0-9]+)([KMGkmg]?)")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
# A program's environment holds the request's head, too; Linux takes 128 KiB a variable.
_ENV_LIMIT = 64 * 1024

# Directives of a pool that are the front's to decide, and what decides them.
_OWN_DIRECTIVES = {
    "command": "--pool PREFIX=COMMAND names it",
    "max_children": "--children N gives it",
    "env": "--env NAME=VALUE gives each variable",
    **dict.fromkeys(
        ("app", "python", "runner"), "python -m fcgi_pool --app runs it, and --fastcgi PREFIX=ADDRESS serves it"
    ),
    **dict.fromkeys(
        ("listen", "listen_owner", "listen_group", "listen_mode", "listen_allowed_clients"),
        "such a pool serves this server alone; for others, too, start it by python -m fcgi_pool, and use --fastcgi",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 for a mistake in the options."""
    _keep_descriptors()
    try:
        parser = make_parser()
        options = parser.parse_args(arguments)
        if options.config:
            _refuse_others(parser, options)
        if options.print_config:
            print(effective(read_settings(options)), end="")
            return 0
        if options.check and not options.run:
            return report(read_settings(options))
        if options.run and not options.check:
            raise UsageError("--run: goes with --check, and has it start each program and pool once")
        # Until the master has its own handlers: an end in between must leave nothing behind, either.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, _end)
        if not (options.config or options.pool or options.php or options.warm == "reuse" or options.check):
            return _serve(options, "")
        with private_directory() as sockets:
            if options.check:
                settings = _settings_with(options, sockets)
                failed = report(settings)
                return run_all(settings, sockets) or failed
            return _serve(options, sockets)
    except (UsageError, ConfigFileError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def read_settings(options: argparse.Namespace, sockets: str = "") -> Settings:
    """Return the settings that `options` stand for; raise UsageError or ConfigFileError.

    Pools without an address of their own listen in the directory `sockets`.
    """
    if options.config:
        return read_file(options.config, sockets)
    if not (options.cgi_dir or options.static or options.fastcgi or options.pool or options.php):
        raise UsageError("--cgi-dir is missing: nothing would be served; write, say, --cgi-dir cgi-bin")
    env = tuple(_variable(text) for text in options.env)
    if sum(len(os.fsencode(name + value)) for name, value in env) > _ENV_LIMIT:
        raise UsageError(f"--env: all of them together are over {_ENV_LIMIT} bytes; put large values into a file")
    pools: list[Pool] = []
    mounts: list[Mount] = [_mount(text, env, options, sockets, pools) for text in options.cgi_dir]
    mounts += [_fastcgi(text, env, options) for text in options.fastcgi]
    authorizers = [_fastcgi(text, env, options, "--authorizer") for text in options.authorizer]
    _refuse_duplicates("--authorizer", [mount.prefix for mount in authorizers])
    for text in options.pool:
        mounts.append(_pool(text, env, options, sockets, pools))
    for text in options.php:
        mounts.append(_php(text, env, options, sockets, pools))
    mounts += static_mounts(options, mounts, _prefix_and_directory)
    _check_pools(pools, options.pool_set)
    account = _account(options)
    for option, kind in (("--cgi-dir", CgiMount), ("--cgi-dir, --static, --fastcgi, --pool and --php", object)):
        _refuse_duplicates(option, [mount.prefix for mount in mounts if isinstance(mount, kind)])
    tls = tls_of(options)
    listen = [_address(text) for text in options.listen or ([] if tls and tls.listen else [DEFAULT_LISTEN])]
    for option, addresses in (("--listen", listen), ("--tls-listen", tls.listen if tls else ())):
        _refuse_duplicates(option, [str(address) for address in addresses if address.path or address.port])
    for option in ("http", "loop"):
        if trouble := installation_trouble(option, getattr(options, option)):
            raise UsageError(f"--{option} {getattr(options, option)}: {trouble}")
    if options.temp_dir and (trouble := spool_trouble(options.temp_dir)):
        raise UsageError(f"--temp-dir {options.temp_dir}: {trouble}")
    return Settings(
        listen=plain(listen, tls),
        routes=tuple(Route(mount.prefix, _as_account(mount, account)) for mount in mounts),
        shows_index=True,
        pools=tuple(for_worker(for_account(pool, account), account) for pool in pools),
        account=account,
        authorizers=tuple(authorizers),
        workers=_count("--workers", options.workers or str(len(os.sched_getaffinity(0)))),
        http=options.http,
        loop=options.loop,
        debug=options.debug,
        compress=options.compress,
        access_log=options.access_log,
        error_log=options.error_log,
        log_format=options.log_format,
        pid_file=options.pid_file,
        temp_dir=os.path.abspath(options.temp_dir) if options.temp_dir else "",
        tls=tls,
        max_programs=_count("--max-programs", options.max_programs),
        timeouts=_timeouts(options),
        limits=Limits(body=_size("--max-body", options.max_body)),
        clients=client_settings(options, [*listen, *(tls.listen if tls else ())], _prefix),
    )


def _account(options: argparse.Namespace) -> Account | None:
    try:
        return account_of(options.user, options.group)
    except UnknownAccount as error:
        raise UsageError(f"--{'user' if options.user else 'group'} {error}") from None


def _as_account(mount: Mount, account: Account | None) -> Mount:
    return replace(mount, confinement=Confinement(account)) if isinstance(mount, CgiMount) else mount


def _refuse_others(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Raise UsageError if an option is given that the configuration file stands for."""
    for name, value in vars(options).items():
        if name not in ("config", "check", "run", "print_config") and value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option}: the file that --config names stands for all options; write it there")


def _keep_descriptors() -> None:
    """Have the standard streams, and pass nothing else that this process was started with on to the programs."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _serve(options: argparse.Namespace, sockets: str) -> int:
    if options.config:
        # What is reloaded is the file of that name, not that of a directory which was moved away meanwhile.
        with contextlib.suppress(OSError):
            options.config = os.path.abspath(options.config)
    predecessor, notifier = Predecessor(), Notifier()
    there = predecessor.listeners or [given(*named) for named in given_descriptors()]
    prepared = prepare(_settings_with(options, sockets), there)
    return Master(prepared, lambda: _settings_with(options, sockets), sockets, predecessor, notifier).run()


def _settings_with(options: argparse.Namespace, sockets: str) -> Settings:
    """Return the settings, with a directory `sockets` that their user may pass."""
    settings = read_settings(options, sockets)
    if sockets and settings.account:
        let_pass(sockets)
    return settings


def _mount(
    text: str, env: tuple[tuple[str, str], ...], options: argparse.Namespace, sockets: str, pools: list[Pool]
) -> CgiMount:
    """Return the mount, and add the pools that run its scripts to `pools`."""
    prefix, directory = _prefix_and_directory("--cgi-dir", text, DEFAULT_PREFIX)
    if options.preload and not options.warm:
        raise UsageError("--preload: goes with --warm, which keeps interpreters that have modules ready")
    for module in options.preload:
        if trouble := module_trouble(module):
            raise UsageError(f"--preload {module}: {trouble}")
    recipes = []
    if options.warm == "reuse":
        recipes = recipes_below(directory, mount_variables(b"", env).get(b"PATH", b""))
    reuse = []
    for recipe in recipes:
        command = pool_command(recipe)
        server = _managed(f"--cgi-dir {text}", prefix, command, env, options, sockets, pools)
        # First, so that the user's own word wins.
        pools[-1] = replace(pools[-1], directives=(*CATCHING, *pools[-1].directives))
        reuse.append((recipe, server))
    return CgiMount(
        prefix,
        directory,
        env,
        follow_links=options.follow_links,
        kill_group=options.kill_group,
        warm=options.warm,
        preload=tuple(options.preload),
        reuse=tuple(reuse),
    )


def _prefix_and_directory(option: str, text: str, default_prefix: str) -> tuple[str, str]:
    prefix, equals, directory = text.partition("=")
    if not equals or not prefix.startswith("/"):
        prefix, directory = default_prefix, text
    prefix = _prefix(option, text, prefix, f"{default_prefix}=DIR")
    if trouble := directory_trouble(directory):
        raise UsageError(f"{option} {text}: {trouble}")
    return prefix, os.path.abspath(directory)


def _prefix(option: str, text: str, prefix: str, example: str) -> str:
    if not prefix.endswith("/"):
        prefix += "/"
    if trouble := prefix_trouble(prefix):
        raise UsageError(f"{option} {text}: {trouble}; write, say, {example}")
    return prefix


def _fastcgi(
    text: str, env: tuple[tuple[str, str], ...], options: argparse.Namespace, option: str = "--fastcgi"
) -> FastCgiMount:
    prefix, _, target = text.partition("=")
    prefix = _prefix(option, text, prefix, "/app/=unix:/run/app.sock")
    return FastCgiMount(prefix, _server(option, text, prefix, target, options), env)


def _server(option: str, text: str, name: str, target: str, options: argparse.Namespace) -> FastCgiServer:
    if not target.startswith(("unix:", "tcp:")):
        raise UsageError(f"{option} {text}: {target!r} is no address; write unix:PATH or tcp:HOST:PORT")
    try:
        address = Address.parse(target.removeprefix("tcp:"))
        resolve(address)
    except AddressError as error:
        raise UsageError(f"{option} {text}: {error}") from None
    except OSError as error:
        raise UsageError(f"{option} {text}: the host is not known ({error.strerror}); write an address") from None
    connections = _count("--connections", options.connections) if options.connections else 0
    if connections > MOST:
        raise UsageError(f"--connections {connections}: more than {MOST} to one server; write fewer")
    return FastCgiServer(name, address, connections)


def _pool(
    text: str, env: tuple[tuple[str, str], ...], options: argparse.Namespace, sockets: str, pools: list[Pool]
) -> FastCgiMount:
    """Return the mount, and add its pool to `pools`."""
    prefix, _, command = text.partition("=")
    prefix = _prefix("--pool", text, prefix, "/app/='COMMAND ARGUMENT'")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--pool {text}: {error}; write the command as for a shell, quotes in pairs") from None
    if not words:
        raise UsageError(f"--pool {text}: the command is missing; write, say, /app/='COMMAND ARGUMENT'")
    return FastCgiMount(prefix, _managed(f"--pool {text}", prefix, words, env, options, sockets, pools), env)


def _php(
    text: str, env: tuple[tuple[str, str], ...], options: argparse.Namespace, sockets: str, pools: list[Pool]
) -> SiteMount:
    """Return the mount, and add its pool to `pools`, if it has one of its own."""
    prefix, directory = _prefix_and_directory("--php", text, "/")
    if options.php_server:
        server = _server("--php-server", options.php_server, prefix, options.php_server, options)
    else:
        server = _managed(f"--php {text}", prefix, ["php-cgi"], env, options, sockets, pools)
    return SiteMount(prefix, directory, server, env=env, follow_links=options.follow_links)


def _managed(
    option: str,
    prefix: str,
    command: list[str],
    env: tuple[tuple[str, str], ...],
    options: argparse.Namespace,
    sockets: str,
    pools: list[Pool],
) -> FastCgiServer:
    program = shutil.which(command[0])
    if not program:
        raise UsageError(f"{option}: the program {command[0]!r} is not found; install it, or give its path")
    children = _count("--children", options.children or str(default_children()))
    if children > MOST:
        raise UsageError(f"--children {children}: more than {MOST} processes of one pool; write fewer")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", prefix).strip(".-")[:32] or "root"
    address = Address(path=os.path.join(sockets, f"{len(pools)}-{name}.sock"))
    server = FastCgiServer(name, address, children)
    pools.append(Pool(server, (os.path.abspath(program), *command[1:]), env, tuple(options.pool_set)))
    return server


def _check_pools(pools: list[Pool], directives: list[str]) -> None:
    keys = []
    for text in directives:
        name, equals, _ = text.partition("=")
        key = key_of(name)
        keys.append(key)
        if not equals:
            raise UsageError(f"--pool-set {text}: no value; write KEY=VALUE, as --pool-set max_requests=500")
        if key in _OWN_DIRECTIVES:
            raise UsageError(f"--pool-set {text}: {name} is not set by it; {_OWN_DIRECTIVES[key]}")
    _refuse_duplicates("--pool-set", keys)
    if directives and not pools:
        raise UsageError(f"--pool-set {directives[0]}: there is no pool; --pool and --php start one")
    if "status_listen" in keys and len(pools) > 1:
        raise UsageError("--pool-set status_listen: there are several pools; only one can listen at an address")
    for pool in pools:
        try:
            check_pool(pool)
        except ConfigError as error:
            option = "--pool-set" if directives else "--pool"
            raise UsageError(f"{option}: {error}; the keys and their values are in docs/fastcgi.rst") from None


def _refuse_duplicates(option: str, values: list[str]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise UsageError(f"{option}: {value} is given twice; give each one once")


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except AddressError as error:
        raise UsageError(f"--listen {text}: {error}") from None


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UsageError(f"--env {text}: {name!r} is no name of a variable; write NAME=VALUE")
    if not equals:
        if name not in os.environ:
            raise UsageError(f"--env {name}: the server itself has no such variable; write {name}=VALUE")
        value = os.environ[name]
    return name, value


def _count(option: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise UsageError(f"{option} {text}: not a whole number from 1 to 999999; write, say, {option} 4")
    return int(text)


def _size(option: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"{option} {text}: not a size; write, say, 512K, 16M or 2G")
    return int(match[1]) * _UNITS[match[2].lower()]


def _timeouts(options: argparse.Namespace) -> Timeouts:
    given = {}
    for name in ("header", "body", "send", "keepalive", "handshake", "script", "queue", "kill", "stop"):
        text = getattr(options, f"{name}_timeout")
        if text is None:
            continue
        if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", text) or float(text) <= 0:
            option = f"--{name}-timeout"
            raise UsageError(f"{option} {text}: not a number of seconds above 0; write, say, {option} 30")
        given[name] = float(text)
    return Timeouts(**given)

