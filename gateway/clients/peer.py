"""The two ends of a connection: who is at the other, as far as that is known and believed."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from gateway.cgi.variables import connection_variables
from gateway.tls.variables import tls_variables

if TYPE_CHECKING:
    from gateway.tls.contexts import TlsObject

# Clients of one proxy's connection that are kept with their variables.
_BEHIND = 16

End = tuple[str, int]


class Peer:
    """A client, and where it reached us. `client` and `local` are None over a Unix socket.

    `notes` are the variables encoded for FastCGI, by the host that is asked for. `key` is what the client is counted
    by, 0 if it is not, None as long as nobody has asked; `seat` under what its connection is counted, 0 if it is not;
    `is_over`: this connection is one too many.
    """

    __slots__ = (
        "_behind", "_socket", "_variables", "address", "client", "is_over", "key", "local", "notes", "scheme",
        "seat", "secured", "tls",
    )  # fmt: skip

    def __init__(
        self,
        client: End | None,
        tls: bool,
        accepted: socket.socket | None = None,
        local: End | None = None,
        scheme: str = "",
    ) -> None:
        """Without `local`, it is what `accepted` says, once somebody asks. `scheme`: another than `tls` tells."""
        self.client = client
        self.address = client[0] if client else "unix:"
        self.tls = tls
        self.local = local
        self.scheme = scheme or ("https" if tls else "http")
        self.notes: dict[bytes | None, bytes] = {}
        self.key: int | None = None
        self.seat = 0
        self.is_over = False
        # Once it is agreed. Clients behind this one have none: what a proxy has shown of itself is not theirs.
        self.secured: TlsObject | None = None
        self._socket = accepted
        self._variables: dict[bytes, bytes] | None = None
        self._behind: dict[tuple[End | None, str], Peer] | None = None

    def __repr__(self) -> str:
        return f"<Peer: {self.address} {self.scheme}>"

    @property
    def variables(self) -> dict[bytes, bytes]:
        """The CGI variables that are the same for every request of this client here."""
        if self._variables is None:
            self._locate()
            self._variables = connection_variables(self.client, self.local, self.scheme, self.scheme == "https")
            if self.secured:
                self._variables |= tls_variables(self.secured)
        return self._variables

    def speaks_plain(self) -> None:
        """Take back that the connection has TLS."""
        self.tls = False
        self.scheme = "http"

    def behind(self, client: End | None, scheme: str) -> Peer:
        """Return the client whose request this one, a proxy, passes on; `scheme` '' is this connection's."""
        if self._behind is None:
            self._behind = {}
        known = self._behind.get((client, scheme))
        if known is None:
            if len(self._behind) >= _BEHIND:
                self._behind.clear()
            self._locate()
            known = Peer(client, self.tls, None, self.local, scheme or self.scheme)
            self._behind[client, scheme] = known
        return known

    def _locate(self) -> None:
        if self._socket:
            name = self._socket.getsockname()
            self.local = (name[0], name[1]) if isinstance(name, tuple) else None
            self._socket = None
