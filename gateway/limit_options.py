"""The options that concern clients: what each may take, and whom is believed about who it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from fcgi_pool.listener import Address, AddressError
from gateway.clients.htpasswd import HtpasswdError, read_htpasswd
from gateway.clients.settings import (
    BasicAuth,
    ClientSettings,
    MinimumRates,
    ProxyProtocol,
    RateLimit,
    RealIp,
    Trust,
)
from gateway.usage import UsageError

if TYPE_CHECKING:
    import argparse

_RATE = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,6})?)(?:/(s|m))?((?:,burst=[0-9]{1,6}|,delay)*)")
_PERIODS = {"": 1, "s": 1, "m": 60}
_FIELD = re.compile(r"[A-Za-z0-9-]{1,64}")
_REALM = re.compile(r"[ !#-\[\]-~]{1,128}")
# Who comes over a Unix socket, among networks; nginx set_real_ip_from has the same word.
_UNIX = "unix:"

# Option, text, prefix, example: a prefix in its standard form, or UsageError.
_Prefix = Callable[[str, str, str, str], str]


def add_limit_options(add: Callable[..., Any]) -> None:
    """Add the options by `add`, the add_argument of a parser."""
    add("--limit-rate", metavar="RATE", default="",
        help="requests of one client address, as 10/s, 600/m or 10/s,burst=20: so many more at once, or with ,delay "
        "one after the other at the rate; what is over is answered 429")  # fmt: skip
    add("--limit-connections", metavar="N", default="", help="connections of one client address at once")
    add("--exempt", action="append", default=[], metavar="NETWORKS",
        help="clients in NETWORKS, as 10.0.0.0/8,::1,unix:, are not counted and not limited; repeatable")  # fmt: skip
    add("--limit-status", choices=("429", "503"), default="429", help="for who is over a limit (default 429)")
    add("--max-connections", metavar="N", default="", help="connections of one worker (default: as descriptors allow)")
    add("--max-handshakes", metavar="N", default="", help="of these, TLS handshakes under way (default 1024)")
    add("--min-body-rate", metavar="BYTES", default="", help="bytes a second at which a body must come (default: any)")
    add("--min-send-rate", metavar="BYTES", default="", help="bytes a second of the response that a client must take")
    add("--rate-window", metavar="SECONDS", default="", help="in which these two are measured (default 20)")
    add("--proxy-protocol", action="append", default=[], metavar="[ADDRESS=]NETWORKS",
        help="connections to ADDRESS, one of --listen (default: all), begin with a PROXY header, taken from proxies in "
        "NETWORKS, as 10.0.0.0/8,::1,unix: (over a Unix socket); repeatable")  # fmt: skip
    add("--real-ip", action="append", default=[], metavar="NETWORKS",
        help="proxies in NETWORKS are believed whose requests they pass on (X-Forwarded-For); repeatable")  # fmt: skip
    add("--real-ip-header", metavar="NAME", default="",
        help="the field that names the client, as Forwarded or X-Real-IP (default X-Forwarded-For)")  # fmt: skip
    add("--auth", action="append", default=[], metavar="PREFIX=FILE",
        help="below PREFIX, ask for a name and password in FILE, made by htpasswd -B; repeatable")  # fmt: skip
    add("--auth-realm", metavar="TEXT", default="restricted", help="what is asked for (default: restricted)")


def client_settings(options: argparse.Namespace, listen: Sequence[Address], check_prefix: _Prefix) -> ClientSettings:
    """Return the settings that `options` stand for; raise UsageError. `listen`: where the server listens."""
    plain = ClientSettings()
    if options.real_ip_header and not options.real_ip:
        raise UsageError("--real-ip-header: nobody is believed; name the proxies by --real-ip NETWORKS")
    return ClientSettings(
        rate=_rate(options.limit_rate) if options.limit_rate else None,
        exempt=_trust("--exempt", options.exempt) if options.exempt else None,
        connections=_count("--limit-connections", options.limit_connections, plain.connections),
        status=int(options.limit_status),
        pace=_pace(options),
        max_connections=_count("--max-connections", options.max_connections, plain.max_connections),
        max_handshakes=_count("--max-handshakes", options.max_handshakes, plain.max_handshakes),
        proxy_protocol=_proxy_protocol(options.proxy_protocol, listen),
        real_ip=_real_ip(options) if options.real_ip else None,
        auth=_auth(options, check_prefix),
    )


def _rate(text: str) -> RateLimit:
    try:
        return read_rate(text)
    except ValueError as error:
        raise UsageError(f"--limit-rate {text}: {error}") from None


def read_rate(text: str) -> RateLimit:
    """Return the rate that `text` says, ``10/s,burst=20``; raise ValueError, whose words say what would be right."""
    match = _RATE.fullmatch(text)
    rate = float(match[1]) / _PERIODS[match[2] or ""] if match else 0.0
    if not match or not rate:
        raise ValueError("not a rate above 0; write, say, 10/s or 600/m,burst=20,delay")
    words = match[3].split(",")[1:]
    bursts = [int(word.removeprefix("burst=")) for word in words if word != "delay"]
    if len(bursts) > 1:
        raise ValueError("burst is given twice; give it once")
    burst = bursts[0] if bursts else 0
    if "delay" in words and not burst:
        raise ValueError(f"delay needs a burst, of which it is; write, say, {match[1]}/s,burst=20")
    return RateLimit(rate, burst, "delay" in words)


def _count(option: str, text: str, default: int) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,6}", text) or not int(text):
        raise UsageError(f"{option} {text}: not a whole number from 1 to 999999; write, say, {option} 20")
    return int(text)


def _pace(options: argparse.Namespace) -> MinimumRates:
    plain = MinimumRates()
    window = plain.window
    if options.rate_window:
        if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", options.rate_window) or not float(options.rate_window):
            raise UsageError(f"--rate-window {options.rate_window}: not a number of seconds above 0; write, say, 20")
        window = float(options.rate_window)
    body = _count("--min-body-rate", options.min_body_rate, plain.body)
    return MinimumRates(body, _count("--min-send-rate", options.min_send_rate, plain.send), window)


def _trust(option: str, texts: list[str]) -> Trust:
    networks = []
    words = [word for text in texts for word in text.split(",")]
    for word in words:
        if word == _UNIX:
            continue
        try:
            networks.append(ip_network(word))
        except ValueError as error:
            raise UsageError(f"{option}: {error}; write networks, as 10.0.0.0/8,::1 or {_UNIX}") from None
    return Trust(tuple(networks), _UNIX in words)


def _proxy_protocol(texts: list[str], listen: Sequence[Address]) -> ProxyProtocol | None:
    if not texts:
        return None
    addresses = []
    networks = []
    for text in texts:
        address, equals, rest = text.rpartition("=")
        networks.append(rest)
        if equals:
            try:
                addresses.append(Address.parse(address))
            except AddressError as error:
                raise UsageError(f"--proxy-protocol {text}: {error}") from None
            if addresses[-1] not in listen:
                raise UsageError(f"--proxy-protocol {text}: {address} is not listened on; name it by --listen, too")
    if addresses and len(addresses) < len(texts):
        raise UsageError("--proxy-protocol: some name an address and some do not; name one in each, or in none")
    return ProxyProtocol(_trust("--proxy-protocol", networks), tuple(addresses))


def _real_ip(options: argparse.Namespace) -> RealIp:
    header = options.real_ip_header or "X-Forwarded-For"
    if not _FIELD.fullmatch(header):
        raise UsageError(f"--real-ip-header {header}: no name of a field; write, say, X-Real-IP or Forwarded")
    return RealIp(_trust("--real-ip", options.real_ip), header.lower().encode())


def _auth(options: argparse.Namespace, check_prefix: _Prefix) -> tuple[BasicAuth, ...]:
    found: dict[str, BasicAuth] = {}
    if options.auth:
        try:
            check_realm(options.auth_realm)
        except ValueError as error:
            raise UsageError(f"--auth-realm {options.auth_realm!r}: {error}") from None
    for text in options.auth:
        prefix, equals, file = text.partition("=")
        prefix = check_prefix("--auth", text, prefix, "/admin/=/etc/htpasswd")
        if not equals or not file:
            raise UsageError(f"--auth {text}: the file is missing; write PREFIX=FILE, as /admin/=/etc/htpasswd")
        if prefix in found:
            raise UsageError(f"--auth: {prefix} is given twice; give each one once")
        try:
            check_passwords(file)
        except ValueError as error:
            raise UsageError(f"--auth {text}: {error}") from None
        found[prefix] = BasicAuth(prefix, os.path.abspath(file), options.auth_realm)
    return tuple(found.values())


def check_realm(realm: str) -> None:
    """Raise ValueError, whose words say what would be right, for what cannot stand in a challenge."""
    if not _REALM.fullmatch(realm):
        raise ValueError("not fit to be quoted; write up to 128 ASCII characters, no quotes, no backslash")


def check_passwords(file: str) -> None:
    """Raise ValueError, whose words say what would be right, if `file` cannot be read as a file of passwords."""
    try:
        read_htpasswd(file)
    except OSError as error:
        raise ValueError(f"{error.strerror}; name a file that htpasswd -B has made") from None
    except HtpasswdError as error:
        raise ValueError(str(error)) from None
