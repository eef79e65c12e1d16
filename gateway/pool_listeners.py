"""The sockets of pools that have addresses of their own: the master's, and lent to one manager after the other.

Thus a pool that is changed, or the pool of a new program, listens on the same socket as the one before: who waits in
its queue is served by either, and the address is never gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable

from fcgi_pool.config import ConfigError, PoolConfig
from fcgi_pool.listener import file_of, pid_at, set_access, unlink_socket
from fcgi_pool.lookup import socket_owner
from fcgi_pool.prepare import open_listener
from gateway.listeners import Listener


class PoolListeners:
    """All of them. `inherited`: what a predecessor listens on; as long as it `is_needed` there, it is not removed."""

    def __init__(self, inherited: Iterable[Listener], is_needed: Callable[[], bool]) -> None:
        self._inherited = list(inherited)
        self._is_needed = is_needed
        self._all = list(self._inherited)
        # Of each the file, as long as it is ours to remove. Another may be in its place: a manager makes a file anew.
        self._files = {listener: file_of(listener.socket) for listener in self._all}

    @property
    def all(self) -> list[Listener]:
        """What is open."""
        return self._all

    def lend(self, config: PoolConfig, key: str, managers: Collection[int]) -> Listener | None:
        """Return what listens at an address of a pool, by its key, opened if need be; None without an address.

        `managers`: the pids of those that have been lent sockets. Raises ConfigError.
        """
        address = config.listen if key == "listen" else config.status_listen
        if not address:
            return None
        for listener in self._all:
            if listener.address == address and self.has_file(listener):
                self._renew(listener, config, key)
                return listener
        if address.path and pid_at(address.path) in managers:
            # The file was removed, and the manager has made it anew; that socket is its own, and cannot be lent.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.path)
        listener = Listener(address, open_listener(config, key))
        self._all.append(listener)
        self._files[listener] = file_of(listener.socket)
        return listener

    def _renew(self, listener: Listener, config: PoolConfig, key: str) -> None:
        """Have a socket as `config` says, which may be another than before."""
        try:
            if listener.address.path:
                set_access(listener.address.path, config.listen_mode, *socket_owner(config))
            listener.socket.listen(config.listen_backlog)
        except OSError as error:
            where = f"pools.{config.name}.{key} = {str(listener.address)!r}"
            raise ConfigError(f"{where}: its mode or owner cannot be set: {error.strerror}") from None

    def withdraw(self, listeners: Iterable[Listener]) -> None:
        """Let nobody new come where nobody listens after these."""
        for listener in listeners:
            if listener in self._all and self.has_file(listener) and not self._is_elsewhere(listener):
                unlink_socket(listener.socket)

    def close(self, listeners: Iterable[Listener]) -> None:
        """Close what nobody uses any more."""
        listeners = list(listeners)
        self.withdraw(listeners)
        for listener in listeners:
            if listener in self._all:
                self._all.remove(listener)
                del self._files[listener]
                listener.leave()

    def unused(self, used: Iterable[Listener]) -> list[Listener]:
        """Return what is open and not `used`."""
        used = list(used)
        return [listener for listener in self._all if listener not in used]

    def leave(self) -> None:
        """Close our copies: a successor has its own, and the addresses are its own, too."""
        for listener in self._all:
            listener.leave()
        self._all.clear()
        self._files.clear()

    def has_file(self, listener: Listener) -> bool:
        """Whether who goes to the address comes to `listener`; at a TCP port that is so."""
        return file_of(listener.socket) == self._files[listener]

    def _is_elsewhere(self, listener: Listener) -> bool:
        return listener in self._inherited and self._is_needed()
