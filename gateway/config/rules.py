"""What goes together in a configuration file, and what only looks as if: a key without effect is a mistake."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from gateway.config.errors import Mistake, Where
from gateway.config.keys import Route
from gateway.config.limits import within

_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]")
_FIELD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\$(\w+)")
# Said of a request whose head cannot be taken, or that is broken off.
_EARLY = frozenset((400, 408, 414, 417, 431, 505))
_VARIABLES = ("host", "uri", "path")

_CGI, _PROGRAMS = frozenset(("cgi",)), frozenset(("cgi", "fastcgi"))
# Keys of a route that say what its programs may do; a pool has its own.
_CONFINES = ("user", "group", "no_new_privileges", "limits", "landlock", "cgroup")
# Keys of a route that have an effect with some of its answers alone, and those answers.
_BELONGING = {
    "warm": _CGI,
    "preload": _CGI,
    "kill_group": _CGI,
    **dict.fromkeys(_CONFINES, _CGI),
    "extensions": frozenset(("root", "fastcgi")),  # whose own rules follow
    "index": frozenset(("root",)),
    "listing": frozenset(("root",)),
    "connections": frozenset(("fastcgi",)),
    "env": frozenset(("cgi", "fastcgi", "authorizer")),
    "pass_authorization": _PROGRAMS,
    "stream_body": _PROGRAMS,
    "sendfile_root": _PROGRAMS,
    "follow_links": frozenset(("cgi", "root")),
}
_UNSET = Route(path="/")


def check_belonging(where: Where, keys: Route) -> None:
    """Raise Mistake for a key that has no effect beside what answers the route."""
    there = {name for name in ("cgi", "root", "fastcgi", "redirect", "authorizer") if getattr(keys, name)}
    for name, answers in _BELONGING.items():
        if getattr(keys, name) != getattr(_UNSET, name) and not there & answers:
            elsewhere = "; a pool has its own, in its table" if name in _CONFINES and keys.fastcgi else ""
            words = f"goes with {' or '.join(sorted(answers))}, and has no effect here{elsewhere}"
            raise Mistake((*where, name), words)


def check_hosts(where: Where, hosts: Sequence[str]) -> None:
    """Raise Mistake for what is no name of a host."""
    for at, host in enumerate(hosts):
        if not _HOST.fullmatch(host):
            raise Mistake((*where, at), f"{host!r} is no name of a host; write, say, {_host_like(host)}")


def _host_like(text: str) -> str:
    """Return the name that was probably meant."""
    name = re.sub(r":[0-9]+$", "", text.rstrip("."))
    try:
        name = name.encode("idna").decode()
    except UnicodeError:
        return "www.example.org"
    return name if _HOST.fullmatch(name) else "www.example.org"


def check_target(where: Where, text: str, groups: int = 0) -> str:
    """Return the target of a redirect or rewrite whose expression has so many `groups`; raise Mistake."""
    if not text or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise Mistake(where, f"{text!r}: a path or URL, its special characters as %XX")
    for name in _VARIABLE.findall(text):
        if name.startswith(_VARIABLES):
            continue
        if not re.match("[1-9]", name):
            raise Mistake(where, f"there is no ${name}; there are $host, $uri, $path, and with match $1 to $9")
        if int(name[0]) > groups:
            raise Mistake(where, f"${name[0]}: the groups of match end at {groups}")
    return text


def check_names(where: Where, names: Sequence[str]) -> None:
    """Raise Mistake for what is no name of a file in a directory."""
    for at, name in enumerate(names):
        if not name or "/" in name or name in (".", ".."):
            raise Mistake((*where, at), f"{name!r}: the name of a file, without a slash; write, say, index.html")


def checked_headers(where: Where, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the fields of a response of a table; raise Mistake."""
    for name, value in headers.items():
        if not _FIELD.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise Mistake((*where, name), "no field of a response: a name, and a value without line ends")
        if name.lower() in ("content-length", "transfer-encoding", "connection", "date"):
            raise Mistake((*where, name), "is the server's own to say")
    return tuple(headers.items())


def checked_error_pages(where: Where, pages: Mapping[str, str]) -> tuple[tuple[int, str], ...]:
    """Return the statuses and paths of a table; raise Mistake."""
    for status, path in pages.items():
        if not re.fullmatch(r"[45][0-9]{2}", status):
            raise Mistake((*where, status), "an error is from 400 to 599")
        if int(status) in _EARLY:
            raise Mistake((*where, status), "is answered before there is a route, and has no effect here")
        if not path.startswith("/"):
            raise Mistake((*where, status), f"{path!r}: a path of this server, as /errors/404.html")
    return tuple((int(status), path) for status, path in pages.items())


def checked_env(where: Where, env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the variables of a table; raise Mistake."""
    for name in env:
        if not _NAME.fullmatch(name):
            raise Mistake((*where, name), "no name of a variable")
    return tuple(env.items())


def workers(count: int | None) -> int:
    """Return how many front workers there are; raise Mistake."""
    count = len(os.sched_getaffinity(0)) if count is None else count
    return within(("server", "workers"), count, 1, 1024)


def as_key(option: re.Match[str]) -> str:
    """Return an option that a message names as the key of the file."""
    return option[1].replace("-", "_") + (f" ={option[2]}" if option[2] else "")
