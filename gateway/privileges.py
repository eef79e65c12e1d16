"""Whom the workers and the programs run as, where the server is started by root.

The master stays root: it owns ports and keys, and sees no request. Workers have opened their logs and read the keys
when they give their rights up; a spawner has done nothing yet, so every program runs as its route's user.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fcgi_pool.account_number import account_number
from gateway.own_file import open_to_write

if TYPE_CHECKING:
    from gateway.settings import Pool, Settings

_PR_SET_NO_NEW_PRIVS = 38
# A user that nobody is: below nobody's own number (65534), so that it is there in a user namespace, too, and no name's.
_NOBODY = 65533
_WHO = {"user", "group"}  # directives of a pool
_AS_ROOT = 'whoever breaks one has the machine. Name a user: --user www-data, or user = "www-data" in [server]'


class UnknownAccount(ValueError):
    """A user or group that there is not, or that cannot be become; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who to be: numbers of a user and of its groups. Made by `account_of`."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    def become(self) -> None:
        """Give up all other rights for good (setresuid(2)); raise OSError."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    def signal_as(self) -> None:
        """Signal whom the user may signal, and nobody else, for good; raise OSError.

        The user may not signal this process, stop it above all, as it may one that has become the user: it is the real
        and the saved user who are signalled, and the effective and the real one who signal (kill(2)).
        """
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(_NOBODY, self.uid, _NOBODY)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Look at files as the user for a moment, with nobody else's rights; raise OSError.

        To signal it is not enough: the real user stays, who counts there, too (kill(2)). It is the whole process's
        doing: whoever does this has one thread.
        """
        groups, group, user = os.getgroups(), os.getegid(), os.geteuid()
        try:
            os.setgroups(self.groups)
            os.setegid(self.gid)
            os.seteuid(self.uid)
            yield
        finally:
            os.seteuid(user)
            os.setegid(group)
            os.setgroups(groups)

    def may(self, found: os.stat_result, right: int) -> bool:
        """Return whether the mode of a file gives a right: 4 to read, 2 to write, 1 to execute or search. Pure.

        Access control lists (acl(5)) are not looked at: it is to say why the kernel has refused something.
        """
        if not self.uid:
            return right != 1 or stat.S_ISDIR(found.st_mode) or bool(found.st_mode & 0o111)
        if found.st_uid == self.uid:
            return bool(found.st_mode >> 6 & right)
        if found.st_gid in (self.gid, *self.groups):
            return bool(found.st_mode >> 3 & right)
        return bool(found.st_mode & right)

    def closed_directory(self, path: str) -> str:
        """Return the first directory on the way to `path` that the user may not search, '' if none is seen."""
        parts = os.path.realpath(path).split("/")[1:-1]
        for number in range(len(parts) + 1):
            directory = "/" + "/".join(parts[:number])
            with contextlib.suppress(OSError):
                if not self.may(os.stat(directory), 1):
                    return directory
        return ""

    def own(self, descriptor: int) -> None:
        """Give an open file to the user, if it is one of ours to give."""
        # One with another name, too, may be another's file that somebody has linked to.
        if os.fstat(descriptor).st_nlink <= 1:
            os.fchown(descriptor, self.uid, self.gid)


def account_of(user: str, group: str) -> Account | None:
    """Return who `user` and `group` are, names or numbers; None if that is who we are already. Raise UnknownAccount."""
    if not user and not group:
        return None
    try:
        name, uid, gid = _user(user)
    except (KeyError, ValueError):
        raise UnknownAccount(f"there is no user {user!r}; see getent passwd") from None
    if group:
        try:
            number = account_number(group)
            gid = grp.getgrnam(group).gr_gid if number is None else number
        except (KeyError, ValueError):
            raise UnknownAccount(f"there is no group {group!r}; see getent group") from None
    if os.geteuid():
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return None
        raise UnknownAccount(f"{user or group!r}: only root can become another; leave it out")
    groups = tuple(os.getgrouplist(name, gid)) if name else (gid,)
    return Account(name or str(uid), uid, gid, groups)


def _user(user: str) -> tuple[str, int, int]:
    """Return name, number and group of a user, '' for the present one; raise KeyError or ValueError.

    A number needs no name.
    """
    uid = account_number(user) if user else os.geteuid()
    if uid is None:
        entry = pwd.getpwnam(user)
    else:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return "", uid, uid
    return entry.pw_name, entry.pw_uid, entry.pw_gid


def own_account() -> Account:
    """Return who this process is."""
    uid = os.geteuid()
    name = _user("")[0] or str(uid)
    return Account(name, uid, os.getegid(), tuple(os.getgroups()))


def forbid_new_privileges() -> None:
    """Let nothing that this process executes have more rights, not even by a set-user-id bit (prctl(2)); for good."""
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def has_capability(number: int) -> bool:
    """Return whether this process has a capability (capabilities(7)), by its number."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "CapEff":
                return bool(int(value, 16) >> number & 1)
    return False


def as_root(settings: Settings) -> str:
    """Return a warning where the server is root, and workers or programs stay it; '' where none is due."""
    if os.geteuid():
        return ""
    programs = [bool(confinement.account and confinement.account.uid) for confinement in settings.confinements]
    if not all(programs):
        return f"it runs as root, and so do {'some' if any(programs) else 'all'} programs: {_AS_ROOT}"
    workers = settings.account and settings.account.uid
    return "" if workers else f"it runs as root, and so do its workers: {_AS_ROOT}"


def own_logs(settings: Settings) -> None:
    """Have logs that workers can open: created where they are missing, and the user's."""
    if settings.account:
        for path in (settings.access_log, settings.error_log):
            if path not in ("-", "off"):
                with contextlib.suppress(OSError), open(open_to_write(path, os.O_APPEND), "wb") as file:
                    settings.account.own(file.fileno())


def for_account(pool: Pool, account: Account | None, no_new_privileges: bool = False) -> Pool:
    """Return a pool that runs as `account`, unless it has a user of its own, with the server's `no_new_privileges`."""
    if no_new_privileges:
        pool = replace(pool, no_new_privileges=True)
    given = {directive.partition("=")[0] for directive in pool.directives}
    return _with(pool, {"user": str(account.uid), "group": str(account.gid)} if account and not given & _WHO else {})


def for_worker(pool: Pool, account: Account | None) -> Pool:
    """Return a pool that the front workers, who are `account`, may connect to."""
    return _with(pool, {"listen_owner": str(account.uid)} if account and pool.server.address.path else {})


def _with(pool: Pool, own: dict[str, str]) -> Pool:
    given = {directive.partition("=")[0] for directive in pool.directives}
    more = [f"{key}={value}" for key, value in own.items() if key not in given]
    return replace(pool, directives=(*pool.directives, *more)) if more else pool
