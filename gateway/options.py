"""The options of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from gateway import __version__
from gateway.limit_options import add_limit_options
from gateway.tls.options import add_tls_options
from gateway.usage import UsageError

DEFAULT_PREFIX = "/cgi-bin/"
DEFAULT_LISTEN = "127.0.0.1:8000"

_Add = Callable[..., Any]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see python -m gateway --help")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; it raises UsageError."""
    parser = _Parser(
        prog="python -m gateway",
        description="Serves programs over HTTP: CGI, a process for each request, and FastCGI, a pool of processes.",
        epilog="Example: python -m gateway --cgi-dir cgi-bin",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"gateway {__version__}")
    add("--cgi-dir", action="append", default=[], metavar="[PREFIX=]DIR",
        help=f"serve the programs in DIR below PREFIX (default {DEFAULT_PREFIX}); repeatable")  # fmt: skip
    add("--static", action="append", default=[], metavar="[PREFIX=]DIR",
        help="serve the files in DIR as they are below PREFIX (default /); repeatable")  # fmt: skip
    add("--listing", action="store_true", help="with --static: list what is in a directory that has no index.html")
    add("--fastcgi", action="append", default=[], metavar="PREFIX=ADDRESS",
        help="serve below PREFIX by the FastCGI server at unix:PATH or tcp:HOST:PORT; repeatable")  # fmt: skip
    add("--pool", action="append", default=[], metavar="PREFIX=COMMAND",
        help="the same, and start COMMAND, any FastCGI program, as a pool of processes; repeatable")  # fmt: skip
    add("--php", action="append", default=[], metavar="[PREFIX=]DIR",
        help="serve a PHP site: *.php in DIR by a pool of php-cgi, other files as they are; repeatable")  # fmt: skip
    add("--authorizer", action="append", default=[], metavar="PREFIX=ADDRESS",
        help="ask the FastCGI Authorizer at ADDRESS before anything below PREFIX is served; repeatable")  # fmt: skip
    add("--listen", action="append", default=[], metavar="ADDRESS",
        help=f"HOST:PORT, [::1]:PORT or unix:PATH; repeatable (default {DEFAULT_LISTEN})")  # fmt: skip
    add("--workers", metavar="N", default="", help="front workers (default: number of CPUs)")
    add("--config", metavar="FILE", default="", help="TOML, see docs/configuration.rst, in place of all other options")
    add("--print-config", action="store_true", help="show the whole configuration, defaults included; serve nothing")
    add("--check", action="store_true", help="say what would be served, and what would fail; serve nothing")
    add("--run", action="store_true", help="with --check: start each program and pool once, and say what fails")
    _add_programs(parser.add_argument_group("programs").add_argument)
    _add_fastcgi(parser.add_argument_group("FastCGI").add_argument)
    _add_clients(parser.add_argument_group("clients").add_argument)
    add_tls_options(parser.add_argument_group("TLS").add_argument)
    add_limit_options(parser.add_argument_group("limits").add_argument)
    _add_logs(parser.add_argument_group("logs and files").add_argument)
    _add_internals(parser.add_argument_group("internals").add_argument)
    return parser


def _add_programs(add: _Add) -> None:
    add("--warm", nargs="?", const="warm", default="", choices=("warm", "require", "reuse"),
        help="run scripts of Python and Perl from interpreters that have started already; "
        "'require': refuse those that cannot be; 'reuse': run those of Python again and again in one process, "
        "which they must be written for")  # fmt: skip
    add("--preload", action="append", default=[], metavar="MODULE",
        help="with --warm: import this module ahead, too, which is not the interpreter's own; repeatable")  # fmt: skip
    add("--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="give every program this variable; without VALUE, the server's own")  # fmt: skip
    add("--script-timeout", metavar="SECONDS", help="longest silence of a program (default 60)")
    add("--queue-timeout", metavar="SECONDS", help="longest wait for a place to be served in (default 30)")
    add("--kill-timeout", metavar="SECONDS", help="from TERM to KILL for a program that is ended (default 3)")
    add("--max-programs", metavar="N", default="256", help="programs at once, per worker (default 256); more wait")
    add("--kill-group", action="store_true", help="when a program ends, end what it left in its process group")
    add("--follow-links", action=argparse.BooleanOptionalAction, default=True,
        help="follow symbolic links below a directory of programs or files (default: yes)")  # fmt: skip


def _add_fastcgi(add: _Add) -> None:
    add("--php-server", metavar="ADDRESS", default="",
        help="run the *.php of --php by the server at ADDRESS, php-fpm say, and not by a pool of our own")  # fmt: skip
    add("--children", metavar="N", help="processes of each pool (default: two for each CPU, at least 4)")
    add("--pool-set", action="append", default=[], metavar="KEY=VALUE",
        help="give each pool this directive, as max_requests=500 (docs/fastcgi.rst has them); repeatable")  # fmt: skip
    add("--connections", metavar="N",
        help="connections that such a server can serve at once (default: not known, one a request)")  # fmt: skip


def _add_clients(add: _Add) -> None:
    add("--compress", action="store_true", help="send text that programs write in gzip, or br and zstd if installed")
    add("--max-body", metavar="SIZE", default="2G", help="largest body of a request, as 512K, 16M, 2G (default 2G)")
    add("--header-timeout", metavar="SECONDS", help="a request's head must be complete within (default 20)")
    add("--body-timeout", metavar="SECONDS", help="longest stall of a request's body (default 60)")
    add("--send-timeout", metavar="SECONDS", help="longest time a client takes nothing (default 60)")
    add("--handshake-timeout", metavar="SECONDS", help="a TLS handshake must be done within (default 20)")
    add("--keepalive-timeout", metavar="SECONDS", help="longest pause between two requests (default 75)")


def _add_logs(add: _Add) -> None:
    add("--debug", action="store_true", help="explain errors to the client, too: not for the public")
    add("--access-log", metavar="PATH", default="-", help="a path, - for standard output, or off (default -)")
    add("--error-log", metavar="PATH", default="-", help="a path, or - for standard error (default -)")
    add("--log-format", choices=("combined", "json"), default="combined", help="of the access log")
    add("--user", metavar="USER", default="", help="whom workers and programs run as, if started by root")
    add("--group", metavar="GROUP", default="", help="and with which group (default: the user's)")
    add("--pid-file", metavar="PATH", default="", help="holds the master's pid while it serves")
    add("--temp-dir", metavar="DIR", default="", help="for large bodies (default: the system's, see TMPDIR)")


def _add_internals(add: _Add) -> None:
    add("--stop-timeout", metavar="SECONDS", help="QUIT waits so long for what is under way (default 30)")
    add("--http", choices=("auto", "h11", "httptools"), default="auto", help="who reads requests")
    add("--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="the event loop")
