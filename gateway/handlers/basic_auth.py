"""Asks for a name and a password (RFC 7617) before anything below a prefix is served.

To check a password takes longer than to answer many requests, so it is done by a thread, one for each file, with a
bound on those that wait. A browser sends the same credentials with each request; what was right is remembered for a
while, not the password but a keyed digest of it, under a key that dies with the process.
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from gateway.clients.htpasswd import HtpasswdError, Passwords, read_htpasswd
from gateway.clients.settings import BasicAuth
from gateway.exchange import Exchange
from gateway.fault import Fault

if TYPE_CHECKING:
    import asyncio

    from gateway.worker import Worker

# How long right credentials are remembered, in seconds, and how many of them. Apache AuthnCacheTimeout 300 s.
_REMEMBER = 60.0
_REMEMBERED = 1024
# The file is looked at so often, in seconds, if anybody asks.
_LOOK_AGAIN = 1.0
# Checks that wait for the thread. With a hash of 50 ms the last one waits for three seconds.
_WAITING = 64
# Longer is no name and password.
_LONGEST = 4096

_AUTHORIZATION = b"authorization"


class _Checked(NamedTuple):
    """What the thread found: whether the credentials are right, by which state of the file, and its trouble if any.

    `is_right` is None where nobody waited for it any more.
    """

    is_right: bool | None
    generation: int
    trouble: str


class BasicAuthGuard:
    """Stands before all that is below a prefix."""

    def __init__(self, worker: Worker, settings: BasicAuth) -> None:
        self._worker = worker
        self._challenge = f'Basic realm="{settings.realm}", charset="UTF-8"'
        self._file = _WatchedFile(settings.file)
        # Started now, so that it is there when threads are to be had no more.
        self._thread = ThreadPoolExecutor(1, "passwords")
        self._generation = self._thread.submit(self._file.check, None).result().generation
        self._key = os.urandom(32)
        self._right: dict[bytes, tuple[bytes, float]] = {}
        # Those whose credentials are being checked, by their digest.
        self._asking: dict[bytes, list[tuple[Exchange, int]]] = {}
        self._look_at = 0.0
        self._trouble = ""

    def ask(self, exchange: Exchange, redirects: int) -> None:
        """Have `exchange` served if it has a name and password of the file; otherwise ask for them."""
        values = [value for name, value in exchange.request.fields if name == _AUTHORIZATION]
        if len(values) != 1 or len(values[0]) > _LONGEST:
            self._refuse(exchange)
            return
        digest = blake2b(values[0], digest_size=32, key=self._key).digest()
        now = self._worker.now()
        known = self._right.get(digest)
        if known and now < known[1] and now < self._look_at:
            self._grant(exchange, known[0], redirects)
            return
        credentials = read_credentials(values[0])
        if not credentials:
            self._refuse(exchange)
            return
        asking = self._asking.get(digest)
        if asking:
            asking.append((exchange, redirects))
        elif len(self._asking) >= _WAITING:
            exchange.fail(Fault(503, "too many passwords wait to be checked", retry_after=5))
        else:
            asking = self._asking[digest] = [(exchange, redirects)]
            # What is known to be right needs no check as long as the file has not changed.
            generation = self._generation if known and now < known[1] else -1
            job = self._worker.loop.run_in_executor(self._thread, self._file.check, credentials, generation, asking)
            job.add_done_callback(lambda done: self._checked(digest, credentials[0], generation, done))

    def _checked(self, digest: bytes, user: bytes, generation: int, done: asyncio.Future[_Checked]) -> None:
        asking = self._asking.pop(digest)
        if done.exception():
            for exchange, _ in asking:
                exchange.fail(Fault(500, f"the password could not be checked: {done.exception()}"))
            return
        found = done.result()
        now = self._worker.now()
        self._look_at = now + _LOOK_AGAIN
        if found.generation != self._generation:
            self._generation = found.generation
            self._right.clear()
        if found.trouble != self._trouble:
            self._trouble = found.trouble
            if found.trouble:
                self._worker.error_log.error(found.trouble)
        if found.is_right and generation != found.generation:
            self._remember(digest, user, now)
        for exchange, redirects in asking:
            if exchange.is_ended:
                continue  # the client has left
            if found.is_right is None:
                self.ask(exchange, redirects)  # it came when all others had left
            elif found.is_right:
                self._grant(exchange, user, redirects)
            else:
                self._refuse(exchange)

    def _remember(self, digest: bytes, user: bytes, now: float) -> None:
        if len(self._right) >= _REMEMBERED:
            del self._right[next(iter(self._right))]
        self._right.pop(digest, None)
        self._right[digest] = user, now + _REMEMBER

    def _grant(self, exchange: Exchange, user: bytes, redirects: int) -> None:
        exchange.record.user = user.decode("utf-8", "surrogateescape")
        # "It SHOULD remove any header fields carrying authentication information" (RFC 3875 section 4.1.18).
        exchange.grant(self, {b"AUTH_TYPE": b"Basic", b"REMOTE_USER": user}, hides_authorization=True)
        self._worker.route(exchange, redirects)

    def _refuse(self, exchange: Exchange) -> None:
        # The same words for every reason, and none of them says whether the user exists.
        exchange.fail(Fault(401, "a name and a password are asked for", challenge=self._challenge))


class _WatchedFile:
    """A file of passwords that may change. It is used by one thread, which may wait for a disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._passwords: Passwords | None = None
        self._seen: object = None
        self._generation = 0
        self._trouble = ""

    def check(
        self, credentials: tuple[bytes, bytes] | None, right_in: int = -1, asking: Sequence[tuple[Exchange, int]] = ()
    ) -> _Checked:
        """Read the file if it has changed, and check name and password, which were right in generation `right_in`."""
        self._look()
        if asking and all(exchange.is_ended for exchange, _ in asking):
            is_right = None
        elif not credentials or not self._passwords:
            is_right = False
        else:
            is_right = right_in == self._generation or self._passwords.verify(*credentials)
        return _Checked(is_right, self._generation, self._trouble)

    def _look(self) -> None:
        """What was read last stays in force while there is something wrong with the file."""
        seen = None
        try:
            found = os.stat(self._path)
            seen = found.st_mtime_ns, found.st_size, found.st_ino
            if seen == self._seen:
                return
            self._passwords = read_htpasswd(self._path)
        except OSError as error:
            self._trouble = f"--auth {self._path}: {error.strerror}; {self._meanwhile}"
        except HtpasswdError as error:
            self._trouble = f"--auth {self._path}: {error}; {self._meanwhile}"
        else:
            self._generation += 1
            self._trouble = ""
        self._seen = seen

    @property
    def _meanwhile(self) -> str:
        return "until then, what was read before holds" if self._passwords else "until then, nobody is let in"


def read_credentials(value: bytes) -> tuple[bytes, bytes] | None:
    """Return the name and password in a value of Authorization (RFC 7617 section 2); None if there are none."""
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = binascii.a2b_base64(token.strip(b" "), strict_mode=True).partition(b":")
    except binascii.Error:
        return None
    # "The user-id and password MUST NOT contain any control characters."
    if not colon or any(byte < 32 or byte == 127 for byte in user + password):
        return None
    return user, password
