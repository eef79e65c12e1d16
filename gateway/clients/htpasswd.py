"""Files of users and passwords, as Apache's htpasswd makes them: ``name:hash`` a line.

Only bcrypt is taken. Passwords of the other kinds that htpasswd knows are found by trying: SHA-1 without salt at
thousands of millions a second on one graphics card, MD5 and crypt at millions.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b

import bcrypt

_BCRYPT = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
# The last character of the salt has two bits of it.
# 2**cost rounds. htpasswd takes 4 to 17. One check of 15 takes two seconds of a processor.
_LEAST_COST, _MOST_COST = 4, 15
# bcrypt looks at so many bytes, and what made the file did so.
_PASSWORD_SIZE = 72
# Larger is no file of passwords.
_FILE_SIZE = 16 * 1024 * 1024
# For a file without users: there is something to check for as long as with them.
_NOBODY = b"$2b$10$JVVJ1bTFendVvnnrCrnLouL29H.iAhQ5USeqSePk7xiWIuHRTzNVe"

_WEAK = {
    b"{SHA}": "SHA-1 without a salt",
    b"$apr1$": "MD5",
    b"$1$": "MD5",
    b"$5$": "a kind that is not supported",
    b"$6$": "a kind that is not supported",
}


class HtpasswdError(ValueError):
    """A file that cannot be used; the text names the line, what is wrong and what would be right."""


class Passwords:
    """The users of one file, as it was when it was read."""

    def __init__(self, users: dict[bytes, bytes]) -> None:
        self._users = users
        self._hashes = list(users.values()) or [_NOBODY]
        self._secret = os.urandom(16)

    def __repr__(self) -> str:
        return f"<Passwords: {len(self._users)} users>"

    def __len__(self) -> int:
        return len(self._users)

    def verify(self, user: bytes, password: bytes) -> bool:
        """Return whether `user` has this password. Slow by design: milliseconds to seconds, in which others run.

        For a user that does not exist, the hash of another is checked, always the same one for one name: so it takes
        as long, also where the costs of the hashes differ.
        """
        known = self._users.get(user)
        number = int.from_bytes(blake2b(user, digest_size=8, key=self._secret).digest(), "little")
        other = self._hashes[number % len(self._hashes)]
        is_right = bcrypt.checkpw(password[:_PASSWORD_SIZE], known or other)
        return is_right and known is not None


def read_htpasswd(path: str) -> Passwords:
    """Read a file; raise OSError, and HtpasswdError for what is in it."""
    with open(path, "rb") as file:
        data = file.read(_FILE_SIZE + 1)
    if len(data) > _FILE_SIZE:
        raise HtpasswdError(f"it is larger than {_FILE_SIZE} bytes; name a file that htpasswd -B has made")
    return Passwords(parse_htpasswd(data))


def parse_htpasswd(data: bytes) -> dict[bytes, bytes]:
    """Return the hashes of the users; raise HtpasswdError."""
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(data.replace(b"\r\n", b"\n").split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        user, colon, rest = line.partition(b":")
        name = user.decode("utf-8", "backslashreplace")
        if not colon or not user or not name.isprintable():
            raise HtpasswdError(f"line {number}: not NAME:HASH; make it by htpasswd -B FILE NAME")
        if user in users:
            raise HtpasswdError(f"line {number}: the user {name} is there twice; remove one")
        users[user] = _checked(rest.partition(b":")[0], name, number)
    return users


def _checked(text: bytes, name: str, number: int) -> bytes:
    match = _BCRYPT.fullmatch(text)
    again = f"make it anew by htpasswd -B FILE {name}"
    if not match:
        kind = next((words for begin, words in _WEAK.items() if text.startswith(begin)), "crypt or no hash at all")
        if text.startswith(b"$2"):
            kind = "bcrypt, but damaged"
        raise HtpasswdError(f"line {number}: the password of {name} is not bcrypt ({kind}), so it is not safe; {again}")
    if not _LEAST_COST <= int(match[1]) <= _MOST_COST:
        raise HtpasswdError(f"line {number}: the cost {int(match[1])} is not in {_LEAST_COST}–{_MOST_COST}; {again}")
    return text
