"""The file that holds the pid of the master that serves."""

from __future__ import annotations

import contextlib
import os

from gateway.own_file import open_to_write


class PidFile:
    """The file at `path`; none for ''."""

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self) -> None:
        """Raise OSError if it cannot be written; change nothing."""
        if self.path:
            is_new = not os.path.exists(self.path)
            os.close(open_to_write(self.path))
            if is_new:
                os.unlink(self.path)

    def write(self) -> None:
        """Write this process's pid in place of whatever stands there; raise OSError.

        In one piece and without emptying the file: whoever reads it at an upgrade finds the old pid or the new one.
        """
        if self.path:
            data = b"%d\n" % os.getpid()
            descriptor = open_to_write(self.path)
            try:
                os.pwrite(descriptor, data, 0)
                os.ftruncate(descriptor, len(data))
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        """Remove it if it holds this process's pid."""
        if self.path:
            with contextlib.suppress(OSError), open(self.path, "rb") as file:
                if file.read(32) == b"%d\n" % os.getpid():
                    os.unlink(self.path)
