"""The options that concern TLS, and what they and the configuration file's keys stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fcgi_pool.listener import Address, AddressError
from gateway.settings import KeyPair, Tls
from gateway.tls.certificates import TlsError, read_authorities, read_pair
from gateway.usage import UsageError

if TYPE_CHECKING:
    import argparse

VERSIONS = ("1.2", "1.3")
VERIFY = ("off", "optional", "require")
_OPTIONS = {"certificate": "--tls-cert", "key": "--tls-key", "client_ca": "--tls-client-ca"}


def add_tls_options(add: Callable[..., Any]) -> None:
    """Add the options by `add`, the add_argument of a parser."""
    add("--tls-cert", action="append", default=[], metavar="FILE",
        help="serve https with this certificate chain (PEM); repeatable: a client gets the one for the name it asks "
        "for, else the first")  # fmt: skip
    add("--tls-key", action="append", default=[], metavar="FILE",
        help="its private key (default: in the same file); as many as there are certificates, or none")  # fmt: skip
    add("--tls-listen", action="append", default=[], metavar="ADDRESS",
        help="speak TLS at HOST:PORT, and none at those of --listen; repeatable (default: TLS at all but Unix sockets)")
    add("--tls-minimum", choices=VERSIONS, default=VERSIONS[0], help="the lowest version of TLS (default 1.2)")
    add("--tls-client-ca", metavar="FILE", default="", help="authorities (PEM) that certificates of clients are from")
    add("--tls-verify-client", choices=VERIFY, default=VERIFY[0],
        help="ask clients for a certificate; with require, one without is answered 400")  # fmt: skip


def tls_of(options: argparse.Namespace) -> Tls | None:
    """Return what the options stand for, None without TLS; raise UsageError."""
    certificates, keys = options.tls_cert, options.tls_key
    if not certificates:
        for option in ("tls_key", "tls_listen", "tls_client_ca"):
            if value := getattr(options, option):
                name = "--" + option.replace("_", "-")
                given = value if isinstance(value, str) else value[0]
                raise UsageError(f"{name} {given}: there is no certificate; name it by --tls-cert")
        return None
    if keys and len(keys) != len(certificates):
        counts = f"{len(certificates)} of --tls-cert, {len(keys)} of --tls-key"
        raise UsageError(f"--tls-key {keys[-1]}: {counts}; give one key for each certificate, in the same order")
    pairs = [
        KeyPair(os.path.abspath(certificate), os.path.abspath(key))
        for certificate, key in zip(certificates, keys or certificates, strict=True)
    ]
    listen = []
    for text in options.tls_listen:
        try:
            listen.append(Address.parse(text))
        except AddressError as error:
            raise UsageError(f"--tls-listen {text}: {error}") from None
        if listen[-1].path:
            raise UsageError(f"--tls-listen {text}: TLS is for TCP; write HOST:PORT")
    authorities = os.path.abspath(options.tls_client_ca) if options.tls_client_ca else ""
    tls = Tls(tuple(pairs), tuple(listen), options.tls_minimum, authorities, options.tls_verify_client)
    try:
        check(tls)
    except TlsError as error:
        raise UsageError(f"{_OPTIONS.get(error.field, '--tls-verify-client')} {error}") from None
    return tls


def check(tls: Tls) -> None:
    """Raise TlsError if `tls` cannot be spoken."""
    for number, pair in enumerate(tls.pairs):
        read_pair(pair, number)
    if tls.client_ca and tls.verify_client == "off":
        raise TlsError("client_ca", tls.client_ca, "no client is asked; write optional or require for verify_client")
    if not tls.client_ca and tls.verify_client != "off":
        words = "whom are certificates to be from? name a PEM file of authorities by client_ca"
        raise TlsError("verify_client", tls.verify_client, words)
    read_authorities(tls.client_ca)


def plain(listen: Sequence[Address], tls: Tls | None) -> tuple[Address, ...]:
    """Return of the addresses that are listened on those that are not named for TLS alone; a free port is another."""
    return tuple(address for address in listen if not tls or not address.port or address not in tls.listen)
