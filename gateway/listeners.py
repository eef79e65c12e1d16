"""The sockets that the server listens on: opened, kept over a reload, handed on at an upgrade, or given by systemd.

A socket that is kept is the same socket: who waits in its queue is served by whoever comes next.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fcgi_pool.listener import Address, AddressError, unlink_socket
from gateway.options import DEFAULT_LISTEN
from gateway.usage import UsageError

DEFAULT = (Address.parse(DEFAULT_LISTEN),)


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A socket that listens, and the address that was asked for.

    `is_given`: whoever started the server opened it; it is kept in any case, and its file is not ours to remove.
    """

    address: Address
    socket: socket.socket
    is_given: bool = False

    def close(self) -> None:
        """Close our copy, and remove the file of a socket of ours: nobody new is to come."""
        if not self.is_given:
            unlink_socket(self.socket)
        self.socket.close()

    def leave(self) -> None:
        """Close our copy: others go on."""
        self.socket.close()

    @property
    def url(self) -> str:
        """Where it listens, without the scheme of TCP."""
        name = self.socket.getsockname()
        if isinstance(name, tuple):
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            return f"//{host}:{name[1]}/"
        return f"unix:{os.fsdecode(name) if isinstance(name, bytes) else name}"


def listen_at(addresses: Sequence[Address], there: Iterable[Listener], name: str) -> list[Listener]:
    """Return what listens at `addresses`: from `there` where it is among those, else opened; raise UsageError.

    They come in the order of the addresses, and after them what was given and is at none. `name` is that of the option,
    or key, which has the addresses.
    """
    left = list(there)
    given = [listener for listener in left if listener.is_given]
    found: list[Listener] = []
    opened: list[Listener] = []
    for address in addresses:
        kept = next((listener for listener in left if _is_at(listener, address)), None)
        if kept:
            left.remove(kept)
            found.append(kept)
            continue
        try:
            listener = Listener(address, address.listen())
        except AddressError as error:
            for listener in opened:
                listener.close()
            raise UsageError(f"{name} {address}: {error}") from None
        found.append(listener)
        opened.append(listener)
    return found + [listener for listener in given if listener not in found]


def _is_at(listener: Listener, address: Address) -> bool:
    if listener.address == address:
        return True
    if not listener.is_given or listener.address.path or address.path:
        return False
    if listener.address.port != address.port:
        return False
    # One socket may serve both families (ipv6(7), IPV6_V6ONLY), and does if systemd is not told otherwise.
    if listener.address.host == "::" and address.host == "0.0.0.0":
        return not listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][4][0] == listener.address.host
    return False


def given(descriptor: int, name: str) -> Listener:
    """Return a listener that whoever started the server has opened; raise UsageError if it is none."""
    what = f"descriptor {descriptor}" + (f" ({name})" if name else "")
    try:
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError as error:
        raise UsageError(f"LISTEN_FDS: {what}: {error.strerror}") from None
    if not is_socket:
        raise UsageError(f"LISTEN_FDS: {what} is no socket; the unit is to have ListenStream= alone")
    opened = socket.socket(fileno=descriptor)
    listens = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if opened.type != socket.SOCK_STREAM or not listens:
        raise UsageError(f"LISTEN_FDS: {what} does not listen; write ListenStream= and Accept=no into the unit")
    opened.setblocking(False)
    bound = opened.getsockname()
    if isinstance(bound, tuple):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Listener(Address(host=bound[0], port=bound[1]), opened, is_given=True)
    return Listener(Address(path=os.fsdecode(bound)), opened, is_given=True)


def encode(listeners: Iterable[Listener]) -> str:
    """Return a text that names listeners, for a program that inherits them."""
    return json.dumps([[one.socket.fileno(), str(one.address), one.is_given] for one in listeners])


def decode(text: str) -> list[Listener]:
    """Return the listeners that a text names, in the program that has inherited them."""
    found = []
    for descriptor, address, is_given in json.loads(text):
        inherited = socket.socket(fileno=descriptor)
        inherited.setblocking(False)
        found.append(Listener(Address.parse(address), inherited, is_given))
    return found
