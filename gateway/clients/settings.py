"""What is allowed to one client, and whom is believed about who the client is. All of it is off unless it is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from fcgi_pool.listener import Address

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose word about the client is taken: proxies in `networks`, and, by `unix`, who comes over a Unix socket."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    def __str__(self) -> str:
        return ", ".join([*map(str, self.networks), *(["Unix sockets"] if self.unix else [])])


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests of one client address, as nginx's limit_req has it.

    `rate` requests a second, and `burst` more at once. Those of a burst are answered at once (nginx: nodelay), or with
    `delay` one after the other at the rate.
    """

    rate: float
    burst: int = 0
    delay: bool = False


@dataclass(frozen=True, slots=True)
class MinimumRates:
    """What a client must send of a body and take of a response, in bytes a second; 0: whatever it likes.

    Judged by what was transferred in `window` seconds, and only while something was there to be transferred. Precedent:
    Apache's RequestReadTimeout body=20,MinRate=500, on by default there.
    """

    body: int = 0
    send: int = 0
    window: float = 20.0


@dataclass(frozen=True, slots=True)
class ProxyProtocol:
    """Connections of the listeners `listen` (none: of all) begin with a header that tells the client.

    It is taken from `trust` alone and must be complete within `timeout` seconds. Precedents: the specification asks for
    3 s at least, a retransmission; Postfix postscreen 5 s.
    """

    trust: Trust
    listen: tuple[Address, ...] = ()
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class RealIp:
    """Requests of `trust` name their client in the field `header`, in lower case.

    ``forwarded`` is read as RFC 7239 has it, any other field as a list of addresses, as X-Forwarded-For.
    """

    trust: Trust
    header: bytes = b"x-forwarded-for"


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """What is below `prefix` is for the users in `file`, an htpasswd file."""

    prefix: str
    file: str
    realm: str = "restricted"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """All that concerns clients, not requests."""

    rate: RateLimit | None = None
    # At once, of one address, over all workers; 0: any number. nginx limit_conn has no default, Apache's
    # mod_limitipconn and mod_qos are told.
    connections: int = 0
    # For those who are over a limit; RFC 6585 section 4. nginx says 503 unless told otherwise.
    status: int = 429
    # Addresses that are remembered at once. nginx: 16,000 in a zone of 1 MiB.
    addresses: int = 32 * 1024
    pace: MinimumRates = field(default_factory=MinimumRates)
    # Connections of one worker; 0: as many as it has descriptors for. nginx worker_connections 512.
    max_connections: int = 0
    # Of one worker, connections that have not finished their TLS handshake or PROXY header. The oldest gives way to a
    # new one: an honest handshake is over in milliseconds. One costs some 50 KiB.
    max_handshakes: int = 1024
    proxy_protocol: ProxyProtocol | None = None
    real_ip: RealIp | None = None
    # Who is not counted and not limited.
    exempt: Trust | None = None
    auth: tuple[BasicAuth, ...] = ()

    @property
    def are_counted(self) -> bool:
        """Whether anything is counted by address."""
        return self.rate is not None or self.connections > 0
