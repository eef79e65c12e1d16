"""Reloads, upgrades and kills under load, in their long form: ``python -m tests.upgrade_load [REQUESTS]``.

The load: CGI, FastCGI and files, with TLS and without, on kept connections and on new ones.

HUP every 300 ms, USR2 every 5 s, kill -9 of a front worker every 2 s. A request may fail only if its connection was
in the hands of a worker that was killed: which those are is looked up while that worker is stopped.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests import misbehaviour
from tests.reload_support import FILE, Load, Secure, Site, clients_of, site, workers_of
from tests.tls_support import client_context, self_signed

_RELOAD, _UPGRADE, _KILL = 0.3, 5.0, 2.0
# Of more than these nothing is learnt.
_FAILURES = 5000


class Torment:
    """Does to a server what is due, and remembers whom it hurt."""

    def __init__(self, served: Site) -> None:
        self._served = served
        self._due = {self._reload: _RELOAD, self._upgrade: _UPGRADE, self._kill: _KILL}
        self._began = time.monotonic()
        self.done: collections.Counter[str] = collections.Counter()
        self._workers: set[int] = set()  # when the upgrade began
        self.hurt: set[int] = set()  # ports of clients

    def act(self) -> None:
        """Do what is due by now."""
        now = time.monotonic() - self._began
        for deed, due in self._due.items():
            if now >= due:
                self._due[deed] = now + {self._reload: _RELOAD, self._upgrade: _UPGRADE, self._kill: _KILL}[deed]
                # The master of a moment ago may have left by now.
                with contextlib.suppress(ProcessLookupError):
                    deed()

    def _reload(self) -> None:
        self.done["HUP"] += 1
        self._served.word = f"word-{self.done['HUP']}"
        self._served.write()
        os.kill(self._served.master, signal.SIGHUP)

    def _upgrade(self) -> None:
        if self._is_upgrading:
            return
        self.done["USR2"] += 1
        # The new program is a child of the master that listens, too, and no worker.
        self._workers = set(workers_of(self._served.master))
        os.kill(self._served.master, signal.SIGUSR2)

    @property
    def _is_upgrading(self) -> bool:
        text = self._served.errors.text
        return text.count(" serves; pid ") + text.count("upgrade failed") < self.done["USR2"]

    def _kill(self) -> None:
        # Asked first: who listens and is a child of the master may be its successor, until it has taken over.
        is_upgrading = self._is_upgrading
        with contextlib.suppress(OSError, IndexError):
            workers = workers_of(self._served.master)
            victim = random.choice([pid for pid in workers if not is_upgrading or pid in self._workers])
            os.kill(victim, signal.SIGSTOP)
            # It accepts nobody any more, so these are all.
            self.hurt.update(clients_of(victim))
            os.kill(victim, signal.SIGKILL)
            self.done["KILL"] += 1


def run(requests: int) -> tuple[str, list[str]]:
    """Torment a server until so many requests have been made, and it has been upgraded; return a report, and who was
    lost without need."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        gate = misbehaviour.Gate(directory / "gate")
        with site(directory, gate) as serve:
            served = serve(has_pool=True, workers=2, more=_with_tls_and_files(directory))
            load = Load(served.server.port)
            secure = _secure(served)
            for path in ("/cgi-bin/echo", "/app/", "/files/some"):
                for keep in (True, False):
                    load.start(path, keep)
                    load.start(path, keep, secure)
            torment = Torment(served)
            try:
                while load.count < requests or " serves; pid " not in served.errors.text:
                    torment.act()
                    time.sleep(0.02)
                    assert len(load.failures) <= _FAILURES, "it is down"
                load.end()
                _settle(served)
            except BaseException:
                print("\n".join(served.errors.text.splitlines()[-60:]))
                raise
            text = served.errors.text
            lost = [str(failure) for failure in load.failures if failure.port not in torment.hurt]
        gate.close()
    lines = [
        f"{load.count} requests, sent {dict(torment.done)}: {text.count('gateway: reloaded')} reloads, "
        f"{text.count(' serves; pid ')} upgrades",
        f"{len(load.failures)} failed, {len(lost)} of them in nobody's hands that was killed",
        *[line for line in text.splitlines() if "not reloaded" in line or "failed" in line][:20],
    ]
    return "\n".join(lines), lost


def main(requests: int) -> int:
    """Do it from the command line."""
    report, lost = run(requests)
    print("\n    ".join([report, *lost[:20]]))
    return 1 if lost else 0


def _with_tls_and_files(directory: Path) -> str:
    """Return the end of [server], and what follows it."""
    (directory / "files").mkdir()
    (directory / "files" / "some").write_bytes(FILE)
    certificate, key = directory / "cert.pem", directory / "key.pem"
    self_signed(certificate, key, "/CN=localhost")
    # Not read as it grows, which takes the longer the more there is.
    return f"""
access_log = "{directory}/access"

[tls]
certificate = "{certificate}"
key = "{key}"
listen = ["127.0.0.1:0"]

[[routes]]
path = "/files/"
root = "files"
"""


def _secure(served: Site) -> Secure:
    found = re.search(r"listening on https://.*:(\d+)/", served.errors.text)
    assert found
    return Secure(int(found[1]), client_context())


def _settle(served: Site) -> None:
    """Wait until one master is left, with one generation: then it can be seen that nothing else is."""

    def trouble() -> str:
        try:
            count = len(workers_of(served.master))
        except (OSError, ValueError) as error:
            return str(error)
        is_one = served.master == served.server.pid or misbehaviour.has_ended(served.server.pid)
        return "" if count == served.workers and is_one else f"{count} workers"

    misbehaviour.support.wait_until(trouble, 90)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000))
