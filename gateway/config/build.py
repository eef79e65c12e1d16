"""From a document to settings: paths made whole, names looked up, what does not go together refused."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fcgi_pool.config import ConfigError, flattened, key_of, read_pool, seconds
from fcgi_pool.listener import Address, AddressError
from gateway.cgi.variables import mount_variables
from gateway.cgi.warm.reuse import CATCHING, pool_command, recipes_below
from gateway.clients.settings import ClientSettings
from gateway.config.confine import Confiner, confined_pool
from gateway.config.errors import Mistake, Where
from gateway.config.keys import Document
from gateway.config.keys import Rewrite as RewriteKeys
from gateway.config.keys import Route as RouteKeys
from gateway.config.limits import read_value as _read
from gateway.config.limits import route_auth, route_limits, server_limits, timeouts
from gateway.config.limits import within as _within
from gateway.config.rules import (
    as_key,
    check_belonging,
    check_hosts,
    check_names,
    check_target,
    checked_env,
    checked_error_pages,
    checked_headers,
    workers,
)
from gateway.fastcgi.backend import resolve
from gateway.fastcgi.tokens import MOST
from gateway.http.limits import Limits
from gateway.limit_options import client_settings
from gateway.options import DEFAULT_LISTEN
from gateway.places import directory_trouble, installation_trouble, module_trouble, prefix_trouble, spool_trouble
from gateway.pools import check_pool, default_children
from gateway.privileges import for_account, for_worker
from gateway.settings import (
    CgiMount,
    FastCgiMount,
    FastCgiServer,
    KeyPair,
    Mount,
    Pool,
    Redirect,
    Rewrite,
    Route,
    Settings,
    SiteMount,
    StaticMount,
    Timeouts,
    Tls,
)
from gateway.tls.certificates import TlsError
from gateway.tls.options import VERIFY, VERSIONS, check, plain
from gateway.usage import UsageError

_METHOD = re.compile(r"[A-Z]+")
_EXTENSION = re.compile(r"\.[A-Za-z0-9_+-]+")
_SENT = (301, 302, 303, 307, 308)
# Keys of a pool that its manager is told by other means.
_NO_DIRECTIVES = ("command", "app", "listen", "max_children", "env")


def build(document: Document, directory: str, sockets: str) -> Settings:
    """Return the settings that a document stands for; raise Mistake.

    Paths in it begin at `directory`, the file's. Pools without an address of their own listen in `sockets`.
    """
    return _Builder(directory, sockets).settings(document)


class _Builder:
    def __init__(self, directory: str, sockets: str) -> None:
        self._directory = directory
        self._sockets = sockets
        self._pools: dict[str, Pool] = {}
        self._more: list[Pool] = []  # of scripts that are run again and again
        self._limits, self._times = Limits(), Timeouts()

    def settings(self, document: Document) -> Settings:
        """Return all of it."""
        server = document.server
        if not document.routes:
            raise Mistake(("routes",), 'nothing would be served; write [[routes]] with path = "/cgi-bin/", say')
        self._confiner = Confiner(server, self._path)
        self._limits, self._times = server_limits(server), timeouts(server)
        for name, table in document.pools.items():
            self._pools[name] = self._pool(("pools", name), name, table)
        routes = []
        authorizers = []
        for number, keys in enumerate(document.routes):
            where: Where = ("routes", number)
            routes.append(self._route(where, keys))
            if keys.authorizer:
                asked = self._server((*where, "authorizer"), keys.authorizer, routes[-1].prefix, 0)
                authorizers.append(FastCgiMount(routes[-1].prefix, asked, checked_env((*where, "env"), keys.env)))
        self._refuse_same(routes)
        account = self._confiner.account
        tls = self._tls(document)
        texts = server.listen if server.listen is not None else ([] if tls and tls.listen else [DEFAULT_LISTEN])
        listen = plain(self._listen(texts, is_needed=not (tls and tls.listen)), tls)
        return Settings(
            listen=listen,
            clients=self._clients(document, (*listen, *(tls.listen if tls else ()))),
            routes=tuple(routes),
            rewrites=tuple(_rewrite(("rewrites", at), rule) for at, rule in enumerate(document.rewrites)),
            https_port=_within(("server", "https_port"), server.https_port, 0, 65_535),
            pools=tuple(
                for_worker(pool, account)
                for pool in (
                    *(for_account(pool, account, server.no_new_privileges) for pool in self._pools.values()),
                    *self._more,
                )
            ),
            account=account,
            no_new_privileges=server.no_new_privileges,
            authorizers=tuple(authorizers),
            workers=workers(server.workers),
            http=_installed("http", server.http, ("auto", "httptools", "h11")),
            loop=_installed("loop", server.loop, ("auto", "uvloop", "asyncio")),
            debug=server.debug,
            access_log=server.access_log if server.access_log in ("-", "off") else self._path(server.access_log),
            error_log=server.error_log if server.error_log == "-" else self._path(server.error_log),
            log_format=_one_of(("server", "log_format"), server.log_format, ("combined", "json")),
            pid_file=self._path(server.pid_file) if server.pid_file else "",
            temp_dir=self._temp_dir(server.temp_dir),
            tls=tls,
            compress=server.compress,
            max_programs=_within(("server", "max_programs"), server.max_programs, 1, 999_999),
            timeouts=self._times,
            limits=self._limits,
            are_of_file=True,
        )

    def _listen(self, texts: list[str], *, is_needed: bool) -> list[Address]:
        found: list[Address] = []
        for at, text in enumerate(texts):
            address = _address(("server", "listen", at), self._whole(text))
            if address in found and (address.path or address.port):
                raise Mistake(("server", "listen", at), f"{text!r} is there twice; give each one once")
            found.append(address)
        if is_needed and not found:
            raise Mistake(("server", "listen"), "empty: nobody could come; without the key it is 127.0.0.1:8000, and "
                          "what systemd gives is served in any case")  # fmt: skip
        return found

    def _path(self, text: str) -> str:
        return os.path.normpath(os.path.join(self._directory, os.path.expanduser(text)))

    def _whole(self, text: str) -> str:
        """Return an address whose path, if it is one of a Unix socket, begins at the root."""
        kind, _, path = text.partition(":")
        return f"unix:{self._path(path)}" if kind == "unix" and path else text

    def _whole_pool(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pool's keys with whole paths: of its program where it is named by one, not found in PATH."""
        found = dict(table)
        for key, value in table.items():
            name = key_of(key)
            if name == "command" and isinstance(value, list) and value and "/" in str(value[0]):
                found[key] = [self._path(str(value[0])), *value[1:]]
            elif not isinstance(value, str) or not value:
                continue
            elif name in ("listen", "status_listen"):
                found[key] = self._whole(value)
            elif (
                (name == "python" and "/" in value)
                or (name == "slowlog" and value != "-")
                or (name == "chdir" and "chroot" not in table)
            ):
                found[key] = self._path(value)
        return found

    def _temp_dir(self, text: str) -> str:
        path = self._path(text) if text else ""
        if path and (trouble := spool_trouble(path)):
            raise Mistake(("server", "temp_dir"), f"{path}: {trouble}")
        return path

    def _tls(self, document: Document) -> Tls | None:
        keys = document.tls
        if not keys:
            return None
        given = [(keys.certificate, keys.key)] if keys.certificate else []
        given += [(pair.certificate, pair.key) for pair in keys.certificates]
        if not given or (keys.key and not keys.certificate):
            raise Mistake(("tls", "certificate"), "missing; name a PEM file")
        pairs = [KeyPair(self._path(one), self._path(key or one)) for one, key in given]
        listen = [_address(("tls", "listen", at), text) for at, text in enumerate(keys.listen)]
        for at, address in enumerate(listen):
            if address.path:
                raise Mistake(("tls", "listen", at), f"{address}: TLS is for TCP; write HOST:PORT")
        tls = Tls(
            tuple(pairs),
            tuple(listen),
            _one_of(("tls", "minimum"), keys.minimum, VERSIONS),
            self._path(keys.client_ca) if keys.client_ca else "",
            _one_of(("tls", "verify_client"), keys.verify_client, VERIFY),
        )
        try:
            check(tls)
        except TlsError as error:
            first = bool(keys.certificate)
            more: Where = ("certificates", error.number - first) if error.number >= first else ()
            is_pair = error.field in ("certificate", "key")
            raise Mistake(("tls", *(more if is_pair else ()), error.field), str(error)) from None
        return tls

    def _clients(self, document: Document, listen: tuple[Address, ...]) -> ClientSettings:
        keys = document.clients
        texts = {
            name: str(getattr(keys, name) or "")
            for name in (
                "limit_rate", "limit_connections", "limit_status", "max_connections", "max_handshakes",
                "min_body_rate", "min_send_rate", "real_ip_header", "auth_realm",
            )
        }  # fmt: skip
        if keys.limit_status not in (429, 503):
            raise Mistake(("clients", "limit_status"), f"{keys.limit_status}: write 429 or 503")
        window = _read(("clients", "rate_window"), seconds, keys.rate_window)
        auth = [f"{prefix}={self._path(file)}" for prefix, file in keys.auth.items()]
        options = argparse.Namespace(
            **texts, rate_window=f"{window:g}", real_ip=keys.real_ip, auth=auth, exempt=keys.exempt,
            proxy_protocol=[self._whole(text) if "=" in text else text for text in keys.proxy_protocol],
        )  # fmt: skip
        try:
            return client_settings(options, listen, _checked_prefix)
        except UsageError as error:
            # The options have the keys' names.
            found = re.match(r"--([a-z-]+)(?: (.*?))?: (.*)", str(error), re.DOTALL)
            assert found
            value = f"{found[2]}: " if found[2] else ""
            words = re.sub(r"--([a-z-]+)( [0-9])?", as_key, found[3])
            raise Mistake(("clients", found[1].replace("-", "_")), value + words) from None

    # -- pools

    def _pool(self, where: Where, name: str, table: Mapping[str, Any]) -> Pool:
        table = self._whole_pool(table)
        try:
            config = read_pool(name, table)
        except ConfigError as error:
            raise _mistake_of_pool(where, error) from None
        if config.max_children > MOST:
            raise Mistake((*where, "max_children"), f"{config.max_children}: at most {MOST} for one pool")
        path = os.path.join(self._sockets, f"{len(self._pools)}-{name[:32]}.sock")
        address = config.listen or Address(path=path)
        directives = [
            f"{key_of(key)}={_plain(value)}" for key, value in flattened(table) if key_of(key) not in _NO_DIRECTIVES
        ]
        if config.pm == "dynamic" and "pm" not in map(key_of, table):
            directives.append("pm=dynamic")
        server = FastCgiServer(name, address, config.max_children)
        env = tuple(config.env.items())
        return self._checked(where, Pool(server, config.command, env, tuple(directives), config.app))

    def _checked(self, where: Where, pool: Pool) -> Pool:
        try:
            check_pool(pool)
        except ConfigError as error:
            raise _mistake_of_pool(where, error) from None
        return pool

    # -- routes

    def _route(self, where: Where, keys: RouteKeys) -> Route:
        prefix = keys.path if keys.path.endswith("/") else keys.path + "/"
        if trouble := prefix_trouble(prefix):
            raise Mistake((*where, "path"), f"{trouble}; write, say, /cgi-bin/")
        check_hosts((*where, "hosts"), keys.hosts)
        for at, method in enumerate(keys.methods):
            if not _METHOD.fullmatch(method):
                raise Mistake((*where, "methods", at), f"{method!r} is no method; write, say, GET")
        return Route(
            prefix,
            self._mount(where, prefix, keys),
            _redirect(where, keys),
            tuple(keys.hosts),
            tuple(keys.methods),
            keys.internal,
            self._try_files(where, keys),
            checked_headers((*where, "headers"), keys.headers),
            checked_error_pages((*where, "error_pages"), keys.error_pages),
            self._existing((*where, "sendfile_root"), keys.sendfile_root) if keys.sendfile_root else "",
            route_limits(where, keys, self._limits, self._times),
            route_auth(where, keys, prefix, self._path(keys.auth)),
        )

    def _mount(self, where: Where, prefix: str, keys: RouteKeys) -> Mount | None:
        answers = [name for name in ("cgi", "root", "fastcgi", "redirect") if getattr(keys, name)]
        if not answers:
            raise Mistake(where, "what answers is missing; write cgi, root, fastcgi or redirect")
        if len(answers) > 1 and answers != ["root", "fastcgi"]:
            raise Mistake((*where, answers[1]), f"{answers[0]} answers already; keep one of them")
        check_belonging(where, keys)
        check_names((*where, "index"), keys.index)
        env = checked_env((*where, "env"), keys.env)
        if keys.cgi:
            return self._cgi(where, prefix, keys, env)
        if keys.redirect:
            return None
        if keys.listing and not (keys.root and not keys.fastcgi):
            raise Mistake((*where, "listing"), "goes with root alone")
        if not keys.fastcgi:
            return self._static(where, prefix, keys)
        server = self._server((*where, "fastcgi"), keys.fastcgi, prefix, keys.connections)
        if not keys.root:
            if keys.extensions:
                raise Mistake((*where, "extensions"), "goes with root: without it the whole prefix is one application")
            return FastCgiMount(prefix, server, env, keys.pass_authorization, keys.stream_body)
        if not keys.extensions:
            raise Mistake((*where, "extensions"), 'missing: which files does fastcgi run? write, say, [".php"]')
        for at, extension in enumerate(keys.extensions):
            if not _EXTENSION.fullmatch(extension):
                raise Mistake((*where, "extensions", at), f"{extension!r} is none; write, say, .php")
        root = self._existing((*where, "root"), keys.root)
        index, extensions = tuple(keys.index or ("index.php", "index.html")), tuple(keys.extensions)
        return SiteMount(
            prefix, root, server, extensions, index, env, keys.follow_links, keys.pass_authorization,
            keys.stream_body,
        )  # fmt: skip

    def _static(self, where: Where, prefix: str, keys: RouteKeys) -> StaticMount:
        if keys.extensions:
            raise Mistake((*where, "extensions"), "goes with fastcgi, which runs those files")
        root = self._existing((*where, "root"), keys.root)
        return StaticMount(prefix, root, tuple(keys.index or ("index.html",)), keys.follow_links, keys.listing)

    def _existing(self, where: Where, text: str) -> str:
        path = self._path(text)
        if trouble := directory_trouble(path):
            raise Mistake(where, trouble)
        return path

    def _cgi(self, where: Where, prefix: str, keys: RouteKeys, env: tuple[tuple[str, str], ...]) -> CgiMount:
        warm = {True: "warm", False: "", "warm": "warm", "require": "require", "reuse": "reuse"}.get(keys.warm)
        if warm is None:
            raise Mistake((*where, "warm"), f'{keys.warm!r}: write true, "require" or "reuse"')
        if keys.stream_body and warm == "reuse":
            raise Mistake((*where, "stream_body"), "does not go with reuse, where a body is there before a script")
        if keys.preload and not warm:
            raise Mistake((*where, "preload"), "goes with warm, which keeps interpreters that have modules ready")
        for at, module in enumerate(keys.preload):
            if trouble := module_trouble(module):
                raise Mistake((*where, "preload", at), f"{module!r}: {trouble}")
        mount = CgiMount(
            prefix,
            self._existing((*where, "cgi"), keys.cgi),
            env,
            keys.follow_links,
            keys.pass_authorization,
            keys.kill_group,
            warm,
            tuple(keys.preload),
            stream_body=keys.stream_body,
            confinement=self._confiner.of(where, keys),
        )
        return replace(mount, reuse=self._reuse(where, mount)) if warm == "reuse" else mount

    def _reuse(self, where: Where, mount: CgiMount) -> tuple[Any, ...]:
        """Add the pools that run a directory's scripts; return which runs those of which interpreter."""
        found = []
        for recipe in recipes_below(mount.directory, mount_variables(b"", mount.env).get(b"PATH", b"")):
            name = f"{mount.prefix.strip('/').replace('/', '-') or 'root'}-{len(self._more) + 1}"
            path = os.path.join(self._sockets, f"reuse-{len(self._more)}.sock")
            command = tuple(pool_command(recipe))
            server = FastCgiServer(name, Address(path=path), default_children())
            pool = confined_pool(where, Pool(server, command, mount.env, CATCHING), mount.confinement)
            pool = for_account(pool, mount.confinement.account, mount.confinement.no_new_privileges)
            self._more.append(self._checked(where, pool))
            found.append((recipe, server))
        return tuple(found)

    def _server(self, where: Where, text: str, name: str, connections: int) -> FastCgiServer:
        kind, _, rest = text.partition(":")
        if kind == "pool":
            if rest not in self._pools:
                known = ", ".join(self._pools) or "none"
                raise Mistake(where, f"there is no pool {rest!r}; there are: {known}")
            if connections:
                raise Mistake((*where[:-1], "connections"), "goes with a server that is no pool of ours")
            return self._pools[rest].server
        if kind not in ("unix", "tcp"):
            raise Mistake(where, f"{text!r} is no address; write pool:NAME, unix:PATH or tcp:HOST:PORT")
        address = _address(where, self._whole(text))
        try:
            resolve(address)
        except OSError as error:
            raise Mistake(where, f"the host is not known ({error.strerror})") from None
        return FastCgiServer(name, address, _within((*where[:-1], "connections"), connections, 0, MOST))

    def _try_files(self, where: Where, keys: RouteKeys) -> tuple[str, ...]:
        where = (*where, "try_files")
        if not keys.try_files:
            return ()
        if not (keys.root or keys.cgi):
            raise Mistake(where, "goes with root or cgi: where else would the files be?")
        *candidates, last = keys.try_files
        for at, candidate in enumerate(candidates):
            if not re.match(r"/|\$path(?!\w)", candidate) or ".." in candidate.split("/"):
                raise Mistake((*where, at), f"{candidate!r}: write $path, $path/, $path.html, or a path from the root")
        if not re.fullmatch(r"=[45][0-9]{2}|/.*", last):
            raise Mistake((*where, len(candidates)), f"{last!r}: the last is a path of the server, or =404")
        if last.startswith("/"):
            check_target((*where, len(candidates)), last)
        return tuple(keys.try_files)

    def _refuse_same(self, routes: Iterable[Route]) -> None:
        seen: dict[tuple[str, tuple[str, ...], tuple[str, ...]], int] = {}
        for number, route in enumerate(routes):
            for host in route.hosts or ("",):
                for method in route.methods or ("",):
                    key = route.prefix, (host.lower(),), (method,)
                    if seen.get(key, number) != number:
                        raise Mistake(
                            ("routes", number, "path"), f"the same as of routes[{seen[key] + 1}], which always wins"
                        )
                    seen[key] = number


def _checked_prefix(option: str, text: str, prefix: str, _: str) -> str:
    prefix = prefix if prefix.endswith("/") else prefix + "/"
    if trouble := prefix_trouble(prefix):
        raise UsageError(f"{option} {text}: {trouble}")
    return prefix


def _mistake_of_pool(where: Where, error: ConfigError) -> Mistake:
    """Return what the pool's own reader says, without the place that it names."""
    place, _, words = str(error).partition(": ")
    key = place.split(" = ")[0].removeprefix(f"pools.{where[1]}").strip(".")
    value = f"{place.partition(' = ')[2]}: " if " = " in place else ""
    return Mistake((*where, *key.split(".")) if key else where, value + words)


def _redirect(where: Where, keys: RouteKeys) -> Redirect | None:
    if not keys.redirect:
        return None
    if keys.redirect.status not in _SENT:
        raise Mistake((*where, "redirect", "status"), f"{keys.redirect.status}: write 301, 302, 303, 307 or 308")
    return Redirect(check_target((*where, "redirect", "to"), keys.redirect.to), keys.redirect.status)


def _rewrite(where: Where, keys: RewriteKeys) -> Rewrite:
    check_hosts((*where, "hosts"), keys.hosts)
    try:
        groups = re.compile(keys.match).groups
    except re.error as error:
        raise Mistake((*where, "match"), f"no regular expression: {error}") from None
    if keys.status not in (0, *_SENT):
        raise Mistake((*where, "status"), f"{keys.status}: write 0, 301, 302, 303, 307 or 308")
    if not keys.status and not keys.to.startswith("/"):
        raise Mistake((*where, "to"), f"{keys.to!r}: within the server it is a path; for another place give a status")
    return Rewrite(keys.match, check_target((*where, "to"), keys.to, groups), tuple(keys.hosts), keys.status)


def _address(where: Where, text: str) -> Address:
    try:
        return Address.parse(text.removeprefix("tcp:"))
    except AddressError as error:
        raise Mistake(where, f"{text!r}: {error}") from None


def _one_of(where: Where, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise Mistake(where, f"{value!r}: one of {', '.join(choices)}")
    return value


def _installed(name: str, value: str, choices: tuple[str, ...]) -> str:
    where: Where = ("server", name)
    _one_of(where, value, choices)
    if trouble := installation_trouble(name, value):
        raise Mistake(where, trouble)
    return value


def _plain(value: object) -> str:
    """Return a pool's value as its command line takes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

