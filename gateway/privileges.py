"""Whom the workers and the programs run as, where the server is started by root.

The master stays root: it owns ports and keys, and sees no request. Workers have opened their logs and read the keys
when they give their rights up; a spawner has done nothing yet, so every program runs as the user.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.settings import Pool, Settings

_PR_SET_NO_NEW_PRIVS = 38
AS_ROOT = (
    "it runs as root, and so do all programs: whoever breaks one has the machine. "
    'Name a user: --user www-data, or user = "www-data" in [server]'
)


class UnknownAccount(ValueError):
    """A user or group that there is not, or that cannot be become; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who to be: numbers of a user and of its groups. Made by `account_of`."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    def become(self, no_new_privileges: bool = False) -> None:
        """Give up all other rights for good (setresuid(2)); raise OSError.

        `no_new_privileges`: nothing that is executed gets more, not even by a set-user-id bit (prctl(2)).
        """
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if no_new_privileges:
            ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def own(self, path: str) -> None:
        """Give a file or directory to the user, if it is one of ours to give."""
        with contextlib.suppress(OSError):
            os.chown(path, self.uid, self.gid)


def account_of(user: str, group: str) -> Account | None:
    """Return who `user` and `group` are, names or numbers; None if that is who we are already. Raise UnknownAccount."""
    if not user and not group:
        return None
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user or pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        raise UnknownAccount(f"there is no user {user!r}; see getent passwd") from None
    gid = entry.pw_gid
    if group:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise UnknownAccount(f"there is no group {group!r}; see getent group") from None
    if os.geteuid():
        if (entry.pw_uid, gid) == (os.geteuid(), os.getegid()):
            return None
        raise UnknownAccount(f"{user or group!r}: only root can become another; leave it out")
    return Account(entry.pw_name, entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)))


def own_logs(settings: Settings) -> None:
    """Have logs that workers can open: created where they are missing, and the user's."""
    if settings.account:
        for path in (settings.access_log, settings.error_log):
            if path not in ("-", "off"):
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
                settings.account.own(path)


def for_account(pool: Pool, account: Account | None) -> Pool:
    """Return a pool that runs as the server's user, unless it has one of its own, and that this user may connect to."""
    if not account:
        return pool
    given = {directive.partition("=")[0] for directive in pool.directives}
    own = {"user": str(account.uid), "group": str(account.gid)} if not given & {"user", "group"} else {}
    own |= {"listen_owner": str(account.uid)} if pool.server.address.path else {}
    more = [f"{key}={value}" for key, value in own.items() if key not in given]
    return replace(pool, directives=(*pool.directives, *more))
