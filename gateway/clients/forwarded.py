"""The fields by which proxies tell whose request they pass on. Pure: fields in, a client out.

Each proxy appends whom it got the request from, so the list is true from its right end as far as those who wrote it are
trusted: it is walked from there, over trusted proxies, to the first address that is none. What stands further left
was written by that client and may be anything. nginx does the same with real_ip_recursive on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from gateway.clients.addresses import Trusted, parse_address
from gateway.http.message import Fields

FORWARDED = b"forwarded"
_FORWARDED_PROTO = b"x-forwarded-proto"
# Proxies in a row, at most. A list is as long as a client wants, if it writes trusted addresses.
_MOST_HOPS = 32
_TOKEN = rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_STRING = rb'"(?:[^"\\]|\\.)*"'
# RFC 7239 section 4: a pair, or nothing, which lists allow (RFC 9110 section 5.6.1), and white space around it.
_PAIR = re.compile(rb"[ \t]*(?:(" + _TOKEN + rb")=(" + _TOKEN + rb"|" + _STRING + rb")[ \t]*)?", re.DOTALL)
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")
# An IPv6 address that holds one of IPv4, in brackets, and a port.
_LONGEST_NODE = 53
_SCHEMES = frozenset(("http", "https"))


class Hop(NamedTuple):
    """One who passed the request on: (address, port), None where it is hidden or no address; port 0: not told."""

    end: tuple[str, int] | None
    scheme: str = ""


class Client(NamedTuple):
    """The client that the fields name, None where they tell the scheme alone, and that, '' where it is not told."""

    end: tuple[str, int] | None
    scheme: str = ""


def find_client(fields: Fields, header: bytes, trusted: Trusted) -> Client | None:
    """Return the client that the request of a trusted proxy names in `header`; None if it names none."""
    values = [value for name, value in fields if name == header]
    scheme = "" if header == FORWARDED else _last_scheme(fields)
    hops = _elements(values) if header == FORWARDED else _addresses(values)
    found = Client(None, scheme) if scheme else None
    for count, hop in enumerate(hops):
        if hop.end is None or count == _MOST_HOPS:
            # From here on nothing is known: the last proxy that is known stands for what is behind it.
            break
        found = Client(hop.end, hop.scheme or scheme)
        if not trusted.has(hop.end[0]):
            break
    return found


def _last_scheme(fields: Fields) -> str:
    """Return what the nearest proxy says of the scheme. The field has no standard; each sets it, or appends to it."""
    values = [value for name, value in fields if name == _FORWARDED_PROTO]
    return _scheme(values[-1].rpartition(b",")[2].strip(b" \t").decode("latin-1")) if values else ""


def _scheme(text: str) -> str:
    scheme = text.lower()
    return scheme if scheme in _SCHEMES else ""


def _addresses(values: list[bytes]) -> Iterator[Hop]:
    """Give the hops of a list of addresses, from its right end."""
    for value in reversed(values):
        rest = value
        while rest:
            rest, _, word = rest.rpartition(b",")
            word = word.strip(b" \t")
            if word:  # an empty element is none (RFC 9110 section 5.6.1)
                yield Hop(_node(word.decode("latin-1")))


def _elements(values: list[bytes]) -> Iterator[Hop]:
    """Give the hops of Forwarded (RFC 7239 section 4) from its right end; a hidden one for a malformed value."""
    for value in reversed(values):
        hops = _read_elements(value)
        if hops is None:
            yield Hop(None)
            return
        yield from reversed(hops)


def _read_elements(value: bytes) -> list[Hop] | None:
    """Return the hops of one field's value from its left, where alone quotes can be told; None if it is malformed."""
    hops = []
    told: dict[bytes, bytes] = {}
    position = 0
    while True:
        match = _PAIR.match(value, position)
        assert match
        position = match.end()
        if match[1]:
            name = match[1].lower()
            if name in told:
                return None  # "Each parameter MUST NOT occur more than once" in an element
            told[name] = match[2]
        separator = value[position : position + 1]
        if separator != b";":
            if separator not in (b",", b""):
                return None
            if told:
                proto = _unquoted(told.get(b"proto", b""))
                hops.append(Hop(_node(_unquoted(told.get(b"for", b""))), _scheme(proto)))
                told = {}
            if not separator:
                return hops
        position += 1


def _unquoted(text: bytes) -> str:
    if text[:1] == b'"':
        text = re.sub(rb"\\(.)", rb"\1", text[1:-1], flags=re.DOTALL)
    return text.decode("latin-1")


def _node(text: str) -> tuple[str, int] | None:
    """Return the address and port of a node (RFC 7239 section 6); None for ``unknown``, ``_hidden`` and nonsense.

    An IPv6 address without brackets and port is taken, too, since X-Forwarded-For has it so.
    """
    return _read_node(text) if len(text) <= _LONGEST_NODE else None


@lru_cache(maxsize=1024)
def _read_node(text: str) -> tuple[str, int] | None:
    match = _NODE.fullmatch(text)
    if match:
        address = parse_address(match[1] or match[2])
        port = int(match[3] or 0)
    else:
        address, port = parse_address(text) if ":" in text and "%" not in text else None, 0
    return (str(address), port) if address and port <= 65535 else None
