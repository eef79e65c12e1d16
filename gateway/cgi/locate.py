"""Which file a path below a CGI directory means, and what of the path is left for the program."""

from __future__ import annotations

import os
import stat

from gateway.cgi.variables import Script
from gateway.fault import Fault


def locate(
    directory: bytes, prefix: bytes, segments: tuple[bytes, ...], is_directory: bool, follow_links: bool
) -> Script | Fault:
    """Return the program that `segments` lead to below `directory`, or why there is none.

    The first regular file on the way is the program; the segments after it are its PATH_INFO (RFC 3875 section
    4.1.5). `prefix` is the mount's, with a slash at its end. Symbolic links are the administrator's and followed,
    unless `follow_links` is false.
    """
    path = directory
    for position, segment in enumerate(segments):
        if b"/" in segment:
            return Fault(404, "no program's name holds an encoded slash")
        path = path + b"/" + segment
        try:
            mode = (os.stat if follow_links else os.lstat)(path).st_mode
        except PermissionError:
            words = f"{os.fsdecode(path)}: the server's user may not search its directory: chmod +x for that"
            return Fault(403, words)
        except OSError as error:
            return Fault(404, f"{os.fsdecode(path)}: {error.strerror}")
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            kind = "a symbolic link, and links are not followed here" if stat.S_ISLNK(mode) else "not a regular file"
            return Fault(404, f"{os.fsdecode(path)} is {kind}")
        if not mode & 0o111:
            return Fault(403, f"{os.fsdecode(path)} is not executable: chmod +x {os.fsdecode(path)}")
        return Script(
            prefix + b"/".join(segments[: position + 1]), path, path_info(segments[position + 1 :], is_directory)
        )
    return Fault(404, f"{os.fsdecode(path)} is a directory")


def path_info(rest: tuple[bytes, ...], is_directory: bool) -> bytes:
    """Return what of a path is left for a program, its segments `rest`; '' if nothing is."""
    if not rest:
        return b"/" if is_directory else b""
    return b"/" + b"/".join(rest) + (b"/" if is_directory else b"")
