"""What can fail before anything starts: logs, listeners and the pid file of new settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from gateway.error_log import ErrorLog
from gateway.listeners import Listener, listen_at
from gateway.log_file import LogFile
from gateway.pid_file import PidFile
from gateway.privileges import own_logs
from gateway.settings import Settings
from gateway.usage import UsageError

_Opened = TypeVar("_Opened")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Settings that can be served."""

    settings: Settings
    listeners: list[Listener]
    pid_file: PidFile

    def undo(self, keep: Iterable[Listener] = ()) -> None:
        """Close what listens, but for `keep`."""
        kept = list(keep)
        for listener in self.listeners:
            if listener not in kept:
                listener.close()


def prepare(settings: Settings, there: Iterable[Listener]) -> Prepared:
    """Open what `settings` need, with the listeners that are `there` already; raise UsageError."""
    opened(settings.named("--error-log"), lambda: ErrorLog(settings.error_log).close())
    opened(settings.named("--access-log"), lambda: LogFile(settings.access_log, 1).close())
    own_logs(settings)
    pid_file = PidFile(settings.pid_file)
    opened(settings.named("--pid-file"), pid_file.check)
    return Prepared(settings, listen_at(settings.listen, there, settings.named("--listen")), pid_file)


def opened(name: str, open_it: Callable[[], _Opened]) -> _Opened:
    """Return what `open_it` returns; raise UsageError for a file that cannot be opened."""
    try:
        return open_it()
    except OSError as error:
        raise UsageError(f"{name} {error.filename}: {error.strerror}; name a file that can be written to") from None
