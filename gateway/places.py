"""Prefixes and directories that somebody has written down: what is wrong with them, in words, '' for nothing."""

from __future__ import annotations

import os
import re

_PREFIX = re.compile(r"/(?:[^\s=?#%]*/)?")


def prefix_trouble(prefix: str) -> str:
    """Return why `prefix`, which ends with a slash, is no prefix of a path."""
    segments = prefix.split("/")
    is_path = _PREFIX.fullmatch(prefix) and prefix.isprintable()
    if not is_path or "." in segments or ".." in segments or "//" in prefix:
        return f"{prefix!r} is no prefix of a path"
    return ""


def directory_trouble(directory: str) -> str:
    """Return why nothing can be served out of `directory`."""
    if not os.path.isdir(directory):
        what = "is not a directory" if os.path.exists(directory) else "does not exist"
        return f"the directory {directory!r} {what}; create it, or name another"
    if not os.access(directory, os.R_OK | os.X_OK):
        return f"the directory {directory!r} cannot be read by this user: chmod +rx"
    return ""
