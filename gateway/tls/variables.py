"""What programs are told of a connection's TLS, by the names of Apache's mod_ssl, names as RFC 2253 writes them."""

from __future__ import annotations

import ssl

from gateway.tls.contexts import TlsObject
from gateway.tls.x509 import BadCertificate, parse_certificate, when


def tls_variables(connection: TlsObject) -> dict[bytes, bytes]:
    """Return the variables that a connection stands for. All are the server's word: no field of a request makes any."""
    cipher = connection.cipher()
    found = {
        "SSL_PROTOCOL": connection.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_SESSION_RESUMED": "Resumed" if connection.session_reused else "Initial",
    }
    if connection.asked_name:
        found |= {"SSL_TLS_SNI": connection.asked_name, "SSL_SERVER_NAME": connection.asked_name}
    certificate = connection.getpeercert(binary_form=True)
    # OpenSSL has verified it, or there would be no connection; without an authority none is asked for.
    found |= _of_client(certificate) if certificate else {"SSL_CLIENT_VERIFY": "NONE"}
    return {name.encode(): value.encode("latin-1", "replace") for name, value in found.items()}


def _of_client(der: bytes) -> dict[str, str]:
    try:
        client = parse_certificate(der)
    except BadCertificate as bad:
        return {"SSL_CLIENT_VERIFY": f"FAILED:{bad}"}
    return {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": client.subject,
        "SSL_CLIENT_I_DN": client.issuer,
        "SSL_CLIENT_M_SERIAL": client.serial,
        "SSL_CLIENT_V_START": when(client.begins),
        "SSL_CLIENT_V_END": when(client.ends),
        "SSL_CLIENT_CERT": ssl.DER_cert_to_PEM_cert(der),
    }
