"""Which bytes of a file a Range field asks for (RFC 9110 section 14). Pure."""

from __future__ import annotations

import re
from itertools import pairwise

# More ranges are answered by the whole file, which section 14.2 allows and its neighbour on attacks advises: a head of
# some hundred bytes goes with each. Readers of PDF ask for a few dozen; Apache's MaxRanges is 200.
MOST = 64

_SET = re.compile(rb"bytes=(.*)", re.IGNORECASE | re.DOTALL)
_ONE = re.compile(rb"[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")

# First byte, and the one after the last.
Part = tuple[int, int]


def parts_of(value: bytes, size: int) -> list[Part] | None:
    """Return the parts of a file of `size` bytes that `value` asks for, in its order; None for the whole file.

    An empty list is a set of ranges of which none can be satisfied: 416. What overlaps or touches is joined, so that no
    byte is sent twice however often it is asked for; then the parts are in the order of the file (section 15.3.7.2).
    What is malformed, or has another unit, is as if it were not there (section 14.2).
    """
    match = _SET.fullmatch(value)
    if not match:
        return None
    wanted = [one for one in match[1].split(b",") if one.strip(b" \t")]
    if not wanted or len(wanted) > MOST:
        return None
    parts = []
    for one in wanted:
        found = _ONE.fullmatch(one)
        if not found:
            return None
        first, last, suffix = found.groups()
        if suffix is not None:
            begin, end = max(size - int(suffix), 0), size if int(suffix) else 0
            if int(suffix) and not size:
                return None  # satisfiable, yet no Content-Range can name nothing (section 14.1.2)
        else:
            if last and int(last) < int(first):
                return None
            begin, end = int(first), min(int(last) + 1, size) if last else size
        if begin < end:
            parts.append((begin, end))
    return _joined(parts)


def _joined(parts: list[Part]) -> list[Part]:
    ordered = sorted(parts)
    if all(before[1] < after[0] for before, after in pairwise(ordered)):
        return parts
    joined = [ordered[0]]
    for begin, end in ordered[1:]:
        last_begin, last_end = joined[-1]
        if begin <= last_end:
            joined[-1] = (last_begin, max(end, last_end))
        else:
            joined.append((begin, end))
    return joined
