"""From a document's keys to limits: the server's, and what a route has in place of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fcgi_pool.config import seconds, size
from gateway.clients.settings import BasicAuth, RateLimit
from gateway.config.errors import Mistake, Where
from gateway.config.keys import Route as RouteKeys
from gateway.config.keys import Server as ServerKeys
from gateway.http.limits import Limits
from gateway.limit_options import check_passwords, check_realm, read_rate
from gateway.settings import RouteLimits, Timeouts

_Value = TypeVar("_Value")

# A head that is larger is an attack, and each connection may hold one; nginx takes 32 KiB in all.
_LARGEST_HEAD = 1024 * 1024
_OF_ROUTES = ("body", "send", "script", "queue")


def read_value(where: Where, reader: Callable[[Any], _Value], value: object) -> _Value:
    """Return what `reader` makes of a value; raise Mistake."""
    try:
        return reader(value)
    except ValueError as error:
        raise Mistake(where, f"{value!r} is not {error}") from None


def within(where: Where, value: int, low: int, high: int) -> int:
    """Return a number from `low` to `high`; raise Mistake."""
    if not low <= value <= high:
        raise Mistake(where, f"{value}: a number from {low} to {high}")
    return value


def server_limits(keys: ServerKeys) -> Limits:
    """Return how much of a request is read."""
    head = _size(("server", "max_header_size"), keys.max_header_size)
    line = _size(("server", "max_request_line"), keys.max_request_line)
    return Limits(
        request_line=min(line, head),
        head=head,
        fields=within(("server", "max_headers"), keys.max_headers, 1, 10_000),
        body=read_value(("server", "max_body"), size, keys.max_body),
    )


def timeouts(keys: ServerKeys) -> Timeouts:
    """Return the server's times."""
    names = ("header", "body", "send", "keepalive", "handshake", "script", "queue", "kill", "stop")
    return Timeouts(**{name: _time(("server", f"{name}_timeout"), getattr(keys, f"{name}_timeout")) for name in names})


def route_limits(where: Where, keys: RouteKeys, server: Limits, times: Timeouts) -> RouteLimits | None:
    """Return what a route has in place of the limits of `server`, and of its `times`; None for nothing."""
    own = {
        name: _time((*where, f"{name}_timeout"), given)
        for name in _OF_ROUTES
        if (given := getattr(keys, f"{name}_timeout")) is not None
    }
    rate = _rate((*where, "limit_rate"), keys.limit_rate) if keys.limit_rate else None
    connections = within((*where, "limit_connections"), keys.limit_connections, 0, 999_999)
    if not (own or rate or connections) and keys.max_body is None:
        return None
    body = server.body if keys.max_body is None else read_value((*where, "max_body"), size, keys.max_body)
    shared = {name: getattr(times, name) for name in _OF_ROUTES}
    return RouteLimits(body, **(shared | own), rate=rate, connections=connections)


def route_auth(where: Where, keys: RouteKeys, prefix: str, file: str) -> BasicAuth | None:
    """Return who may ask for what is at a route, by the passwords in `file`, a whole path."""
    if not keys.auth:
        return None
    for key, check, value in (("auth", check_passwords, file), ("auth_realm", check_realm, keys.auth_realm)):
        try:
            check(value)
        except ValueError as error:
            raise Mistake((*where, key), f"{getattr(keys, key)}: {error}") from None
    return BasicAuth(prefix, file, keys.auth_realm)


def _size(where: Where, value: object) -> int:
    return within(where, read_value(where, size, value), 256, _LARGEST_HEAD)


def _time(where: Where, value: object) -> float:
    found = read_value(where, seconds, value)
    if not found:
        raise Mistake(where, "a time above 0; every wait has its end")
    return found


def _rate(where: Where, text: str) -> RateLimit:
    try:
        return read_rate(text)
    except ValueError as error:
        raise Mistake(where, f"{text}: {error}") from None
