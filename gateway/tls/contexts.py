"""Which certificate is shown to whom, by the name that the client asks for (SNI, RFC 6066 section 3)."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterable

from gateway.settings import Tls
from gateway.tls.certificates import Certificate, Credentials, load_pem

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsObject(ssl.SSLObject):
    """The TLS of one connection; `asked_name` is what the client asked for."""

    asked_name = ""


class ServerContexts:
    """One worker's contexts: one for each set of names, and the root, in which every handshake begins.

    Tickets are coded and read by the context that a handshake began in, whichever is chosen in it.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._tls = credentials.tls
        self._authorities = credentials.authorities
        # This process's copy of what the master has.
        self._root = root = credentials.root
        _set_up(root, self._tls, self._authorities)
        root.sslobject_class = TlsObject
        root.sni_callback = self._choose
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._by_domain: dict[str, ssl.SSLContext] = {}
        self._default = root
        self.take(credentials.certificates)
        sys.unraisablehook = _pass_over_bad_names

    @property
    def requires_certificate(self) -> bool:
        """Whether only clients with a certificate are served."""
        return self._tls.verify_client == "require"

    def take(self, certificates: Iterable[Certificate]) -> None:
        """Show these certificates from now on. Of several for a name the first is shown."""
        # Two for the same names, whose keys are of different kinds, are one context: the client takes what it can.
        contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        for certificate in certificates:
            names = certificate.leaf.names
            context = contexts.get(names)
            if context is None:
                context = contexts[names] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                _set_up(context, self._tls, self._authorities)
            load_pem(context, certificate.pem)
        by_name: dict[str, ssl.SSLContext] = {}
        by_domain: dict[str, ssl.SSLContext] = {}
        for names, context in contexts.items():
            for name in names:
                if name.startswith("*."):
                    by_domain.setdefault(name[2:], context)
                else:
                    by_name.setdefault(name, context)
        self._by_name, self._by_domain = by_name, by_domain
        self._default = next(iter(contexts.values()))

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        context = self._default
        if name:
            if isinstance(connection, TlsObject):
                connection.asked_name = name
            name = name.lower().removesuffix(".")
            # A wildcard stands for one label (RFC 9525 section 6.3).
            context = self._by_name.get(name) or self._by_domain.get(name.partition(".")[2]) or context
        connection.context = context

    def new_object(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> TlsObject:
        """Return the server's side of a connection that has not begun, between two buffers."""
        made = self._root.wrap_bio(incoming, outgoing, server_side=True)
        assert isinstance(made, TlsObject)
        return made


def _set_up(context: ssl.SSLContext, tls: Tls, authorities: str) -> None:
    context.minimum_version = _VERSIONS[tls.minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # A client that offers none of these gets none: the library cannot refuse it, as RFC 7301 section 3.2 asks for.
    context.set_alpn_protocols(["http/1.1"])
    if tls.verify_client != "off":
        # One that is missing is told of in a page, which people can read; an alert says nothing to them.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=authorities)


def _pass_over_bad_names(unraisable: sys.UnraisableHookArgs) -> None:
    """A name that is not ASCII is refused by the library, which complains of it as of a fault in the program."""
    if not isinstance(unraisable.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(unraisable)
