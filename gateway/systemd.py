"""What systemd and we say to each other: sockets that are given (sd_listen_fds(3)), states told (sd_notify(3)).

Both are a few variables of the environment and datagrams; no library is needed. The variables are taken out of the
environment: they are meant for one process, and our pools inherit the rest.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

# sd_listen_fds(3), SD_LISTEN_FDS_START.
_FIRST = 3
# A manager that does not read for so many seconds misses a change of state. A sign of life is not waited with.
_PATIENCE = 1.0


def given_descriptors() -> list[tuple[int, str]]:
    """Return the descriptors that were given to this process, each with its name or ''."""
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    named = names.split(":") if names else []
    return [(_FIRST + at, named[at] if at < len(named) else "") for at in range(int(count))]


class Notifier:
    """Tells the service manager how the server is. Without one, nothing is told."""

    def __init__(self) -> None:
        self._path = os.environ.pop("NOTIFY_SOCKET", "")
        self._watchdog = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        is_watched = self._watchdog.isdecimal() and int(self._watchdog) > 0 and pid in ("", str(os.getpid()))
        # Half of the time after which it takes the server for stuck (sd_watchdog_enabled(3)), in seconds.
        self._interval = int(self._watchdog) / 2e6 if is_watched else float("inf")
        self._socket: socket.socket | None = None
        if self._path[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.due = time.monotonic() if is_watched and self._socket else float("inf")

    def _tell(self, *lines: str, patience: float = _PATIENCE) -> None:
        if self._socket:
            self._socket.settimeout(patience)
            path = "\0" + self._path[1:] if self._path.startswith("@") else self._path
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), path)

    def ready(self, status: str) -> None:
        """The server serves, after its start or a reload; `status` is for people."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The server reads its configuration anew; `ready` follows, whether it liked it or not."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reloading")

    def stopping(self, status: str) -> None:
        """The server stops."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def hand_over(self, pid: int) -> None:
        """Another process is the server from now on; what this one does is no matter any more."""
        self._tell(f"MAINPID={pid}")
        self.close()

    def act(self, now: float) -> None:
        """Tell that the server lives, if that is due."""
        if now >= self.due:
            self._tell("WATCHDOG=1", patience=0.0)
            self.due = now + self._interval

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket:
            self._socket.close()
            self._socket = None
        self.due = float("inf")

    def environment(self, pid: int) -> dict[str, str]:
        """Return the variables by which the process `pid`, which follows this one, can tell as well."""
        if not self._path:
            return {}
        variables = {"NOTIFY_SOCKET": self._path}
        if self._watchdog:
            variables |= {"WATCHDOG_USEC": self._watchdog, "WATCHDOG_PID": str(pid)}
        return variables
