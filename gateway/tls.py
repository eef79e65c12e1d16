"""TLS by the standard library."""

from __future__ import annotations

import ssl

from gateway.settings import Tls


class TlsError(ValueError):
    """Files that make no TLS server; the text says what is wrong and what would be right."""


def server_context(files: Tls) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later with the certificate and key in `files`; raise TlsError."""
    for option, path in (("--tls-cert", files.certificate), ("--tls-key", files.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise TlsError(f"{option} {path}: {error.strerror}; name a readable PEM file") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or str(error)
        raise TlsError(
            f"--tls-cert {files.certificate}: no certificate with its private key ({why}); "
            "name a PEM file with both, or the key's file by --tls-key"
        ) from None
    return context
