"""What went wrong with one request, as a value: whose fault, which status, in which words."""

from __future__ import annotations

from dataclasses import dataclass

# The outcome of what is refused to a client that has had its share.
LIMITED = "limited"


@dataclass(frozen=True, slots=True)
class Fault:
    """A request that ends in an error of status `status`.

    `words` say what happened; they are logged, and shown to the client only in debug mode. `outcome` is the access
    log's word for it. `retry_after`, in seconds, goes to the client, as do `allow` and `challenge` (RFC 9110 section
    11.6.1). `closes`: the connection ends with it. `is_public`: the words are for the client.
    """

    status: int
    words: str
    outcome: str = ""
    retry_after: int = 0
    allow: str = ""
    challenge: str = ""
    closes: bool = False
    is_public: bool = False
