"""What a client knows already and what it asks of it: conditional requests (RFC 9110 section 13). Pure."""

from __future__ import annotations

import re
from calendar import timegm
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from gateway.http.message import Request

# entity-tag = [ W/ ] DQUOTE *etagc DQUOTE; a comma may stand within (section 8.8.3).
_TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rb"[ \t,]*+(" + _TAG + rb")[ \t]*+(?=,|\Z)")

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_MONTH = b"(" + b"|".join(_MONTHS) + b")"
_TIME = rb"([0-9]{2}):([0-9]{2}):([0-9]{2})"
# The three forms of section 5.6.7: the one that is sent, and two that must still be taken.
_FIXED = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) " + _MONTH + rb" ([0-9]{4}) " + _TIME + rb" GMT")
_RFC_850 = re.compile(
    rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, ([0-9]{2})-" + _MONTH + rb"-([0-9]{2}) " + _TIME + rb" GMT"
)
_ASCTIME = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) " + _MONTH + rb" ([ 0-9][0-9]) " + _TIME + rb" ([0-9]{4})")

_NAMES = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range",
     b"accept-encoding")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a request that decide how a file answers it; b"" for one that is empty, None for none."""

    if_match: bytes | None = None
    if_none_match: bytes | None = None
    if_modified_since: bytes | None = None
    if_unmodified_since: bytes | None = None
    if_range: bytes | None = None
    range: bytes | None = None
    accept_encoding: bytes | None = None
    is_plain: bool = True  # none of them but accept-encoding


def read_asked(request: Request) -> Asked:
    """Return what `request` asks; worked out once for all requests with the same fields."""
    known = request.notes.get("asked")
    if known is None:
        found: dict[bytes, bytes] = {}
        for name, value in request.fields:
            if name in _NAMES:
                found[name] = found[name] + b", " + value if name in found else value
        values = {name.decode().replace("-", "_"): value for name, value in found.items()}
        known = Asked(**values, is_plain=not found.keys() - {b"accept-encoding"})
        request.notes["asked"] = known
    assert isinstance(known, Asked)
    return known


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one state of a file from another: a strong tag, and its last change in seconds (section 8.8).

    `is_settled`: the change lies so far back that a second one would have another time (section 8.8.2.2).
    """

    tag: bytes
    modified: int
    is_settled: bool


def precondition(asked: Asked, method: bytes, now: Validators) -> int:
    """Return the status that the conditions lead to: 412, 304, or 0 to go on (section 13.2.2: the order)."""
    if asked.if_match is not None:
        if asked.if_match.strip(b" \t") != b"*" and now.tag not in _tags(asked.if_match):
            return 412
    elif asked.if_unmodified_since is not None:
        since = read_date(asked.if_unmodified_since)
        if since is not None and now.modified > since:
            return 412
    is_reading = method in (b"GET", b"HEAD")
    if asked.if_none_match is not None:
        known = asked.if_none_match.strip(b" \t") == b"*" or any(
            tag.removeprefix(b"W/") == now.tag for tag in _tags(asked.if_none_match)
        )
        if known:
            return 304 if is_reading else 412
    elif asked.if_modified_since is not None and is_reading:
        since = read_date(asked.if_modified_since)
        if since is not None and now.modified <= since:
            return 304
    return 0


def range_applies(asked: Asked, method: bytes, now: Validators) -> bool:
    """Whether the Range field is to be looked at: section 13.1.5, and section 14.2, GET alone."""
    if asked.range is None or method != b"GET":
        return False
    if asked.if_range is None:
        return True
    wanted = asked.if_range.strip(b" \t")
    if wanted[:1] == b'"':
        return wanted == now.tag
    return now.is_settled and read_date(wanted) == now.modified


def _tags(value: bytes) -> list[bytes]:
    """Return the tags of a list; none if it is malformed."""
    tags = []
    position = 0
    end = len(value.rstrip(b" \t,"))
    while position < end:
        match = _TAGS.match(value, position)
        if not match:
            return []
        tags.append(match[1])
        position = match.end()
    return tags


@lru_cache(maxsize=64)
def read_date(value: bytes) -> int | None:
    """Return the seconds since 1970 that a date stands for, None for what is no date (section 5.6.7)."""
    value = value.strip(b" \t")
    if match := _FIXED.fullmatch(value):
        day, month, year, *time = match.groups()
    elif match := _RFC_850.fullmatch(value):
        day, month, year, *time = match.groups()
        # "more than 50 years in the future" is the past; a fixed century does as long as this is read before 2050.
        year = (b"20" if int(year) < 70 else b"19") + year
    elif match := _ASCTIME.fullmatch(value):
        month, day, *time, year = match.groups()
    else:
        return None
    hour, minute, second = map(int, time)
    try:
        # A leap second is the begin of the next minute.
        moment = datetime(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, min(second, 59))
    except ValueError:
        return None
    return timegm(moment.timetuple()) + (1 if second == 60 else 0)
