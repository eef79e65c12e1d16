"""What the fields of a well-formed head mean for the request's framing and target, and which are refused.

RFC 9112 sections 3 (targets), 6 (length of the body), 9 (persistence); RFC 9110 sections 7.2 (Host), 10.1.1 (Expect).
"""

from __future__ import annotations

import re
import socket

from gateway.http.limits import Limits
from gateway.http.message import Refused, Request

# The fields that decide about the connection, found without taking the head apart.
_DECISIVE = re.compile(
    rb"\r\n(content-length|transfer-encoding|host|expect|connection):[ \t]*+([^\r]*+)", re.IGNORECASE
)
_LENGTH = re.compile(rb"[0-9]{1,19}")
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|[A-Za-z0-9._~-]+)(?::([0-9]{0,5}))?")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)


def interpret(method: bytes, target: bytes, version: tuple[int, int], head: bytes, limits: Limits) -> Request | Refused:
    """Return the request, its `fields` still empty, that the well-formed `head` stands for; or why it is refused."""
    if version[0] != 1:
        return Refused(505, f"HTTP/{version[0]}.{version[1]} is not spoken here; HTTP/1.1 is")
    if method == b"CONNECT":
        return Refused(405, "CONNECT is not allowed: this is no proxy")
    decisive: dict[bytes, list[bytes]] = {}
    for name, value in _DECISIVE.findall(head):
        decisive.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    request = _with_target(method, target, version)
    if isinstance(request, Refused):
        return request
    return (
        _read_host(request, decisive.get(b"host", []))
        or _read_framing(request, decisive, limits)
        or _read_connection(request, decisive)
        or request
    )


def _with_target(method: bytes, target: bytes, version: tuple[int, int]) -> Request | Refused:
    authority = None
    if target[:1] == b"/":
        rest = target
    elif target == b"*":
        if method != b"OPTIONS":
            return Refused(400, "the target * goes with OPTIONS only")
        rest = target
    else:
        absolute = _ABSOLUTE.fullmatch(target)
        if not absolute:
            return Refused(400, "the request's target is neither a path nor an http URL")
        authority, rest = absolute.groups()
        if not is_host(authority):
            return Refused(400, "malformed authority in the request's target")
        if rest[:1] != b"/":
            rest = b"*" if method == b"OPTIONS" and not rest else b"/" + rest
    path, _, query = rest.partition(b"?")
    return Request(method, target, version, [], path, query, authority)


def is_host(value: bytes) -> bool:
    """Whether `value` is a host, perhaps with a port, as Host may hold it (RFC 9110 section 7.2)."""
    match = _HOST.fullmatch(value)
    if not match:
        return False
    literal, port = match.groups()
    if port and int(port) > 65535:
        return False
    if literal:
        try:
            socket.inet_pton(socket.AF_INET6, literal.decode("ascii"))
        except OSError:
            return False
    return True


def _read_host(request: Request, hosts: list[bytes]) -> Refused | None:
    if len(hosts) > 1:
        return Refused(400, "more than one Host field")
    if not hosts:
        if request.version >= (1, 1):
            return Refused(400, "no Host field, which HTTP/1.1 requires")
        return None
    if not is_host(hosts[0]):
        return Refused(400, "malformed Host field")
    if request.authority is None:
        request.authority = hosts[0]
    return None


def _read_framing(request: Request, decisive: dict[bytes, list[bytes]], limits: Limits) -> Refused | None:
    lengths = decisive.get(b"content-length")
    codings = decisive.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            return Refused(400, "Content-Length together with Transfer-Encoding")
        if request.version < (1, 1):
            return Refused(400, "Transfer-Encoding in an HTTP/1.0 request")
        return _read_codings(request, codings)
    if lengths is not None:
        if len(lengths) > 1:
            return Refused(400, "more than one Content-Length field")
        if not _LENGTH.fullmatch(lengths[0]):
            return Refused(400, "malformed Content-Length")
        request.content_length = int(lengths[0])
        if request.content_length > limits.body:
            return Refused(413, f"the request's body is larger than {limits.body} bytes")
    return None


def _read_codings(request: Request, codings: list[bytes]) -> Refused | None:
    names = [name.strip(b" \t").lower() for name in b",".join(codings).split(b",")]
    if b"" in names or names.count(b"chunked") > 1 or names[-1] != b"chunked":
        return Refused(400, "malformed Transfer-Encoding: chunked comes once, and last")
    if names != [b"chunked"]:
        return Refused(501, "a transfer coding other than chunked is not understood here")
    request.chunked = True
    return None


def _read_connection(request: Request, decisive: dict[bytes, list[bytes]]) -> Refused | None:
    request.keep_alive = request.version >= (1, 1)
    if b"connection" in decisive:
        options = {option.strip(b" \t").lower() for option in b",".join(decisive[b"connection"]).split(b",")}
        request.keep_alive = b"close" not in options and (request.keep_alive or b"keep-alive" in options)
    expectations = decisive.get(b"expect")
    if expectations is not None and request.version >= (1, 1):
        if [value.lower() for value in expectations] != [b"100-continue"]:
            return Refused(417, "the only expectation understood here is 100-continue")
        request.expects_continue = request.body_follows
    return None
