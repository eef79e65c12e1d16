"""What was found out about scripts, remembered for as long as they are the same files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

_Verdict = TypeVar("_Verdict")

# Scripts of which it is remembered; then all are forgotten.
_MOST = 4096


class Verdicts(Generic[_Verdict]):
    """Asks `judge` about each script, and again when it has changed."""

    def __init__(self, judge: Callable[[bytes], _Verdict]) -> None:
        self._judge = judge
        self._known: dict[bytes, tuple[tuple[int, int, int, int], _Verdict]] = {}

    def of(self, path: bytes) -> _Verdict:
        """Return the verdict about the script at `path`; raise OSError, also what `judge` raises."""
        found = os.stat(path)
        identity = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
        known = self._known.get(path)
        if known and known[0] == identity:
            return known[1]
        verdict = self._judge(path)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[path] = identity, verdict
        return verdict
