"""TLS between the transport of a socket and the protocol of a connection, both of asyncio's interface.

What the loops' own TLS does in a transport, a protocol, a state machine and a buffer for each direction is here one
step: what came from the socket is put before OpenSSL and what it makes of it is handed on; what is written goes through
OpenSSL and to the socket. Bytes lie in OpenSSL's buffers only within one call.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol, cast

from gateway.tls.contexts import ServerContexts, TlsObject

# More than a record holds, so that nothing of one is left behind in OpenSSL.
_PIECE = 64 * 1024
# Written in one turn and not yet passed to the socket; beyond, it must learn how much waits.
_CORKED = 64 * 1024
# Not taken by the client. What is above it stops at some 600 KiB, so that is the answers to a client that asks for new
# keys again and again and reads none of them: OpenSSL gives those by itself (RFC 8446 section 4.6.3).
_MOST_WAITING = 1024 * 1024
_HANDSHAKE = 0x16  # the type of a client's first record, RFC 8446 section 5.1


class Host(Protocol):
    """Who is told how a handshake ends."""

    def has_agreed(self, transport: TlsTransport) -> asyncio.Protocol:
        """The handshake is done; return who is served."""

    def is_plain(self) -> asyncio.Protocol:
        """The client speaks HTTP without TLS; return who answers it, without TLS."""

    def has_failed(self, why: str) -> None:
        """No handshake was done, and the socket is closed; `why` is '' where the client went or was sent away."""


class TlsTransport(asyncio.Protocol):
    """The protocol of a socket's transport, and the transport of the protocol above it. `secured`: what was agreed."""

    __slots__ = (
        "_contexts", "_has_said_goodbye", "_host", "_incoming", "_is_corked", "_is_paused", "_outgoing", "_protocol",
        "_raw", "_why", "is_cut_off", "secured",
    )  # fmt: skip

    def __init__(self, contexts: ServerContexts, host: Host) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # Those who connect and say nothing cost no more than this.
        self._contexts: ServerContexts | None = contexts
        self.secured: TlsObject
        self._host = host
        self._raw: asyncio.Transport
        self._protocol: asyncio.Protocol | None = None
        self._is_paused = False
        self._is_corked = False
        self._has_said_goodbye = False
        self._why = ""
        # The end of what was sent is missing: it must not look like an end that was meant (RFC 8446 section 6.1).
        self.is_cut_off = False

    # -- the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client to begin."""
        self._raw = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who is above."""
        protocol, self._protocol = self._protocol, None
        if protocol:
            protocol.connection_lost(exc)
        else:
            self._host.has_failed(self._why)

    def pause_writing(self) -> None:
        """The socket takes less than is written."""
        if self._protocol:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._protocol:
            self._protocol.resume_writing()

    def eof_received(self) -> bool:
        """The client sends no more, and did not say so before: what it sent may be cut off."""
        if self._protocol:
            self._protocol.eof_received()
        return False

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        protocol = self._protocol
        if protocol is None:
            self._shake_hands(data)
        elif self._has_said_goodbye:
            # Nobody will read it: that there was so much is all that is of interest.
            protocol.data_received(data)
        else:
            self._incoming.write(data)
            self._deliver()

    def _shake_hands(self, data: bytes) -> None:
        if self._contexts:
            if data[0] != _HANDSHAKE and (data[:1].isalpha() or data[0] in b"\r\n"):
                protocol = self._host.is_plain()
                self._raw.set_protocol(protocol)
                protocol.connection_made(self._raw)
                protocol.data_received(data)
                return
            self.secured = self._contexts.new_object(self._incoming, self._outgoing)
            self._contexts = None
        self._incoming.write(data)
        try:
            self.secured.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._why = (error.reason or str(error)).lower().replace("_", " ")
            self._flush()  # the alert
            self._raw.close()
            return
        self._protocol = protocol = self._host.has_agreed(self)
        protocol.connection_made(cast(asyncio.Transport, self))
        self._deliver()

    def _deliver(self) -> None:
        """Hand on what has come, in one turn; what is answered meanwhile goes out at its end, in one piece."""
        protocol, read = self._protocol, self.secured.read
        self._is_corked = True
        try:
            while self._incoming.pending and protocol and not self._is_paused and not self._has_said_goodbye:
                data = read(_PIECE)
                if not data:
                    self._client_ended(protocol)
                    break
                protocol.data_received(data)
        except ssl.SSLWantReadError:
            pass  # the rest of a record is on its way
        except ssl.SSLError:
            self._flush()  # the alert
            self.abort()
        finally:
            self._is_corked = False
        if self._outgoing.pending:
            self._flush()
            if self._raw.get_write_buffer_size() > _MOST_WAITING:
                self.abort()

    def _client_ended(self, protocol: asyncio.Protocol) -> None:
        """The client said that it sends no more."""
        if not protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            data = self._outgoing.read()
            if not self._raw.is_closing():
                self._raw.write(data)

    # -- the protocol's side

    def write(self, data: bytes) -> None:
        """Send to the client."""
        if not data or self._has_said_goodbye:
            return
        try:
            self.secured.write(data)
        except ssl.SSLError:
            self.abort()
            return
        if not self._is_corked or self._outgoing.pending > _CORKED:
            self._flush()

    def writelines(self, pieces: list[bytes]) -> None:
        """Send several pieces; of each a record would be made, so they are joined."""
        self.write(b"".join(pieces))

    def can_write_eof(self) -> bool:
        """Whether `write_eof` is to be had."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more is sent; what still comes is not deciphered any more."""
        self._say_goodbye()
        if not self._raw.is_closing():
            self._raw.write_eof()

    def close(self) -> None:
        """Close when all that was written has gone."""
        self._say_goodbye()
        self._raw.close()

    def _say_goodbye(self) -> None:
        """Send close_notify, by which the client knows that the end is the end (RFC 8446 section 6.1)."""
        if not self._has_said_goodbye:
            self._has_said_goodbye = True
            if not self.is_cut_off:
                try:
                    self.secured.unwrap()
                except ssl.SSLError:
                    pass  # it does not wait for the client's
            self._flush()

    def abort(self) -> None:
        """Close at once."""
        self._has_said_goodbye = True
        self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        """Hand nothing on."""
        self._is_paused = True
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Go on, first with what has come already."""
        self._is_paused = False
        if not self._raw.is_closing():
            self._raw.resume_reading()
            if self._incoming.pending:
                asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._protocol and not self._has_said_goodbye and not self._raw.is_closing():
            self._deliver()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """How many bytes wait to be taken by the socket."""
        return self._raw.get_write_buffer_size() + self._outgoing.pending

    def get_extra_info(self, name: str, default: object = None) -> object:
        """See asyncio; ``ssl_object`` is what speaks TLS."""
        return self.secured if name == "ssl_object" else self._raw.get_extra_info(name, default)
