"""Which route a request takes: by host, longest prefix and method; and what holds around its answer. No I/O.

A route without hosts is for all of them. Of those that match, the longest prefix wins, then the closest host: its own
name, then the longest wildcard, then none. Of routes that have all this in common, the first whose method it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from urllib.parse import quote_from_bytes

from gateway.clients.settings import RateLimit
from gateway.http.message import Request
from gateway.http.response import Start, with_fields
from gateway.routing import BadPath, Match, Router, normalise
from gateway.settings import Rewrite, Route, Settings, Timeouts

if TYPE_CHECKING:
    from gateway.exchange import Exchange

Handler = TypeVar("Handler")

# Hosts of which it is remembered what routes they have; names are the client's to make up.
_HOSTS = 256
# Paths of which it is remembered which rule rewrites them.
_PATHS = 256
# Heads whose edited form is kept.
_HEADS = 256
_VARIABLE = re.compile(r"\$(host|uri|path|[1-9])")
# In a path, besides what is unreserved (RFC 3986 section 3.3).
_SAFE = "/!$&'()*+,;=:@~"


class Guard(Protocol):
    """What stands before all that is below a prefix, or before a route."""

    def ask(self, exchange: Exchange, redirects: int) -> None:
        """Have `exchange` granted and routed anew, or answer it."""


@dataclass(slots=True)
class Policy:
    """What holds around the answers of a route: fields, error pages, where X-Sendfile may lead to."""

    headers: tuple[tuple[bytes, bytes], ...] = ()
    error_pages: dict[int, bytes] = field(default_factory=dict)
    sendfile_root: bytes = b""
    _edited: dict[bytes, Start] = field(default_factory=dict)

    def edit(self, start: Start) -> Start:
        """Return the first lines of a head with the route's fields: added, in place of the program's, or taken away."""
        if not self.headers:
            return start
        edited = self._edited.get(start.lines)
        if edited is None:
            if len(self._edited) >= _HEADS:
                self._edited.clear()
            edited = self._edited[start.lines] = with_fields(start, self.headers)
        return edited


@dataclass(slots=True)
class Bounds:
    """What holds for the requests of a route: the largest body, the times, what one client may have.

    `scope` is what its counts of clients are kept apart by.
    """

    body: int
    timeouts: Timeouts
    rate: RateLimit | None = None
    connections: int = 0
    scope: bytes = b""

    @classmethod
    def of(cls, settings: Settings, route: Route | None = None) -> Bounds:
        """Return those of a route, or of all others."""
        limits = route.limits if route else None
        if not route or not limits:
            return cls(settings.limits.body, settings.timeouts)
        timeouts = replace(
            settings.timeouts, body=limits.body, send=limits.send, script=limits.script, queue=limits.queue
        )
        scope = "\n".join((route.prefix, *route.hosts, "", *route.methods)).encode()
        return cls(limits.max_body, timeouts, limits.rate, limits.connections, scope)


@dataclass(slots=True)
class Endpoint(Generic[Handler]):
    """What a route leads to. `other`: what is asked if the method is not its own. `guard`: the route's own."""

    route: Route
    handler: Handler
    policy: Policy | None
    is_plain: bool  # nothing to be looked at before its handler is asked
    methods: frozenset[bytes]
    guard: Guard | None = None
    other: Endpoint[Handler] | None = None

    @classmethod
    def of(cls, route: Route, handler: Handler, guard: Guard | None = None) -> Endpoint[Handler]:
        """Return the endpoint of a route that `handler` answers, for those whom `guard` lets pass."""
        policy = None
        if route.headers or route.error_pages or route.sendfile_root:
            policy = Policy(
                tuple((name.encode(), value.encode()) for name, value in route.headers),
                {status: path.encode() for status, path in route.error_pages},
                route.sendfile_root.encode("utf-8", "surrogateescape"),
            )
        is_plain = not (policy or route.methods or route.internal or route.try_files or route.redirect)
        methods = {method.encode() for method in route.methods}
        if b"GET" in methods:
            methods.add(b"HEAD")
        return cls(route, handler, policy, is_plain, frozenset(methods), guard)

    def for_method(self, method: bytes) -> Endpoint[Handler] | str:
        """Return the endpoint for a method, or the methods that there are endpoints for, as Allow says them."""
        found: Endpoint[Handler] | None = self
        allowed: set[bytes] = set()
        while found:
            if not found.methods or method in found.methods:
                return found
            allowed |= found.methods
            found = found.other
        return ", ".join(sorted(name.decode() for name in allowed))


class RouteTable(Generic[Handler]):
    """All endpoints of a server."""

    def __init__(self, endpoints: Iterable[Endpoint[Handler]]) -> None:
        self._endpoints = list(endpoints)
        self._has_hosts = any(endpoint.route.hosts for endpoint in self._endpoints)
        self._default = self._router(b"")
        self._by_host: dict[bytes, Router[Endpoint[Handler]]] = {}

    def match(self, request: Request) -> Match[Endpoint[Handler]] | None:
        """Return the endpoint of the request's host and path; raise BadPath."""
        if not self._has_hosts:
            return self._default.match(request.path)
        host = host_of(request)
        router = self._by_host.get(host)
        if router is None:
            if len(self._by_host) >= _HOSTS:
                self._by_host.clear()
            router = self._by_host[host] = self._router(host)
        return router.match(request.path)

    def _router(self, host: bytes) -> Router[Endpoint[Handler]]:
        """Return the routes of one host."""
        chosen: dict[str, tuple[int, list[Endpoint[Handler]]]] = {}
        for endpoint in self._endpoints:
            closeness = how_close(endpoint.route.hosts, host)
            best = chosen.get(endpoint.route.prefix, (-1, []))
            if closeness > best[0]:
                chosen[endpoint.route.prefix] = closeness, [endpoint]
            elif closeness == best[0] >= 0:
                best[1].append(endpoint)
        routes = []
        for prefix, (_, endpoints) in chosen.items():
            first: Endpoint[Handler] | None = None
            for endpoint in reversed(endpoints):
                first = replace(endpoint, other=first, is_plain=endpoint.is_plain and first is None)
            if first:
                routes.append((prefix, first))
        return Router(routes)


def host_of(request: Request) -> bytes:
    """Return the name of the host that is asked, in lower case, without port and final dot."""
    return _name_in(request.authority or b"")


@lru_cache(maxsize=_HOSTS)
def _name_in(authority: bytes) -> bytes:
    authority = authority.lower()
    if not authority.endswith(b"]") and b":" in authority:
        authority = authority.rpartition(b":")[0]
    return authority.removesuffix(b".")


def how_close(hosts: tuple[str, ...], host: bytes) -> int:
    """Return how well a route's `hosts` fit: -1 not at all, 0 since it has none, more for a longer wildcard."""
    if not hosts:
        return 0
    name = host.decode("latin-1")
    fits = [
        len(pattern) if pattern.startswith("*.") else len(pattern) + 1000
        for pattern in map(str.lower, hosts)
        if pattern == name or (pattern.startswith("*.") and name.endswith(pattern[1:]) and len(name) >= len(pattern))
    ]
    return max(fits, default=-1)


class Rewriter:
    """The rewrite rules, in their order."""

    def __init__(self, rules: tuple[Rewrite, ...]) -> None:
        self._rules = [(rule, re.compile(rule.match)) for rule in rules]
        self._has_hosts = any(rule.hosts for rule in rules)
        # Which rule fits a path is constant; for the bound see `Router`.
        self._find = lru_cache(maxsize=_PATHS)(self._first)

    def apply(self, request: Request) -> tuple[bytes, int] | None:
        """Return what the first rule that fits makes of the path: target and status, 0 within the server.

        Raise BadPath.
        """
        found = self._find(request.path, host_of(request) if self._has_hosts else b"")
        if found is None:
            return None
        rule, path, groups = found
        return expand(rule.to, request, path, groups), rule.status

    def _first(self, raw: bytes, host: bytes) -> tuple[Rewrite, bytes, list[str]] | None:
        """Return the first rule that fits, the decoded path, and the groups; raise BadPath."""
        path = normalise(raw).decoded
        text = path.decode("utf-8", "surrogateescape")
        for rule, expression in self._rules:
            found = expression.search(text) if how_close(rule.hosts, host) >= 0 else None
            if found:
                return rule, path, [found[0], *(group or "" for group in found.groups())]
        return None


def expand(template: str, request: Request, path: bytes, groups: list[str]) -> bytes:
    """Return a target with its variables: ``$host`` (without a port), ``$uri``, ``$path``, ``$1`` …, escaped.

    The request's query goes along unless the template has one of its own, or ``$uri``, which has it. Raise BadPath
    where the host is wanted and the request, of HTTP/1.0, names none.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name == "host":
            if not (host := host_of(request)):
                raise BadPath("the request names no host, which the answer is to name")
            return host.decode("latin-1")
        if name == "uri":
            return request.target.decode("latin-1") if request.target.startswith(b"/") else _encoded(request)
        if name == "path":
            return quote_from_bytes(path, _SAFE)
        number = int(name)
        text = groups[number] if number < len(groups) else ""
        return quote_from_bytes(text.encode("utf-8", "surrogateescape"), _SAFE)

    expanded = _VARIABLE.sub(value, template)
    if request.query and "?" not in template and "$uri" not in template:
        expanded += "?" + request.query.decode("latin-1")
    # As a path of this server it never begins with two slashes, which would be another host.
    if expanded.startswith("//"):
        expanded = "/" + expanded.lstrip("/")
    return expanded.encode("latin-1")


def _encoded(request: Request) -> str:
    query = b"?" + request.query if request.query else b""
    return (request.path + query).decode("latin-1")
