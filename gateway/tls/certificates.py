"""Certificates as the files hold them: read by the master, which alone may read the keys, and again when they change.

A worker has given up its rights when a certificate is renewed, so it is given the bytes, never a path.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.settings import KeyPair, Tls
from gateway.tls.x509 import X509, BadCertificate, parse_certificate, pem_certificates

# Reasons of OpenSSL's at its level of security, 2, which is the standard library's.
_WEAK = {
    "EE_KEY_TOO_SMALL": "the key is weak; take RSA of 2048 bits or EC",
    "CA_MD_TOO_WEAK": "a signature is of MD5 or SHA-1; have the certificate made anew",
    "CA_KEY_TOO_SMALL": "the key of an authority is weak; take another",
}
# The files are looked at so often, in seconds.
_LOOK = 1.0
# A file written to so lately, in seconds, may be written to again without a change of its times.
_FRESH = 2.0
_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN (?:RSA |EC |DSA |ENCRYPTED )?PRIVATE KEY-----")
_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)



class TlsError(ValueError):
    """Files that make no TLS server; the text says what is wrong with `path` and what would be right.

    `field` is "certificate", "key" or "client_ca", `number` which of the pairs it is about, from 0.
    """

    def __init__(self, field: str, path: str, words: str, number: int = 0) -> None:
        super().__init__(f"{path}: {words}")
        self.field = field
        self.path = path
        self.number = number


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its key, `pem`, and what its first certificate, the server's own, says."""

    pem: bytes
    leaf: X509


def read_pair(pair: KeyPair, number: int = 0) -> Certificate:
    """Return what a pair of files holds; raise TlsError."""
    chain = _read("certificate", pair.certificate, number)
    key = chain if pair.key == pair.certificate else _read("key", pair.key, number)
    if not _CERTIFICATE.search(chain):
        raise TlsError("certificate", pair.certificate, "there is no certificate in it; name a PEM file", number)
    if not _KEY.search(key):
        how = "name the key's file, too" if key is chain else "name a PEM file"
        raise TlsError("key", pair.key, f"there is no private key in it; {how}", number)
    if _ENCRYPTED.search(key):
        raise TlsError("key", pair.key, "the key is encrypted; store it without a passphrase, for root alone", number)
    pem = chain if key is chain else chain + b"\n" + key
    try:
        load_pem(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem)
        leaf = parse_certificate(pem_certificates(chain)[0])
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            words = f"the key is not that of the certificate in {pair.certificate}; name the pair that belongs together"
            raise TlsError("key", pair.key, words, number) from None
        why = (error.reason or str(error)).lower().replace("_", " ")
        how = _WEAK.get(error.reason or "", "name a PEM file")
        words = f"no certificate with its private key that OpenSSL takes ({why}); {how}"
        raise TlsError("certificate", pair.certificate, words, number) from None
    except (BadCertificate, IndexError) as error:
        raise TlsError("certificate", pair.certificate, str(error), number) from None
    return Certificate(pem, leaf)


def read_authorities(path: str) -> str:
    """Return the certificates of authorities in a file, PEM, '' for no file; raise TlsError."""
    if not path:
        return ""
    try:
        found = pem_certificates(_read("client_ca", path, 0))
        for der in found:
            parse_certificate(der)
    except BadCertificate as error:
        raise TlsError("client_ca", path, str(error)) from None
    if not found:
        raise TlsError("client_ca", path, "there is no certificate in it; name a PEM file of authorities")
    return "".join(map(ssl.DER_cert_to_PEM_cert, found))


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Have a context show a certificate, whose key is in the same text; raise ssl.SSLError."""
    # The library reads files alone; this one has no name, and is the process's own.
    with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _read(field: str, path: str, number: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if isinstance(error, PermissionError):
            words = f"{error.strerror} for {_who_we_are()}; it is read by who starts the server, not by its user"
        else:
            words = f"{error.strerror}; name a readable PEM file"
        raise TlsError(field, path, words, number) from None


def _who_we_are() -> str:
    try:
        return f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
    except KeyError:
        return f"uid {os.geteuid()}"


class Credentials:
    """What the master has read for `tls`, and what it keeps of it from one reading of the settings to the next.

    `root`: the context that every connection begins with. It has the keys of the session tickets, which OpenSSL makes
    with a context and which cannot be had otherwise: workers share them by being forked after it was made, and clients
    resume their sessions with any of them, before and after a reload. It is made anew where other clients would be
    trusted: whom a ticket names was verified once, by what held then. Raises TlsError.
    """

    def __init__(self, tls: Tls, before: Credentials | None) -> None:
        self.tls = tls
        self._marks = _marks(tls)
        self.certificates = [read_pair(pair, number) for number, pair in enumerate(tls.pairs)]
        self.authorities = read_authorities(tls.client_ca)
        trust = (tls.verify_client, self.authorities)
        known = before and (before.tls.verify_client, before.authorities) == trust
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.root: ssl.SSLContext = before.root if before and known else fresh
        self.due = time.monotonic() + _LOOK
        self._said = ""

    def look(self, now: float, complain: Callable[[str], None]) -> bool:
        """Look at the files if that is due; return whether there are other certificates now.

        What cannot be used, since only one of a pair has been written, say, changes nothing and is complained of once.
        """
        if now < self.due:
            return False
        self.due = now + _LOOK
        marks = _marks(self.tls)
        if marks == self._marks:
            return False
        self._marks = marks
        try:
            found = [read_pair(pair, number) for number, pair in enumerate(self.tls.pairs)]
        except TlsError as error:
            if str(error) != self._said:
                self._said = str(error)
                complain(f"the certificates stay as they were: {error}")
            return False
        self._said = ""
        is_other = found != self.certificates
        self.certificates = found
        return is_other

    def encode(self) -> bytes:
        """Return the certificates with their keys, for a worker."""
        return json.dumps([certificate.pem.decode("latin-1") for certificate in self.certificates]).encode()


def decode(data: bytes) -> list[Certificate]:
    """Return the certificates that were encoded."""
    pems = [text.encode("latin-1") for text in json.loads(data)]
    return [Certificate(pem, parse_certificate(pem_certificates(pem)[0])) for pem in pems]


def _marks(tls: Tls) -> list[object]:
    """Return what changes when one of the files does."""
    found: list[object] = []
    for path in sorted({path for pair in tls.pairs for path in (pair.certificate, pair.key)}):
        try:
            status = os.stat(path)
        except OSError as error:
            found.append(error.errno)
            continue
        is_fresh = time.time() - status.st_ctime < _FRESH
        mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_uid)
        found.append((mark, time.monotonic() if is_fresh else 0))
    return found
