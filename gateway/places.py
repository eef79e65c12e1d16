"""What somebody has written down, be it options or keys: what is wrong with it, in words, '' for nothing."""

from __future__ import annotations

import os
import re

from gateway.http.reader import reader_class

_PREFIX = re.compile(r"/(?:[^\s=?#%]*/)?")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:(?:\.|::)\w+)*", re.ASCII)


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


def spool_trouble(directory: str) -> str:
    """Return why large bodies cannot be kept in `directory`."""
    if os.path.isdir(directory) and os.access(directory, os.W_OK):
        return ""
    return "no directory that can be written to; create it, or name one"


def module_trouble(name: str) -> str:
    """Return why `name` is none of a module."""
    return "" if _MODULE.fullmatch(name) else "no name of a module; write, say, numpy, or DBI for Perl"


def installation_trouble(what: str, kind: str) -> str:
    """Return why there is no `kind` of ``http``, who reads requests, or of ``loop``."""
    try:
        if what == "http":
            reader_class(kind)
        elif kind == "uvloop":
            import uvloop  # noqa: F401, PLC0415
    except ImportError:
        return f"{kind} is not installed; pip install {kind}, or use auto"
    return ""
