"""From a program's output to the client's response: judged, held, kept for a slow client, ended or cut off.

The same for every kind of program; where the bytes come from and how the program ends is its handler's business.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

from gateway.cgi.output import Header, HeaderReader
from gateway.dispatch import REDIRECTS
from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.http.compression import coding_for
from gateway.spill import Spill

if TYPE_CHECKING:
    from gateway.worker import Worker

# Most programs end right after their last byte. Waiting this long, in seconds, for the end makes one write of head and
# body, with a Content-Length; a program that goes on is not held up longer.
_HOLD = 0.005
_HOLD_SIZE = 16 * 1024

_NPH_STATUS = re.compile(rb"HTTP/[0-9.]+ ([1-9][0-9]{2})\b")


class Relay:
    """Passes the output of one program on as the response of `exchange`.

    With `is_raw` (``nph-`` programs) no header is read and every byte is the client's.
    """

    __slots__ = (
        "_discards", "_ending", "_exchange", "_held", "_reader", "_spill", "_timer", "_worker", "is_last", "redirect",
    )  # fmt: skip

    def __init__(self, worker: Worker, exchange: Exchange, is_raw: bool) -> None:
        self._worker = worker
        self._exchange = exchange
        self._reader: HeaderReader | None = None if is_raw else HeaderReader()
        self._held: bytes | None = None  # first output, until more is known
        self._spill: Spill | None = None
        self._discards = False
        self.is_last = False  # the program has ended, and its output follows whole
        self._timer: asyncio.TimerHandle | None = None
        self._ending: str | None = None  # the output has ended: well for "", else why it is a stump
        self.redirect: Header | None = None  # a redirect within the server, unless a body follows

    @property
    def has_header(self) -> bool:
        """Whether the program gave a header, or, if it is its own server, a first byte."""
        return self.redirect is not None or self._exchange.is_begun

    @property
    def first_bytes(self) -> bytes:
        """What a program without a header has written, for an explanation."""
        return self._reader.first_bytes if self._reader else b""

    @property
    def is_full(self) -> bool:
        """Whether the program should not be read from until the client has caught up."""
        return self._spill is not None and self._spill.is_full

    def take(self, data: bytes) -> None:
        """Take output. Raise BadOutput if it is no response; the response is then still to be begun."""
        if self._discards:
            return
        if self._exchange.is_begun:
            self._pass_on(data)
        elif self._reader:
            found = self._reader.feed(data)
            if found:
                self._reader = None
                header, rest = found
                if header.is_handed_on or (header.local_redirect and not rest):
                    self.redirect = header
                else:
                    self._begin(header, rest)
        elif self.redirect:
            if not self.redirect.is_handed_on:
                self._begin(self.redirect, data)
        else:
            match = _NPH_STATUS.match(data)
            self._exchange.begin_raw(int(match[1]) if match else 200)
            self._pass_on(data)

    def _begin(self, header: Header, data: bytes) -> None:
        self.redirect = None
        exchange = self._exchange
        coding = None
        if self._worker.settings.compress:
            coding = coding_for(exchange.request, header.status, header.reason, header.fields, header.content_length)
        if coding:
            exchange.begin_coded(header.status, coding, header.content_length)
        else:
            exchange.begin_with(header.status, header.start, header.content_length)
        if exchange.needs_no_more:
            self._complete(b"")
        elif header.content_length == len(data) or len(data) > _HOLD_SIZE:
            self._pass_on(data)
        else:
            self._held = data
            if self.is_last:
                return
            self._timer = self._worker.loop.call_later(_HOLD, self.release)

    def release(self) -> None:
        """Send what is held: the program goes on, and what it has written is due, even if it is only the header."""
        held, self._held = self._held, None
        if held is not None:
            self._cancel_timer()
            self._write(held)

    def _pass_on(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            if len(self._held) > _HOLD_SIZE:
                self.release()
        elif self._spill or self._exchange.is_congested:
            if self._spill is None:
                self._spill = Spill(self._worker.settings.temp_dir)
            self._spill.append(data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        self._exchange.write(data)
        if self._exchange.needs_no_more:
            self._complete(b"")

    def follow(self, redirects: int, name: str) -> None:
        """Have what the header names answer: a path of this server, the next after `redirects` of them, or a file."""
        exchange, header = self._exchange, self.redirect
        assert header
        self.discard()
        if header.is_handed_on:
            exchange.carried = header.fields
        if header.file is not None:
            self._send_file(header.file, name)
            return
        redirect = header.accelerated or header.local_redirect or b""
        if redirects >= REDIRECTS:
            exchange.fail(Fault(502, f"{name} redirects within the server for the {REDIRECTS + 1}th time"))
            return
        path, _, query = redirect.partition(b"?")
        exchange.responder = None
        exchange.request = exchange.request.redirected(path, query)
        self._worker.route(exchange, redirects + 1)

    def _send_file(self, path: bytes, name: str) -> None:
        """Have a file answer that a program names, if it is where the route says."""
        exchange = self._exchange
        root = exchange.policy.sendfile_root if exchange.policy else b""
        exchange.responder = None
        if not root:
            words = f"{name} names a file by X-Sendfile; the route has no sendfile_root, below which that is allowed"
            exchange.fail(Fault(502, words))
        elif not os.path.realpath(path).startswith(os.path.realpath(root).rstrip(b"/") + b"/"):
            exchange.fail(Fault(502, f"{name} names {os.fsdecode(path)!a} by X-Sendfile, which is not below the root"))
        else:
            exchange.request = exchange.request.redirected(exchange.request.path, exchange.request.query)
            self._worker.send_file(exchange, os.path.realpath(path))

    def client_ready(self) -> None:
        """The client takes bytes again: first those that were kept for it."""
        spill = self._spill
        while spill and not self._exchange.is_congested and not self._exchange.is_ended:
            self._write(spill.take())
        if self._ending is not None and not spill:
            self.finish(self._ending)

    def finish(self, stump: str) -> None:
        """The output has ended: well if `stump` is empty, else it says why the response is incomplete.

        What a slow client has not taken yet is still sent.
        """
        self._ending = stump
        if self._spill or self._exchange.is_ended:
            return
        held, self._held = self._held, None
        if not stump and held is not None and not self._exchange.bytes_missing:
            self._complete(held)
            return
        if held is not None:
            self._exchange.write(held)
        missing = self._exchange.bytes_missing
        if not stump and missing:
            stump = f"it wrote {missing} bytes less than its Content-Length says"
        if stump:
            self.cut_off(stump, "truncated")
        else:
            self._complete(b"")

    def cut_off(self, why: str, outcome: str) -> None:
        """End the response where it is, in a way that the client notices."""
        self.release()
        self._worker.error_log.error(f"response cut off: {why}", self._exchange.id)
        self._exchange.truncate(outcome)
        self.discard()

    def discard(self) -> None:
        """The client gets nothing more."""
        self._discards = True
        self._held = None
        self._cancel_timer()
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def _complete(self, last: bytes) -> None:
        self._exchange.end(last)
        self.discard()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
