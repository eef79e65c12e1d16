"""The little of X.509 that is needed: whose a certificate is, by whom, for how long and for which names. Pure.

RFC 5280 in DER (X.690). OpenSSL has read every certificate before it comes here, and verified a client's; but it tells
the standard library's callers of names neither in the form nor in the order of RFC 2253, and of dates nothing at all
unless it has verified them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

_PEM = re.compile(
    rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END \1?CERTIFICATE-----"
)

_INTEGER, _BIT_STRING, _OCTET_STRING, _OID, _SEQUENCE, _SET = 0x02, 0x03, 0x04, 0x06, 0x30, 0x31
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87  # of GeneralName, RFC 5280 section 4.2.1.6
_ALTERNATIVE_NAMES = "2.5.29.17"

# How the strings of a name are coded. T61String is in practice Latin-1.
_STRINGS = {
    0x0C: "utf-8", 0x12: "ascii", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1A: "ascii", 0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}  # fmt: skip

# The short names that OpenSSL, and so nginx and Apache, write.
_ATTRIBUTES = {
    "2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
    "2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
    "2.5.4.15": "businessCategory", "2.5.4.16": "postalAddress", "2.5.4.17": "postalCode",
    "2.5.4.20": "telephoneNumber", "2.5.4.41": "name", "2.5.4.42": "GN", "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.46": "dnQualifier", "2.5.4.65": "pseudonym", "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName", "1.3.6.1.4.1.311.60.2.1.1": "jurisdictionL",
    "1.3.6.1.4.1.311.60.2.1.2": "jurisdictionST", "1.3.6.1.4.1.311.60.2.1.3": "jurisdictionC",
}  # fmt: skip

_RSA = "1.2.840.113549.1.1.1"
_KEYS = {_RSA: "RSA", "1.2.840.113549.1.1.10": "RSA", "1.2.840.10045.2.1": "EC", "1.3.101.112": "Ed25519",
         "1.3.101.113": "Ed448", "1.2.840.10040.4.1": "DSA"}  # fmt: skip

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class BadCertificate(ValueError):
    """Bytes that are no certificate; the text says why."""


@dataclass(frozen=True, slots=True)
class X509:
    """A certificate. `names` are its DNS names in lower case, `addresses` how many IP addresses it is for.

    `subject` and `issuer` are as RFC 2253 writes them, the serial number as hexadecimal digits. `key_size` is in bits,
    0 where its kind says it.
    """

    der: bytes = field(repr=False)
    subject: str
    issuer: str
    serial: str
    begins: datetime
    ends: datetime
    names: tuple[str, ...]
    addresses: int
    key: str
    key_size: int


def pem_certificates(pem: bytes) -> list[bytes]:
    """Return the certificates of a PEM text, DER, in their order; raise BadCertificate."""
    try:
        return [base64.b64decode(b"".join(block.split()), validate=True) for _, block in _PEM.findall(pem)]
    except binascii.Error:
        raise BadCertificate("a certificate in it is not in base64") from None


def parse_certificate(der: bytes) -> X509:
    """Return what a certificate says; raise BadCertificate."""
    try:
        return _certificate(der)
    except (IndexError, ValueError, OverflowError) as error:
        if isinstance(error, BadCertificate):
            raise
        raise BadCertificate(f"not a certificate: {error}") from None


def _certificate(der: bytes) -> X509:
    tbs, _, _ = _children(_only(der, _SEQUENCE))
    parts = list(_elements(tbs[1]))
    if parts[0][0] == _VERSION:
        del parts[0]
    serial, _, issuer, validity, subject, key = parts[:6]
    begins, ends = (_moment(tag, content) for tag, content in _children(validity[1]))
    names, addresses = _alternative_names(next((content for tag, content in parts[6:] if tag == _EXTENSIONS), b""))
    kind, size = _key(key[1])
    return X509(
        der,
        _name(subject[1]),
        _name(issuer[1]),
        _hexadecimal(serial[1]),
        begins,
        ends,
        names,
        addresses,
        kind,
        size,
    )


def when(moment: datetime) -> str:
    """Return a moment as OpenSSL, nginx and Apache write it: ``Nov  5 16:00:00 2026 GMT``."""
    return f"{_MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S} {moment.year} GMT"


# -- DER


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of `data`."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if tag & 0x1F == 0x1F:
            raise BadCertificate("a tag of several bytes")
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or at + count > len(data):
                raise BadCertificate("a length that is none")
            size = int.from_bytes(data[at : at + count])
            at += count
        if at + size > len(data):
            raise BadCertificate("it is cut off")
        yield tag, data[at : at + size]
        at += size


def _children(data: bytes) -> list[tuple[int, bytes]]:
    return list(_elements(data))


def _only(data: bytes, wanted: int) -> bytes:
    """Return the content of the one element that `data` is."""
    (tag, content), *more = _elements(data)
    if tag != wanted or more:
        raise BadCertificate("another structure than a certificate's")
    return content


def _oid(data: bytes) -> str:
    numbers: list[int] = []
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _moment(tag: int, content: bytes) -> datetime:
    """RFC 5280 section 4.1.2.5: seconds are there, and the zone is Z."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise BadCertificate("a date of another type")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _hexadecimal(content: bytes) -> str:
    number = int.from_bytes(content, signed=True)
    digits = f"{abs(number):X}"
    return ("-" if number < 0 else "") + ("0" if len(digits) % 2 else "") + digits


# -- names


def _name(content: bytes) -> str:
    """Return a distinguished name as RFC 2253 has it, the last part first."""
    parts = []
    for tag, relative in _elements(content):
        if tag != _SET:
            raise BadCertificate("a name of another structure")
        parts += ["+".join([_attribute(*_children(pair)) for _, pair in _elements(relative)][::-1])]
    return ",".join(reversed(parts))


def _attribute(kind: tuple[int, bytes], value: tuple[int, bytes]) -> str:
    oid = _oid(kind[1])
    name = _ATTRIBUTES.get(oid)
    coding = _STRINGS.get(value[0])
    if not name or not coding:
        # Section 2.4: what is not known is shown as it is coded.
        return f"{name or oid}=#{_encoded(*value).hex().upper()}"
    return f"{name}={_escaped(value[1].decode(coding, 'replace'))}"


def _encoded(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def _escaped(text: str) -> str:
    found = []
    for at, letter in enumerate(text):
        if letter in ',+"\\<>;' or (letter in "# " and at == 0) or (letter == " " and at == len(text) - 1):
            found.append("\\" + letter)
        elif " " <= letter <= "~":
            found.append(letter)
        else:
            # As OpenSSL does, also beyond what section 2.4 asks for: the value is ASCII, without control characters.
            found += [f"\\{byte:02X}" for byte in letter.encode("utf-8", "replace")]
    return "".join(found)


def _alternative_names(extensions: bytes) -> tuple[tuple[str, ...], int]:
    names: list[str] = []
    addresses = 0
    for _, extension in _elements(_only(extensions, _SEQUENCE) if extensions else b""):
        (_, oid), *_, (_, value) = _elements(extension)
        if _oid(oid) == _ALTERNATIVE_NAMES:
            for tag, content in _elements(_only(value, _SEQUENCE)):
                if tag == _DNS_NAME:
                    names.append(content.decode("ascii").lower())
                addresses += tag == _IP_ADDRESS
    return tuple(dict.fromkeys(names)), addresses


def _key(content: bytes) -> tuple[str, int]:
    (_, algorithm), (_, bits) = _children(content)
    oid = _oid(_children(algorithm)[0][1])
    if oid != _RSA:
        return _KEYS.get(oid, oid), 0
    modulus = _children(_only(bits[1:], _SEQUENCE))[0][1]
    return "RSA", int.from_bytes(modulus).bit_length()
