"""From a command line and an environment to a worker that serves.

The environment, set by the manager and not passed on to the application:
FCGI_POOL_SCOREBOARD ``DESCRIPTOR:SLOT``, where to write what the worker does;
FCGI_POOL_MAX_REQUESTS, after how many requests it ends;
FCGI_POOL_HANDOVER ``DESCRIPTOR:DESCRIPTOR``, the line of connections to and from the other workers;
FCGI_POOL_TRACE ``SIGNAL:DESCRIPTOR``, on which signal it writes its stack, and where to.
FCGI_WEB_SERVER_ADDRS (section 3.2) says which web servers may connect over TCP; it stays.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcgi_pool.handover import Handover
from fcgi_pool.runtime import wsgi
from fcgi_pool.runtime.worker import Worker
from fcgi_pool.scoreboard import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fcgi_pool.runtime.connection import Connection

LISTENER = 0
# scripts: CGI scripts in Python, those that requests name
RUNNERS = ("own", "flup-threaded", "flup-forked", "scripts")
USAGE = (
    "usage: fcgi_pool.runtime [--runner own|flup-threaded|flup-forked] [--chdir DIR] [--threads N] [--children N] "
    "MODULE:CALLABLE | --runner scripts"
)

_DEFAULT_CALLABLE = "application"


class UsageError(ValueError):
    """A command line, environment or application that cannot be run; the text says what is wrong."""


@dataclass
class Options:
    """What the command line says. `threads` and `children` are how many flup's servers use."""

    application: str = ""
    runner: str = "own"
    chdir: str = ""
    threads: int = 10
    children: int = 1


def read_options(arguments: Sequence[str]) -> Options:
    """Return the options of a command line; raise UsageError."""
    options = Options()
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            if options.application:
                raise UsageError(f"two applications, {options.application} and {argument}; {USAGE}")
            options.application = argument
            continue
        if name not in ("--runner", "--chdir", "--threads", "--children"):
            raise UsageError(f"unknown option {name}; {USAGE}")
        if not equals:
            if not left:
                raise UsageError(f"{name} needs a value; {USAGE}")
            value = left.pop(0)
        if name in ("--threads", "--children"):
            setattr(options, name[2:], _count(name, value))
        else:
            setattr(options, name[2:], value)
    if options.runner not in RUNNERS:
        raise UsageError(f"unknown runner {options.runner!r}; write one of {', '.join(RUNNERS)}")
    if not options.application and options.runner != "scripts":
        raise UsageError(f"the application is missing; {USAGE}")
    return options


def load_application(name: str) -> Callable[..., Any]:
    """Return what ``MODULE:CALLABLE`` names; raise UsageError, or what the module raises while it is imported."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the module that was named; one that it imports itself is the application's own trouble.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UsageError(f"there is no module {error.name!r} (for the application {name}) in {_directory()}") from None
    for attribute in (path or _DEFAULT_CALLABLE).split("."):
        if not hasattr(found, attribute):
            raise UsageError(f"the module {module_name!r} has no {path or _DEFAULT_CALLABLE!r}")
        found = getattr(found, attribute)
    if not callable(found):
        raise UsageError(f"{name} is not callable; a WSGI application is called for each request")
    return found  # type: ignore[no-any-return]


def main(arguments: Sequence[str]) -> int:
    """Serve until told to end; return the exit status: 0, or 2 for a mistake that is told in one line."""
    try:
        options = read_options(arguments)
        if options.chdir:
            _change_directory(options.chdir)
        sys.path.insert(0, os.getcwd())
        _arm_trace(os.environ.pop("FCGI_POOL_TRACE", ""))
        max_requests = _count("FCGI_POOL_MAX_REQUESTS", os.environ.pop("FCGI_POOL_MAX_REQUESTS", "0"))
        scoreboard = os.environ.pop("FCGI_POOL_SCOREBOARD", "")
        handover = os.environ.pop("FCGI_POOL_HANDOVER", "")
        _check_listener()
        if options.runner in ("own", "scripts"):
            return _serve(options, max_requests, scoreboard, handover)
        return _serve_by_flup(options, max_requests)
    except UsageError as error:
        sys.stderr.write(f"fcgi_pool.runtime: {error}\n")
        return 2


def _serve(options: Options, max_requests: int, scoreboard: str, handover: str) -> int:
    listener = _take_listener()
    respond: Callable[[dict[str, Any], Connection], bool]
    if options.runner == "scripts":
        from fcgi_pool.runtime.scripts import Scripts  # noqa: PLC0415

        respond = Scripts().respond
    else:
        respond = functools.partial(wsgi.respond, load_application(options.application))
    # What the application has built up stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    with listener:
        slot, line = _slot(scoreboard), _handover(handover)
        Worker(listener, respond, slot, max_requests, _allowed_addresses(), line).run()
    return 0


def _serve_by_flup(options: Options, max_requests: int) -> int:
    try:
        from fcgi_pool.runtime import flup_runner  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"the runner {options.runner} needs flup, which {sys.executable} lacks ({error})") from None
    application = load_application(options.application)
    if options.runner == "flup-threaded":
        return flup_runner.run_threaded(application, options.threads)
    return flup_runner.run_forked(application, options.children, max_requests)


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise UsageError(f"{name} is {value!r}; write a number")
    return int(value)


def _directory() -> str:
    return f"{os.getcwd()} and what {sys.executable} has installed"


def _change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise UsageError(f"cannot change to the directory {path}: {error.strerror}") from None


def _check_listener() -> None:
    """Raise UsageError unless descriptor 0 is a socket that listens (section 2.2)."""
    try:
        probe = socket.socket(fileno=os.dup(LISTENER))
    except OSError:
        raise UsageError("descriptor 0 is no socket; a FastCGI program is started by a pool or a web server") from None
    with probe:
        if not probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UsageError("the socket at descriptor 0 does not listen")


def _take_listener() -> socket.socket:
    """Return the listening socket under a number of its own, and leave the null device at descriptor 0.

    A program that the application starts inherits descriptor 0, and would keep the socket open after the pool.
    """
    listener = socket.socket(fileno=os.dup(LISTENER))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, LISTENER)
    os.close(null)
    return listener


def _slot(value: str) -> Slot | None:
    if not value:
        return None
    try:
        slot = Slot.from_environment(value)
        os.close(int(value.partition(":")[0]))
    except (ValueError, OSError) as error:
        raise UsageError(f"FCGI_POOL_SCOREBOARD is {value!r}: {error}") from None
    return slot


def _handover(value: str) -> Handover | None:
    try:
        return Handover.from_environment(value) if value else None
    except (ValueError, OSError) as error:
        raise UsageError(f"FCGI_POOL_HANDOVER is {value!r}: {error}") from None


def _arm_trace(value: str) -> None:
    """Let a signal write the stacks of all threads to a file: for the slow log, also while the interpreter is stuck."""
    if not value:
        return
    try:
        number, descriptor = map(int, value.split(":"))
        os.set_inheritable(descriptor, False)
        faulthandler.register(number, file=descriptor, all_threads=True, chain=False)
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(f"FCGI_POOL_TRACE is {value!r}: {error}") from None


def _allowed_addresses() -> frozenset[str] | None:
    value = os.environ.get("FCGI_WEB_SERVER_ADDRS", "")
    return frozenset(address.strip() for address in value.split(",")) if value.strip() else None
