"""The header by which a proxy tells whose connection it passes on: PROXY protocol, versions 1 and 2. Pure.

The specification is HAProxy's doc/proxy-protocol.txt (2020/03/05). A header stands before everything else, TLS too, and
a receiver never guesses whether there is one: what is none ends the connection (section 2). Here the header is judged
by all the bytes that have come so far, so the verdict does not depend on how they were cut; where one byte is enough to
tell that it is none, nothing more is waited for.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

# Section 2.2. It can be no line of version 1, of HTTP or of TLS.
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LINE_BEGIN = b"PROXY "
# Section 2.1: the longest line, with its CRLF: UNKNOWN and two IPv6 addresses written out.
_LONGEST_LINE = 107
_LINE_END = b"\r\n"
# Section 2.2: signature, version and command, family and protocol, length.
_START = struct.Struct("!12sBBH")
# With all that follows the addresses (TLVs: the SSL one may hold a certificate's name). nginx 4096.
LONGEST = 4096

_LOCAL, _PROXY = 0, 1
# Section 2.1: decimal, no leading zeros.
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

_INET, _INET6, _UNIX = 1, 2, 3
_PROTOCOLS = (0, 1, 2)  # unspecified, stream, datagram
# Bytes of both ends: addresses and ports, or two paths of 108 bytes.
_ENDS_SIZE = {0: 0, _INET: 12, _INET6: 36, _UNIX: 216}

End = tuple[str, int]


class BadHeader(ValueError):
    """Bytes that begin no header of the PROXY protocol; the text says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header of `length` bytes.

    `source` and `destination` are (address, port) of the connection that the proxy accepted. Both are None where it
    tells of none: its own connection, to see whether we live (`is_local`), or one over a Unix socket or unknown.
    """

    length: int
    source: End | None = None
    destination: End | None = None
    is_local: bool = False


def parse_header(data: bytes) -> ProxyHeader | None:
    """Return the header that `data` begins with, None if more must come to tell; raise BadHeader."""
    if data[:1] == SIGNATURE[:1]:
        return _version_2(data)
    return _version_1(data)


def _version_1(data: bytes) -> ProxyHeader | None:
    """Section 2.1, a line: ``PROXY TCP4 192.0.2.1 192.0.2.2 50000 443``."""
    begin = data[: len(_LINE_BEGIN)]
    if not _LINE_BEGIN.startswith(begin):
        raise BadHeader("it does not begin with PROXY")
    end = data.find(b"\r", 0, _LONGEST_LINE)
    if end < 0 or len(data) == end + 1:
        # The CR is the last but one byte at the latest.
        if len(data) >= _LONGEST_LINE:
            raise BadHeader(f"the line is longer than {_LONGEST_LINE} bytes")
        if b"\n" in data:
            raise BadHeader("a line feed stands alone")
        return None
    if end + 2 > _LONGEST_LINE or b"\n" in data[:end] or data[end : end + 2] != _LINE_END:
        raise BadHeader("the line does not end in CR LF")
    words = data[:end].split(b" ")
    length = end + 2
    if words[1] == b"UNKNOWN":
        return ProxyHeader(length)
    if words[1] not in (b"TCP4", b"TCP6") or len(words) != 6:
        raise BadHeader("the line has not the six words of TCP4 or TCP6")
    family = IPv4Address if words[1] == b"TCP4" else IPv6Address
    return ProxyHeader(length, _end(family, words[2], words[4]), _end(family, words[3], words[5]))


def _end(family: type[IPv4Address] | type[IPv6Address], address: bytes, port: bytes) -> End:
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise BadHeader("a port is no number from 0 to 65535")
    if b"%" in address:
        raise BadHeader("an address has a zone")
    try:
        return str(family(address.decode("ascii"))), int(port)
    except (AddressValueError, UnicodeDecodeError):
        raise BadHeader("an address is none of its family") from None


def _version_2(data: bytes) -> ProxyHeader | None:
    """Section 2.2, binary."""
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise BadHeader("it does not begin with the signature of version 2")
    if len(data) > 12 and (data[12] >> 4 != 2 or data[12] & 15 not in (_LOCAL, _PROXY)):
        raise BadHeader("the version is not 2, or the command neither LOCAL nor PROXY")
    if len(data) > 13 and (data[13] >> 4 not in _ENDS_SIZE or data[13] & 15 not in _PROTOCOLS):
        raise BadHeader("the family or protocol is unknown")
    if len(data) < _START.size:
        return None
    _, command, family, size = _START.unpack_from(data)
    command, family = command & 15, family >> 4
    length = _START.size + size
    if length > LONGEST:
        raise BadHeader(f"it is longer than {LONGEST} bytes")
    if command == _PROXY and size < _ENDS_SIZE[family]:
        raise BadHeader("it is too short for its addresses")
    if len(data) < length:
        return None
    if command == _LOCAL:
        # "The receiver must use the real connection endpoints and ignore the protocol block."
        return ProxyHeader(length, is_local=True)
    if family == _INET:
        source, destination, source_port, destination_port = struct.unpack_from("!4s4sHH", data, _START.size)
        return ProxyHeader(
            length, (str(IPv4Address(source)), source_port), (str(IPv4Address(destination)), destination_port)
        )
    if family == _INET6:
        source, destination, source_port, destination_port = struct.unpack_from("!16s16sHH", data, _START.size)
        return ProxyHeader(
            length, (str(IPv6Address(source)), source_port), (str(IPv6Address(destination)), destination_port)
        )
    return ProxyHeader(length)
