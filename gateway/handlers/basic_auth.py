"""Asks for a name and a password (RFC 7617) before anything below a prefix is served.

To check a password takes longer than to answer many requests, so it is done by a thread, one for each prefix, with a
bound on those that wait. A browser sends the same credentials with each request; what was right is remembered for a
while, not the password but a keyed digest of it, under a key that dies with the process.
"""

from __future__ import annotations

import binascii
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from gateway.body import start_disk_thread
from gateway.clients.htpasswd import HtpasswdError, Passwords, read_htpasswd
from gateway.clients.settings import BasicAuth
from gateway.exchange import Exchange
from gateway.fault import LIMITED, Fault

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

# A request, and the redirects within the server that led it here.
_Asking = tuple[Exchange, int]


class BasicAuthGuard:
    """Stands before all that is below a prefix."""

    def __init__(self, worker: Worker, settings: BasicAuth) -> None:
        self._worker = worker
        self._challenge = f'Basic realm="{settings.realm}", charset="UTF-8"'
        self._file = _WatchedFile(settings.file, worker.settings.named("--auth"))
        self._passwords = Passwords({})
        self._trouble = ""
        self._right: dict[bytes, tuple[bytes, float]] = {}
        self._take(self._file.look())
        self._look_at = worker.now() + _LOOK_AGAIN
        # Started now, so that it is there when threads are to be had no more.
        self._thread = ThreadPoolExecutor(1, "passwords")
        self._thread.submit(read_credentials, b"").result()
        self._key = os.urandom(32)
        # Who waits for the file to be looked at; and for a check, by the digest of what is checked.
        self._looking: list[_Asking] = []
        self._asking: dict[bytes, list[_Asking]] = {}

    def ask(self, exchange: Exchange, redirects: int) -> None:
        """Have `exchange` served if it has a name and password of the file; otherwise ask for them."""
        if self._worker.now() < self._look_at:
            self._judge(exchange, redirects)
            return
        self._looking.append((exchange, redirects))
        if len(self._looking) == 1:
            # Not by the thread of the checks: who is remembered does not wait for those who guess.
            job = self._worker.loop.run_in_executor(start_disk_thread(), self._file.look)
            job.add_done_callback(self._looked)

    def _looked(self, done: asyncio.Future[_Look]) -> None:
        self._look_at = self._worker.now() + _LOOK_AGAIN
        error = done.exception()
        self._take(_Look(None, f"the file of passwords could not be looked at: {error}") if error else done.result())
        looking, self._looking = self._looking, []
        for exchange, redirects in looking:
            if not exchange.is_ended:
                self._judge(exchange, redirects)

    def _take(self, look: _Look) -> None:
        if look.passwords is not None:
            self._passwords = look.passwords
            self._right = {}
        if look.trouble != self._trouble:
            self._trouble = look.trouble
            if look.trouble:
                self._worker.error_log.error(look.trouble)

    def _judge(self, exchange: Exchange, redirects: int) -> None:
        values = [value for name, value in exchange.request.fields if name == _AUTHORIZATION]
        if len(values) != 1 or len(values[0]) > _LONGEST:
            self._refuse(exchange)
            return
        digest = blake2b(values[0], digest_size=32, key=self._key).digest()
        known = self._right.get(digest)
        if known and self._worker.now() < known[1]:
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
            exchange.fail(Fault(503, "too many passwords wait to be checked", LIMITED, retry_after=5))
        else:
            self._check(digest, credentials, (exchange, redirects))

    def _check(self, digest: bytes, credentials: tuple[bytes, bytes], first: _Asking) -> None:
        asking = self._asking[digest] = [first]
        passwords = self._passwords

        def check() -> bool | None:
            """Return whether they are right, None where nobody waits for it any more; by the thread."""
            if all(exchange.is_ended for exchange, _ in asking):
                return None
            return passwords.verify(*credentials)

        job = self._worker.loop.run_in_executor(self._thread, check)
        job.add_done_callback(lambda done: self._checked(digest, credentials[0], passwords, done))

    def _checked(self, digest: bytes, user: bytes, passwords: Passwords, done: asyncio.Future[bool | None]) -> None:
        asking = [item for item in self._asking.pop(digest) if not item[0].is_ended]
        if done.exception():
            for exchange, _ in asking:
                exchange.fail(Fault(500, f"the password could not be checked: {done.exception()}"))
            return
        is_right = done.result()
        if is_right is None or passwords is not self._passwords:
            # It came when all others had left; or the file has changed meanwhile.
            for exchange, redirects in asking:
                self.ask(exchange, redirects)
            return
        if is_right:
            self._remember(digest, user)
        for exchange, redirects in asking:
            if is_right:
                self._grant(exchange, user, redirects)
            else:
                self._refuse(exchange)

    def _remember(self, digest: bytes, user: bytes) -> None:
        self._right.pop(digest, None)
        if len(self._right) >= _REMEMBERED:
            del self._right[next(iter(self._right))]
        self._right[digest] = user, self._worker.now() + _REMEMBER

    def _grant(self, exchange: Exchange, user: bytes, redirects: int) -> None:
        exchange.record.user = user.decode("utf-8", "surrogateescape")
        # "It SHOULD remove any header fields carrying authentication information" (RFC 3875 section 4.1.18).
        exchange.grant(self, {b"AUTH_TYPE": b"Basic", b"REMOTE_USER": user}, hides_authorization=True)
        self._worker.route(exchange, redirects)

    def _refuse(self, exchange: Exchange) -> None:
        # The same words for every reason, and none of them says whether the user exists.
        exchange.fail(Fault(401, "a name and a password are asked for", challenge=self._challenge))


class _Look(NamedTuple):
    """What a look at the file brought: what is in it if that is new, and what is wrong with it if anything is."""

    passwords: Passwords | None
    trouble: str


class _WatchedFile:
    """A file of passwords that may change. Looked at by one thread at a time, which may wait for a disk."""

    def __init__(self, path: str, name: str) -> None:
        """Take the file's path, and the name of the option, or key, which has it."""
        self._path = path
        self._name = name
        self._meanwhile = "until then, nobody is let in"
        self._seen: object = None
        self._trouble = ""

    def look(self) -> _Look:
        """Read the file if it has changed. What was read last stays in force while something is wrong with it."""
        seen: object = ""
        passwords = None
        try:
            found = os.stat(self._path)
            seen = found.st_mtime_ns, found.st_size, found.st_ino
            if seen == self._seen:
                return _Look(None, self._trouble)
            passwords = read_htpasswd(self._path)
            self._trouble = ""
            self._meanwhile = "until then, what was read before holds"
        except OSError as error:
            self._trouble = f"{self._name} {self._path}: {error.strerror}; {self._meanwhile}"
        except HtpasswdError as error:
            self._trouble = f"{self._name} {self._path}: {error}; {self._meanwhile}"
        self._seen = seen
        return _Look(passwords, self._trouble)


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
