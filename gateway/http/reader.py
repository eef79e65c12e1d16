"""Which reader reads: the choice between h11 and httptools."""

from __future__ import annotations

from gateway.http.base_reader import Reader
from gateway.http.h11_reader import H11Reader
from gateway.http.limits import Limits


def make_reader(kind: str, limits: Limits) -> Reader:
    """Return a reader; `kind` is ``h11``, ``httptools``, or ``auto``: httptools where it is installed.

    Raises ImportError when ``httptools`` is asked for and not installed.
    """
    return reader_class(kind)(limits)


def reader_class(kind: str) -> type[Reader]:
    """Return the class for `kind`; see `make_reader`."""
    if kind in ("auto", "httptools"):
        try:
            from gateway.http.httptools_reader import HttptoolsReader  # noqa: PLC0415

            return HttptoolsReader
        except ImportError:
            if kind == "httptools":
                raise
    return H11Reader
