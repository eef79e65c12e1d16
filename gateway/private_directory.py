"""A directory for sockets that are nobody else's, which goes with the server, however that ends.

Who has it holds a lock on it (flock(2)), as do the processes that are forked by it. A server that is killed cannot
remove it; but its lock goes, and the next server that starts removes what nobody holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator

_PREFIX = "gateway_"
# Until it is locked it has another name, by which nobody looks for it.
_UNLOCKED = ".gateway_"


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """Give a new directory that only this user can enter, see `let_pass`; it is removed at the end. Raise OSError."""
    place = tempfile.gettempdir()
    _remove_abandoned(place)
    made = tempfile.mkdtemp(prefix=_UNLOCKED, dir=place)
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: it stays until somebody removes it
            fcntl.flock(lock, fcntl.LOCK_EX)
        path = os.path.join(place, _PREFIX + os.path.basename(made).removeprefix(_UNLOCKED))
        os.rename(made, path)
        made = path
        yield path
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def let_pass(path: str) -> None:
    """Let other users pass a private directory: who may connect to a socket in it is told by the socket's own mode.

    So workers of several users, before and after a reload, have what is theirs.
    """
    os.chmod(path, 0o711)


def _remove_abandoned(place: str) -> None:
    """Remove the directories of servers of this user that have died."""
    names = []
    with contextlib.suppress(OSError):  # one may write there, and not see what is there
        names = os.listdir(place)
    for name in names:
        if name.startswith(_PREFIX):
            with contextlib.suppress(OSError):
                _remove_if_abandoned(os.path.join(place, name))


def _remove_if_abandoned(path: str) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    finally:
        os.close(lock)
