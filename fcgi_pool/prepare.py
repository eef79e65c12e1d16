"""Everything a pool needs before it starts: what was looked up, and its sockets. What can fail, fails here."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from fcgi_pool.config import ConfigError, PoolConfig
from fcgi_pool.listener import AddressError, unlink_socket
from fcgi_pool.lookup import launch_for, socket_owner
from fcgi_pool.process import Launch
from fcgi_pool.slowlog import SlowLog


@dataclass(frozen=True, slots=True)
class Sockets:
    """What a pool listens on: for requests, and for those about its status."""

    listener: socket.socket
    status: socket.socket | None
    lent: tuple[socket.socket | None, ...] = ()  # those of them that are somebody else's

    def unlink(self, listener: socket.socket) -> None:
        """Remove the file of one of them, if that is ours to do."""
        if listener not in self.lent:
            unlink_socket(listener)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pool that can be started."""

    config: PoolConfig
    launch: Launch
    sockets: Sockets

    def undo(self, keep: Sockets | None = None) -> None:
        """Close the sockets and remove their files, but for those that `keep` has, too."""
        kept = (keep.listener, keep.status) if keep else ()
        for listener in (self.sockets.listener, self.sockets.status):
            if listener and listener not in kept:
                self.sockets.unlink(listener)
                listener.close()


def prepare(
    config: PoolConfig,
    listener: socket.socket | None = None,
    status: socket.socket | None = None,
    lent: tuple[socket.socket | None, ...] = (),
) -> Prepared:
    """Look up what a pool needs, and open the sockets it does not have yet; raise ConfigError.

    `lent`: those of the ones it has that are somebody else's.
    """
    launch = launch_for(config)
    if not config.listen:
        raise ConfigError(f'pools.{config.name}.listen: missing; write, say, listen = "unix:/run/{config.name}.sock"')
    if config.slowlog:
        try:
            SlowLog(config.slowlog).close()
        except OSError as error:
            raise ConfigError(f"pools.{config.name}.slowlog = {config.slowlog!r}: {error.strerror}") from None
    is_new = listener is None
    if listener is None:
        listener = open_listener(config, "listen")
    if status is None and config.status_listen:
        try:
            status = open_listener(config, "status_listen")
        except ConfigError:
            if is_new:
                unlink_socket(listener)
                listener.close()
            raise
    return Prepared(config, launch, Sockets(listener, status, lent))


def open_listener(config: PoolConfig, key: str) -> socket.socket:
    """Return what listens at the address that is the value of `key`; raise ConfigError."""
    address = config.listen if key == "listen" else config.status_listen
    assert address
    owner, group = socket_owner(config)
    try:
        return address.listen(config.listen_mode, owner, group, config.listen_backlog)
    except AddressError as error:
        raise ConfigError(f"pools.{config.name}.{key} = {str(address)!r}: {error}") from None
