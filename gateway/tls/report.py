"""What ``--check`` says of certificates: what makes clients refuse them, and what soon will."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta

from gateway.settings import KeyPair, Tls
from gateway.tls.certificates import Certificate, read_pair
from gateway.tls.x509 import X509, parse_certificate, pem_certificates, when

# Renewal is usual 30 days ahead; who is told two weeks ahead can still act.
_SOON = timedelta(days=14)


def certificate_report(tls: Tls) -> tuple[list[str], int]:
    """Return what there is to say of the certificates, in lines, and how many of them clients would refuse."""
    lines = []
    refused = 0
    now = datetime.now(UTC)
    for number, pair in enumerate(tls.pairs):
        certificate = read_pair(pair, number)
        leaf = certificate.leaf
        names = ", ".join(leaf.names) or leaf.subject
        rest = ", and for all other names" if not number else ""
        lines.append(f"tls      {pair.certificate}: {names}{rest}; {_kind(leaf)}, until {when(leaf.ends)}")
        failures = _failures(leaf, now)
        lines += [f"  FAILS  {words}" for words in failures]
        lines += [f"  note   {words}" for words in _notes(pair, certificate, now)]
        refused += bool(failures)
    if tls.verify_client != "off":
        count = len(pem_certificates(_bytes(tls.client_ca)))
        lines.append(f"tls      clients: certificates by {tls.client_ca} ({count}), {tls.verify_client}")
    return lines, refused


def _kind(leaf: X509) -> str:
    return f"{leaf.key} {leaf.key_size}" if leaf.key_size else leaf.key


def _failures(leaf: X509, now: datetime) -> list[str]:
    found = []
    if now > leaf.ends:
        found.append(f"it expired on {when(leaf.ends)}; renew it")
    if now < leaf.begins:
        found.append(f"it is not valid before {when(leaf.begins)}; is the clock right?")
    if not leaf.names and not leaf.addresses:
        found.append("it has no subjectAltName, and clients look for names there alone; have it made with one")
    return found


def _notes(pair: KeyPair, certificate: Certificate, now: datetime) -> list[str]:
    leaf = certificate.leaf
    found = []
    if now <= leaf.ends < now + _SOON:
        found.append(f"it expires in {(leaf.ends - now).days} days; renew it")
    subjects = [parse_certificate(der).subject for der in pem_certificates(certificate.pem)]
    if leaf.issuer not in subjects:
        found.append(
            f"the certificate of its issuer, {leaf.issuer}, is not in the file; clients that have not got it refuse"
        )
    if stat.S_IMODE(os.stat(pair.key).st_mode) & 0o004:
        found.append(f"every user of this machine can read the key in {pair.key}; chmod 600")
    return found


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
