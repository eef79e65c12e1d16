"""What a reader gives: a request, pieces of its body, its end, or a refusal."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import NamedTuple

Fields = list[tuple[bytes, bytes]]


class Signal(enum.Enum):
    """Events that carry nothing."""

    NEED_DATA = enum.auto()
    END = enum.auto()


NEED_DATA = Signal.NEED_DATA
END = Signal.END


class Data(NamedTuple):
    """A piece of a request's body, its transfer coding removed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that is not answered by a program: the status and, in words, why. The connection ends after it."""

    status: int
    reason: str


@dataclass(slots=True)
class Request:
    """The head of one request.

    `target` is as sent; `path` and `query` are its parts, still percent-encoded (`query` without the ``?``).
    `fields` are (name in lower case, value) in the order of arrival. `authority` is the host that is asked, from an
    absolute target or from Host. `content_length` is None without a body or when it is chunked. `notes` is where
    those who work something out of the fields alone keep it: requests with the same fields share it.
    """

    method: bytes
    target: bytes
    version: tuple[int, int]
    fields: Fields
    path: bytes
    query: bytes
    authority: bytes | None
    content_length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    expects_continue: bool = False
    notes: dict[object, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def has_body(self) -> bool:
        """Whether a body follows (RFC 9112 section 6), be it empty."""
        return self.chunked or self.content_length is not None

    @property
    def body_follows(self) -> bool:
        """Whether bytes of a body follow the head."""
        return self.chunked or bool(self.content_length)

    def redirected(self, path: bytes, query: bytes) -> Request:
        """Return the request that a local redirect stands for: a GET without a body (RFC 3875 section 6.2.2)."""
        fields = [item for item in self.fields if item[0] not in _BODY_FIELDS]
        method = b"HEAD" if self.method == b"HEAD" else b"GET"
        return replace(
            self, method=method, path=path, query=query, fields=fields, content_length=None, chunked=False, notes={}
        )

    def for_error_page(self, path: bytes, query: bytes) -> Request:
        """Return the request that a page for an error answers: whole, whatever the client has or wants of another."""
        redirected = self.redirected(path, query)
        redirected.fields = [item for item in redirected.fields if item[0] not in _CONDITIONS]
        return redirected


# Of an answer 200 alone (RFC 9110 sections 13.2.1 and 14.2).
_CONDITIONS = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range")
)
_BODY_FIELDS = frozenset((b"content-length", b"content-type", b"content-encoding", b"transfer-encoding"))
