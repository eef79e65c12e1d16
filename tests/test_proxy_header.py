"""The PROXY protocol's header: every family, every cut, every wrong byte (HAProxy, doc/proxy-protocol.txt)."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clients.proxy_header import LONGEST, SIGNATURE, BadHeader, ProxyHeader, parse_header

REST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def v2(command, family, ends=b"", more=b"", size=None):
    """A header of version 2."""
    length = len(ends) + len(more) if size is None else size
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, length) + ends + more


def inet(source="192.0.2.1", destination="198.51.100.2", ports=(50000, 443)):
    pair = [ipaddress.ip_address(text).packed for text in (source, destination)]
    return b"".join(pair) + struct.pack("!HH", *ports)


TLVS = b"\x01\x00\x08http/1.1" + b"\x20\x00\x05\x01\x00\x00\x00\x00" + b"\x04\x00\x03\x00\x00\x00"
IPV4 = (("192.0.2.1", 50000), ("198.51.100.2", 443))
IPV6 = (("2001:db8::1", 50000), ("2001:db8::2", 443))

GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\r\n", *IPV4, False),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535),
     ("255.255.255.255", 65535), False),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ("0.0.0.0", 0), ("0.0.0.0", 0), False),
    (b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 50000 443\r\n", *IPV6, False),
    (b"PROXY UNKNOWN\r\n", None, None, False),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None, None, False),
    (b"PROXY UNKNOWN" + b" " * 92 + b"\r\n", None, None, False),
    (v2(1, 0x11, inet()), *IPV4, False),
    (v2(1, 0x12, inet()), *IPV4, False),
    (v2(1, 0x10, inet()), *IPV4, False),
    (v2(1, 0x11, inet(), TLVS), *IPV4, False),
    (v2(1, 0x21, inet("2001:db8::1", "2001:db8::2")), *IPV6, False),
    (v2(1, 0x22, inet("2001:db8::1", "2001:db8::2"), TLVS), *IPV6, False),
    (v2(1, 0x31, bytes(216)), None, None, False),
    (v2(1, 0x32, bytes(216), TLVS), None, None, False),
    (v2(1, 0x00), None, None, False),
    (v2(1, 0x00, b"", TLVS), None, None, False),
    (v2(0, 0x00), None, None, True),
    (v2(0, 0x11, inet()), None, None, True),
    (v2(0, 0x11, b"", b"\1\2"), None, None, True),
    (v2(1, 0x11, inet(), bytes(LONGEST - 28)), *IPV4, False),
]  # fmt: skip


@pytest.mark.parametrize(("header", "source", "destination", "is_local"), GOOD)
def test_a_header_is_read_whatever_follows_it_and_however_it_is_cut(header, source, destination, is_local):
    expected = ProxyHeader(len(header), source, destination, is_local)
    assert parse_header(header) == expected
    assert parse_header(header + REST) == expected
    for end in range(len(header)):
        assert parse_header(header[:end]) is None, header[:end]


BAD = [
    # What begins a connection without a header: HTTP, TLS, nothing of the kind.
    REST,
    b"\x16\x03\x01\x02\x00",
    b"\0",
    b"PROXZ",
    b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    b"\r\n\r\nGET",
    # Version 1.
    b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\rX",
    b"PROXY TCP4\n192.0.2.1 198.51.100.2 50000 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 50000\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443 1\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443 \r\n",
    b"PROXY  TCP4 192.0.2.1 198.51.100.2 50000 443\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.2 50000 443\r\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.2 50000 443\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.2 50000 443\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 50000 443\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 50000 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::2 50000 443\r\n",
    b"PROXY TCP6 [2001:db8::1] 2001:db8::2 50000 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 050 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 +5 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5_0 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 \xd9\xa5 443\r\n",
    b"PROXY TCP4 \xd9\xa5.0.2.1 198.51.100.2 5 443\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 50000 443\r\n",
    b"PROXY \r\n",
    b"PROXY unknown\r\n",
    b"PROXY UNKNOWN" + b" " * 93 + b"\r\n",
    b"PROXY UNKNOWN" + b" " * 94,
    # Version 2.
    SIGNATURE[:-1] + b"\r",
    SIGNATURE + b"\x11",
    SIGNATURE + b"\x31\x11",
    SIGNATURE + b"\x22",
    SIGNATURE + b"\x2f",
    SIGNATURE + b"\x21\x41",
    SIGNATURE + b"\x21\x13",
    v2(1, 0x11, size=11),
    v2(1, 0x21, size=35),
    v2(1, 0x31, size=215),
    v2(1, 0x11, size=LONGEST - 15),
    v2(0, 0x00, size=0xFFFF),
]


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_header_is_refused_however_it_is_cut(data):
    with pytest.raises(BadHeader):
        parse_header(data)
    # And no cut of it was taken for one.
    for end in range(len(data)):
        try:
            assert parse_header(data[:end]) is None
        except BadHeader:
            break


V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
ENDS = st.one_of(st.tuples(V4, V4), st.tuples(V6, V6))
PORTS = st.integers(0, 65535)


@given(ENDS, PORTS, PORTS, st.binary(max_size=40), st.booleans())
def test_all_addresses_come_back(ends, source_port, destination_port, more, binary):
    family = ends[0].version
    if binary:
        packed = b"".join(end.packed for end in ends) + struct.pack("!HH", source_port, destination_port)
        header = v2(1, 0x11 if family == 4 else 0x21, packed, more)
    else:
        header = f"PROXY TCP{family} {ends[0]} {ends[1]} {source_port} {destination_port}\r\n".encode()
    found = parse_header(header + b"rest")
    assert found == ProxyHeader(len(header), (str(ends[0]), source_port), (str(ends[1]), destination_port))


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]))
def test_nonsense_has_one_verdict_however_it_comes(junk, begin):
    data = begin + junk

    def verdict(part):
        try:
            return parse_header(part)
        except BadHeader:
            return "bad"

    final = None
    for end in range(len(data) + 1):
        found = verdict(data[:end])
        if final is not None:
            assert found == final, "a verdict does not change with what comes later"
        final = final or found
        assert final is None or final == "bad" or final.length <= end
