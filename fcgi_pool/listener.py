"""Addresses and the sockets that listen on them.

A Unix socket's file outlives the process that made it. Before one is replaced it is asked: if somebody still accepts
there, it is in use and never stolen; if nobody does, it is stale and removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
from dataclasses import dataclass

# Connections the kernel holds until they are accepted. nginx 511, Apache 511, php-fpm 511; the kernel cuts it at
# net.core.somaxconn, 4096 on Linux since 5.4.
BACKLOG = 4096

_TCP = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*)):([0-9]{1,5})")


class AddressError(ValueError):
    """An address that cannot be understood or listened on; the text says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a socket listens: `path` of a Unix socket, or `host` and `port` (0: a free one) of TCP."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address for ``HOST:PORT``, ``[::1]:PORT`` or ``unix:PATH``; raise AddressError."""
        if text.startswith("unix:"):
            path = text[5:]
            if not path:
                raise AddressError("the path after unix: is missing; write unix:/run/name.sock")
            # sockaddr_un holds 108 bytes with the NUL (unix(7)).
            if len(os.fsencode(path)) > 107:
                raise AddressError(f"the path has {len(os.fsencode(path))} bytes; a Unix socket's path has at most 107")
            return cls(path=path)
        match = _TCP.fullmatch(text)
        if not match or int(match[3]) > 65535:
            raise AddressError("not an address; write HOST:PORT, [::1]:PORT or unix:PATH")
        return cls(host=match[1] or match[2] or "0.0.0.0", port=int(match[3]))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def listen(self, mode: int = 0o660, owner: int = -1, group: int = -1, backlog: int = BACKLOG) -> socket.socket:
        """Return a non-blocking socket that listens here; raise AddressError.

        `mode`, `owner` and `group` (numbers, -1: as they are) are those of a Unix socket's file. `backlog`: connections
        that may wait to be accepted.
        """
        if self.path:
            return _listen_unix(self.path, mode, owner, group, backlog)
        return _listen_tcp(self.host, self.port, backlog)


def file_of(listener: socket.socket) -> tuple[int, int] | None:
    """Return device and inode of the socket file that is at a Unix listener's path now; None if there is none."""
    name = listener.getsockname()
    if isinstance(name, str) and name:
        with contextlib.suppress(OSError):
            found = os.lstat(name)
            if stat.S_ISSOCK(found.st_mode):
                return found.st_dev, found.st_ino
    return None


def pid_at(path: str) -> int:
    """Return who began to listen at a Unix socket's path (SO_PEERCRED, unix(7)); 0 if nobody can be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError:
            return 0
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return int(pid)


def unlink_socket(listener: socket.socket) -> None:
    """Remove the file of a Unix listener, if it is still that socket's own, before the socket is closed."""
    name = listener.getsockname()
    if isinstance(name, str) and name:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.lstat(name).st_mode):
                os.unlink(name)


def _listen_tcp(host: str, port: int, backlog: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        why = f"the host {host!r} is not known ({error.strerror}); write an address of this machine"
        raise AddressError(why) from None
    family, kind, protocol, _, name = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Inherited by accepted sockets: one write is one answer, waiting for more only delays it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(name)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise AddressError(_why_not_bound(error, host, port)) from None
    listener.setblocking(False)
    return listener


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use by another program; stop it, or choose another port (0: a free one)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; use 127.0.0.1 for this machine alone, 0.0.0.0 for every network"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose one from 1024, or grant CAP_NET_BIND_SERVICE"
    return f"cannot listen: {error.strerror}"


def set_access(path: str, mode: int, owner: int = -1, group: int = -1) -> None:
    """Say who may connect to the Unix socket at `path`, which is the key to what it serves; raise OSError.

    Owner and group first: until the mode is set, nobody else may. Who may write to the directory could put a symbolic
    link in its place meanwhile, so it is held, and not found by its name again.
    """
    held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(held).st_mode):
            raise FileNotFoundError(errno.ENOENT, "the socket has been replaced", path)
        found = f"/proc/self/fd/{held}"
        if owner != -1 or group != -1:
            os.chown(found, owner, group)
        os.chmod(found, mode)
    finally:
        os.close(held)


def _listen_unix(path: str, mode: int, owner: int, group: int, backlog: int) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound under the strictest mask, so that nobody connects before the mode is set.
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        set_access(path, mode, owner, group)
        listener.listen(backlog)
    except PermissionError as error:
        is_bound = bool(listener.getsockname())
        if is_bound:
            unlink_socket(listener)
        listener.close()
        if is_bound and (owner != -1 or group != -1):
            why = "only root, or for a group its member, can give the socket away; leave owner and group out"
        else:
            why = "the directory must exist and be writable"
        raise AddressError(f"cannot listen: {error.strerror}; {why}") from None
    except OSError as error:
        listener.close()
        raise AddressError(f"cannot listen: {error.strerror}; the directory must exist and be writable") from None
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise AddressError(f"cannot listen: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise AddressError("there is a file of that name, which is no socket; choose another path, or move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            # EAGAIN: a living one whose backlog is full.
            if error.errno != errno.EAGAIN:
                raise AddressError(f"cannot tell whether the socket is in use: {error.strerror}") from None
            raise AddressError("the socket is in use by another program; stop it, or choose another path") from None
        else:
            raise AddressError("the socket is in use by another program; stop it, or choose another path")
