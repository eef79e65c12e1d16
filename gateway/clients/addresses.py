"""Addresses of clients: read, compared, and what stands for one client. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from gateway.clients.settings import Network, Trust

# Below these bits an IPv6 host may take any address it likes (RFC 4291 section 2.5.1); so that is one client.
_HOST_BITS = 64
# Addresses whose trust is remembered. One that is not costs some microseconds.
_KNOWN = 1024


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address that `text` is, None if it is none. An IPv4 address in IPv6 (RFC 4291 2.5.5.2) is IPv4."""
    try:
        address = ip_address(text.partition("%")[0])  # without the zone (RFC 4007 section 11)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def client_identity(text: str) -> bytes:
    """Return what all addresses of one client have in common: all of IPv4, the /64 of IPv6; b"" for no address."""
    address = parse_address(text)
    if address is None:
        return b""
    return address.packed if isinstance(address, IPv4Address) else address.packed[: _HOST_BITS // 8]


class Trusted:
    """Tells whether an address belongs to those whose word is taken."""

    def __init__(self, trust: Trust) -> None:
        self._networks = trust.networks
        self._unix = trust.unix
        self._is_inside = lru_cache(maxsize=_KNOWN)(self._find)

    def has(self, text: str | None) -> bool:
        """Whether `text`, an address, or None for a peer over a Unix socket, is trusted."""
        return self._unix if text is None else self._is_inside(text)

    def _find(self, text: str) -> bool:
        address = parse_address(text)
        return address is not None and any(_holds(network, address) for network in self._networks)


def _holds(network: Network, address: IPv4Address | IPv6Address) -> bool:
    return network.version == address.version and address in network
