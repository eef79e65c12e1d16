"""Which content coding a client prefers (RFC 9110 section 12.5.3). Pure."""

from __future__ import annotations

import re
from functools import lru_cache

# qvalue of section 12.4.2: up to three digits after the point.
_ONE = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*)?"
)
_ALIASES = {b"x-gzip": b"gzip"}


@lru_cache(maxsize=256)
def preferred(accepted: bytes, available: tuple[bytes, ...]) -> bytes:
    """Return the one of `available`, which are in our order of liking, that the field `accepted` likes best.

    b"" is the file as it is: also where nothing else is acceptable, since some answer is better than none, and where
    the field is malformed.
    """
    weights: dict[bytes, float] = {}
    for one in accepted.split(b","):
        if not one.strip(b" \t"):
            continue
        match = _ONE.fullmatch(one)
        if not match:
            return b""
        name = match[1].lower()
        weights[_ALIASES.get(name, name)] = float(match[2]) if match[2] else 1.0
    others = weights.get(b"*", 0.0)
    # Of those that are liked as much as the file as it is, the smaller one; unless "identity" was named above it.
    best, most = b"", weights.get(b"identity", 0.0)
    for coding in available:
        weight = weights.get(coding, others)
        if weight > 0 and (weight > most or (not best and weight == most)):
            best, most = coding, weight
    return best
