"""What can fail before anything starts: logs, listeners and the pid file of new settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from gateway.error_log import ErrorLog
from gateway.listeners import DEFAULT, Listener, listen_at
from gateway.log_file import LogFile
from gateway.pid_file import PidFile
from gateway.privileges import own_logs
from gateway.settings import Settings
from gateway.tls.certificates import Credentials, TlsError
from gateway.tls.share import TlsShare
from gateway.usage import UsageError

_Opened = TypeVar("_Opened")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Settings that can be served."""

    settings: Settings
    listeners: list[Listener]
    pid_file: PidFile
    secured: list[Listener]  # of these, those that speak TLS
    credentials: Credentials | None

    @property
    def tls(self) -> TlsShare | None:
        """What workers are given of TLS; None without."""
        if not self.credentials:
            return None
        return TlsShare([listener.socket for listener in self.secured], self.credentials)

    def url(self, listener: Listener) -> str:
        """Where one of the listeners is reached."""
        scheme = "" if listener.url.startswith("unix:") else "https:" if listener in self.secured else "http:"
        return scheme + listener.url

    def undo(self, keep: Iterable[Listener] = ()) -> None:
        """Close what listens, but for `keep`."""
        kept = list(keep)
        for listener in self.listeners:
            if listener not in kept:
                listener.close()


def prepare(settings: Settings, there: Iterable[Listener], before: Credentials | None = None) -> Prepared:
    """Open what `settings` need, with the listeners that are `there` already; raise UsageError.

    `before`: what was read for TLS by the settings before these.
    """
    try:
        credentials = Credentials(settings.tls, before) if settings.tls else None
    except TlsError as error:
        raise UsageError(f"TLS: {error}") from None
    opened(settings.named("--error-log"), lambda: ErrorLog(settings.error_log).close())
    opened(settings.named("--access-log"), lambda: LogFile(settings.access_log, 1).close())
    own_logs(settings)
    pid_file = PidFile(settings.pid_file)
    opened(settings.named("--pid-file"), pid_file.check)
    there = list(there)
    if settings.listen == DEFAULT and any(listener.is_given for listener in there):
        # Whoever gives sockets has said where the server is to listen.
        settings = replace(settings, listen=())
    listeners = listen_at(settings.addresses, there, settings.named("--listen"))
    return Prepared(settings, listeners, pid_file, _secured(settings, listeners), credentials)


def _secured(settings: Settings, listeners: list[Listener]) -> list[Listener]:
    """Return the listeners that speak TLS; they stand in the order of the addresses, and those that were given last."""
    if not settings.tls:
        return []
    if settings.tls.listen:
        return listeners[len(settings.listen) : len(settings.addresses)]
    return [listener for listener in listeners if not listener.address.path]


def opened(name: str, open_it: Callable[[], _Opened]) -> _Opened:
    """Return what `open_it` returns; raise UsageError for a file that cannot be opened."""
    try:
        return open_it()
    except OSError as error:
        raise UsageError(f"{name} {error.filename}: {error.strerror}; name a file that can be written to") from None
