"""Files that root writes to in directories that may be somebody else's."""

from __future__ import annotations

import errno
import os

_STRANGE = "root does not follow a symbolic link that is not root's"


def open_to_write(path: str, more: int = 0) -> int:
    """Return a descriptor to write to a file, created where it is missing; raise OSError. `more`: flags of open(2).

    Who may write to the directory could lead root elsewhere by a symbolic link, to /etc/passwd say, or have it wait for
    ever by a FIFO. So root follows a link only if it is root's, as fs.protected_symlinks has it, and does not wait.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | more
    if os.geteuid():
        return os.open(path, flags, 0o644)
    flags |= os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        descriptor = os.open(_target(path), flags, 0o644)
    os.set_blocking(descriptor, True)
    return descriptor


def link_trouble(path: str) -> str:
    """Return why a symbolic link at `path` is not followed, "" where there is none or it is."""
    return _STRANGE if not os.geteuid() and os.path.islink(path) and os.lstat(path).st_uid else ""


def _target(path: str) -> str:
    """Return where a symbolic link of root's leads to; raise OSError. It is held: it may be replaced meanwhile."""
    link = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(link).st_uid:
            raise PermissionError(errno.EPERM, _STRANGE, path)
        return os.path.join(os.path.dirname(path), os.readlink("", dir_fd=link))
    finally:
        os.close(link)
