"""From a request to the handler that answers it: rewritten, asked about, routed."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.http.response import METHODS
from gateway.routes import Bounds, Endpoint, Guard, Rewriter, RouteTable, expand, host_of
from gateway.routing import BadPath, Match, Router
from gateway.settings import CgiMount, Settings, SiteMount, StaticMount

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.clients.door import Door

# Redirects within the server for one request (RFC 3875 leaves the number open; Apache LimitInternalRecursion 10).
REDIRECTS = 10


class Handler(Protocol):
    """One way to answer requests."""

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Answer `exchange`, whose path has `segments` below the handler's prefix."""


class Dispatcher:
    """Everything that decides who answers."""

    def __init__(
        self,
        settings: Settings,
        endpoints: Iterable[Endpoint[Handler]],
        guards: tuple[list[tuple[str, Guard]], list[tuple[str, Guard]]],
        door: Door | None,
    ) -> None:
        """Take the routes with their handlers; guards with their prefixes, those who ask for passwords and then
        Authorizers; and what counts clients, if anything does."""
        endpoints = list(endpoints)
        self._table = RouteTable(endpoints)
        self._guards = tuple(Router(kind) for kind in guards)
        self._has_guards = any(guards) or any(endpoint.guard for endpoint in endpoints)
        self._door = door
        # By the route; empty if none has limits of its own.
        self._bounds = {id(route): Bounds.of(settings, route) for route in settings.routes if route.limits}
        self._server_bounds = Bounds.of(settings)
        self._rewriter = Rewriter(settings.rewrites) if settings.rewrites else None
        self._https_port = settings.https_port

    def answer(self, exchange: Exchange) -> None:
        """Answer a request of a client."""
        method = exchange.request.method
        if method == b"TRACE":
            exchange.fail(Fault(405, "TRACE is not allowed", allow=METHODS))
        elif exchange.request.path == b"*":
            exchange.respond(200, [(b"Allow", METHODS.encode())], b"")
        elif self._https_port and b"HTTPS" not in exchange.variables:
            self._to_https(exchange)
        else:
            self.route(exchange, 0)

    def _to_https(self, exchange: Exchange) -> None:
        host = host_of(exchange.request)
        if not host:
            exchange.fail(Fault(400, "this is served by https, and the request names no host to go to"))
            return
        port = b"" if self._https_port == 443 else b":%d" % self._https_port
        # The method stays (RFC 9110 section 15.4.9).
        target = expand("$uri", exchange.request, b"", [])
        exchange.respond(308, [(b"Location", b"https://" + host + port + target)], b"")

    def route(self, exchange: Exchange, redirects: int) -> None:
        """Hand `exchange` to what its path leads to, after so many redirects within the server."""
        try:
            if self._rewriter and not redirects:
                rewritten = self._rewriter.apply(exchange.request)
                if rewritten:
                    self._follow_rewrite(exchange, *rewritten)
                    return
            match = self._table.match(exchange.request)
            if self._bounds and match and self._is_held(exchange, match.target, redirects):
                return
            if self._has_guards and self._is_asked(exchange, match, redirects):
                return
        except BadPath as bad:
            # A path that a program or a rule has made up is no fault of the client's.
            exchange.fail(Fault(502, f"a redirect within the server: {bad}") if redirects else Fault(400, str(bad)))
            return
        if match is None:
            exchange.fail(Fault(404, "nothing is mounted there"))
        elif match.target.is_plain and exchange.policy is None:
            match.target.handler.answer(exchange, match.rest, match.is_directory, redirects)
        else:
            self._answer_by(exchange, match, redirects)

    def _is_held(self, exchange: Exchange, first: Endpoint[Handler], redirects: int) -> bool:
        """Have the limits of a route hold for a request; return whether it is answered, or waits for its turn.

        The times are those of the route that answers. The body's size is the first route's, by the client's own path;
        a client is counted by the first that counts.
        """
        endpoint = first.for_method(exchange.request.method)
        if isinstance(endpoint, str) or (endpoint.route.internal and not redirects):
            return False
        bounds = self._bounds.get(id(endpoint.route), self._server_bounds)
        exchange.set_timeouts(bounds.timeouts)
        if not exchange.is_routed:
            exchange.is_routed = True
            if not exchange.limit_body(bounds.body):
                exchange.policy = endpoint.policy
                exchange.fail(Fault(413, f"the request's body is larger than {bounds.body} bytes"))
                return True
        if exchange.is_counted or not self._door or not (bounds.rate or bounds.connections):
            return False
        exchange.is_counted = True
        exchange.policy = endpoint.policy
        return self._door.holds_for(exchange, bounds, redirects)

    def _is_asked(self, exchange: Exchange, match: Match[Endpoint[Handler]] | None, redirects: int) -> bool:
        """Ask the next guard that has not let the request pass, if there is one; raise BadPath."""
        for guard in self._guards_of(exchange, match):
            if not (exchange.granted and exchange.granted.passes(guard)):
                if exchange.policy is None and match:
                    self._foresee(exchange, match)
                guard.ask(exchange, redirects)
                return True
        return False

    @staticmethod
    def _foresee(exchange: Exchange, match: Match[Endpoint[Handler]]) -> None:
        """Have what a guard answers look as the route has it that the request would take: its page for 401, say."""
        endpoint = match.target.for_method(exchange.request.method)
        if not isinstance(endpoint, str) and not endpoint.route.internal:
            exchange.policy = endpoint.policy

    def _guards_of(self, exchange: Exchange, match: Match[Endpoint[Handler]] | None) -> Iterator[Guard]:
        """Yield one of each kind: the route's own, else the one with the longest prefix."""
        endpoint = match.target.for_method(exchange.request.method) if match else ""
        own = None if isinstance(endpoint, str) else endpoint.guard
        for guards in self._guards:
            found = guards.match(exchange.request.path)
            if own:
                yield own
                own = None
            elif found:
                yield found.target

    def _follow_rewrite(self, exchange: Exchange, target: bytes, status: int) -> None:
        if status:
            exchange.respond(status, [(b"Location", target)], b"")
        else:
            self.go_on(exchange, target, 0)

    def go_on(self, exchange: Exchange, target: bytes, redirects: int) -> None:
        """Have another path of this server answer the same request, the next after `redirects` of them."""
        if redirects >= REDIRECTS:
            exchange.fail(Fault(500, f"the request was sent on within the server for the {REDIRECTS + 1}th time"))
            return
        path, _, query = target.partition(b"?")
        exchange.request = replace(exchange.request, path=path, query=query, notes={})
        self.route(exchange, redirects + 1)

    def _answer_by(self, exchange: Exchange, match: Match[Endpoint[Handler]], redirects: int) -> None:
        """Answer by a route with conditions."""
        request = exchange.request
        endpoint = match.target.for_method(request.method)
        if isinstance(endpoint, str):
            exchange.fail(Fault(405, f"{request.method.decode('latin-1')} has no route there", allow=endpoint))
            return
        route = endpoint.route
        if route.internal and not redirects:
            exchange.fail(Fault(404, "the route is internal"))
            return
        exchange.policy = endpoint.policy
        if route.redirect:
            location = self._expanded(exchange, route.redirect.to, match)
            if location:
                exchange.respond(route.redirect.status, [(b"Location", location)], b"")
        elif route.try_files:
            self._try_files(exchange, endpoint, match, redirects)
        else:
            endpoint.handler.answer(exchange, match.rest, match.is_directory, redirects)

    def _try_files(
        self, exchange: Exchange, endpoint: Endpoint[Handler], match: Match[Endpoint[Handler]], redirects: int
    ) -> None:
        """Answer by the first of the route's files that is there, else by its last resort."""
        mount = endpoint.route.mount
        assert isinstance(mount, CgiMount | SiteMount | StaticMount)
        below = b"/".join(match.rest)
        *candidates, last = endpoint.route.try_files
        for candidate in candidates:
            path = candidate.encode().replace(b"$path", below)
            segments = tuple(segment for segment in path.split(b"/") if segment)
            is_directory = path.endswith(b"/") or not segments
            if not any(b"/" in segment for segment in match.rest) and _is_there(
                os.fsencode(mount.directory) + b"/" + b"/".join(segments), is_directory
            ):
                # What is asked for without the slash at its end gets it first: links of its page are relative to that.
                has_slash = is_directory and (match.is_directory or candidate != "$path/")
                endpoint.handler.answer(exchange, segments, has_slash, redirects)
                return
        if last.startswith("="):
            exchange.fail(Fault(int(last[1:]), "none of the route's files is there"))
        elif target := self._expanded(exchange, last, match):
            self.go_on(exchange, target, redirects)

    @staticmethod
    def _expanded(exchange: Exchange, template: str, match: Match[Endpoint[Handler]]) -> bytes:
        """Return a target with its variables; b"" where the request, which is refused, does not have them."""
        try:
            return expand(template, exchange.request, match.path.decoded, [])
        except BadPath as bad:
            exchange.fail(Fault(400, str(bad)))
            return b""


def _is_there(path: bytes, is_directory: bool) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(mode) if is_directory else stat.S_ISREG(mode)
