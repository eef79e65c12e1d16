"""Answers by a file: whole, in part, or by saying that the client has it already (RFC 9110 sections 13, 14)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.files.store import Representation, Resource, fault_of
from gateway.files.transfer import Piece, Transfer
from gateway.http.codings import preferred
from gateway.http.conditions import Asked, precondition, range_applies, read_asked
from gateway.http.ranges import Part, parts_of
from gateway.http.response import Start, encode_start

if TYPE_CHECKING:
    from gateway.worker import Worker

# A file that has changed again each time it is looked at is not to be had.
_LOOKS = 3


def send_file(worker: Worker, exchange: Exchange, path: bytes) -> None:
    """Answer `exchange` by the regular file at `path`."""
    if exchange.request.method not in (b"GET", b"HEAD"):
        refuse_method(exchange)
        return
    found = worker.files.find(path)
    if isinstance(found, Resource):
        send_resource(worker, exchange, found)
    else:
        fail(worker, exchange, found or Fault(404, f"{os.fsdecode(path)} is a directory"))


def is_private(segment: bytes) -> bool:
    """Whether a segment of a path is never looked for: it holds a slash, or is the name of a hidden file.

    Such as .git, .htpasswd, .env: never meant for the public; but for what is so by its name (RFC 8615), such as files
    that prove who owns a host.
    """
    return (segment[:1] == b"." and segment != b".well-known") or b"/" in segment


def add_slash(exchange: Exchange, prefix: bytes, segments: tuple[bytes, ...]) -> None:
    """Send the browser to the directory with a slash at its end: links of its page are relative to that.

    No segment is empty, so that this never begins with two slashes, which would be another host.
    """
    location = quote_from_bytes(prefix + b"".join(segment + b"/" for segment in segments)).encode()
    if exchange.request.query:
        location += b"?" + exchange.request.query
    exchange.respond(301, [(b"Location", location)], b"")


def refuse_method(exchange: Exchange) -> None:
    """Answer that files are no programs."""
    exchange.fail(Fault(405, "a file can only be read", allow="GET, HEAD"))


def fail(worker: Worker, exchange: Exchange, fault: Fault) -> None:
    """Answer by a fault; what the administrator can correct is logged, too."""
    if fault.status == 403:
        worker.error_log.warning(fault.words, exchange.id)
    exchange.fail(fault)


def send_resource(worker: Worker, exchange: Exchange, resource: Resource) -> None:
    """Answer a GET or HEAD by `resource`, in the coding that the client likes best."""
    request = exchange.request
    asked = read_asked(request)
    chosen = _choose(resource, asked)
    content = chosen.file.content
    if request.method == b"GET":
        if content is None:
            held = _hold(worker, resource, asked)
            if isinstance(held, Fault):
                fail(worker, exchange, held)
                return
            chosen = held
        elif asked.is_plain:
            # The way of most requests.
            exchange.respond_whole(200, chosen.start, content)
            return
    status = precondition(asked, request.method, chosen.validators)
    if status == 304:
        # Without a Content-Length, which would have to be that of the file (section 8.6).
        _respond(worker, exchange, chosen, Answer(304, chosen.unchanged, None))
    elif status:
        _respond(worker, exchange, chosen, Fault(status, "the file is not in the state that the request asks for"))
    elif asked.range is not None and range_applies(asked, request.method, chosen.validators):
        parts = parts_of(asked.range, chosen.file.size)
        _respond(worker, exchange, chosen, _whole(chosen) if parts is None else _in_part(chosen, parts))
    else:
        _respond(worker, exchange, chosen, _whole(chosen))


def _choose(resource: Resource, asked: Asked) -> Representation:
    if resource.codings and asked.accept_encoding is not None:
        return resource.coded.get(preferred(asked.accept_encoding, resource.codings), resource.plain)
    return resource.plain


def _hold(worker: Worker, resource: Resource, asked: Asked) -> Representation | Fault:
    """Open the large file that answers; where it has changed since it was looked at, look again."""
    path = resource.plain.file.path
    for _ in range(_LOOKS):
        chosen = _choose(resource, asked)
        try:
            if chosen.file.content is not None or chosen.file.hold():
                return chosen
        except OSError as error:
            return fault_of(path, error)
        worker.files.forget(path)
        found = worker.files.find(path, resource.real)
        if not isinstance(found, Resource):
            return found or Fault(404, f"{os.fsdecode(path)} is a directory")
        resource = found
    return Fault(503, f"{os.fsdecode(path)} changes all the time", retry_after=1)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status, the begin of its head, its length where one is said, and what it is made of."""

    status: int
    start: Start
    length: int | None
    pieces: Sequence[Piece] = ()


def _whole(chosen: Representation) -> Answer:
    size = chosen.file.size
    return Answer(200, chosen.start, size, [(0, size)] if size else [])


def _in_part(chosen: Representation, parts: list[Part]) -> Answer:
    """Return the answer by one part as it is, by several as section 14.6 has them, or by none: 416."""
    size = chosen.file.size
    if not parts:
        return Answer(416, encode_start(416, b"", [(b"Content-Range", b"bytes */%d" % size)]), 0)
    ranges = [b"bytes %d-%d/%d" % (begin, end - 1, size) for begin, end in parts]
    pieces: list[Piece]
    if len(parts) == 1:
        pieces = [*parts]
        fields = [*chosen.fields, (b"Content-Range", ranges[0])]
    else:
        boundary = os.urandom(12).hex().encode()
        pieces = []
        for part, told in zip(parts, ranges, strict=True):
            head = b"\r\n--%s\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n" % (boundary, chosen.media_type, told)
            pieces += [head, part]
        pieces.append(b"\r\n--%s--\r\n" % boundary)
        fields = [(b"Content-Type", b"multipart/byteranges; boundary=" + boundary), *chosen.fields[1:]]
    length = sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
    return Answer(206, encode_start(206, b"", fields), length, pieces)


def _respond(worker: Worker, exchange: Exchange, chosen: Representation, answer: Answer | Fault) -> None:
    """Send the answer; the file, if it is large, is held for GET and released here or by its transfer."""
    file, content = chosen.file, chosen.file.content
    is_held = content is None and exchange.request.method == b"GET"
    if isinstance(answer, Fault):
        exchange.fail(answer)
    else:
        exchange.begin_with(answer.status, answer.start, answer.length)
        if is_held and answer.pieces:
            Transfer(worker, exchange, file, answer.pieces).begin()
            return
        if content is None or exchange.needs_no_more:
            exchange.end()
        else:
            parts = [piece if isinstance(piece, bytes) else content[slice(*piece)] for piece in answer.pieces]
            exchange.end(b"".join(parts))
    if is_held:
        file.release()
