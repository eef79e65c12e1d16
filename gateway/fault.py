"""What went wrong with one request, as a value: whose fault, which status, in which words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """A request that ends in an error of status `status`.

    `words` say what happened; they are logged, and shown to the client only in debug mode. `outcome` is the access
    log's word for it. `retry_after`, in seconds, goes to the client with a 503.
    """

    status: int
    words: str
    outcome: str = ""
    retry_after: int = 0
    allow: str = ""
