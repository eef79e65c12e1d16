"""The pids of running programs, in memory that a spawner and the master share.

The spawner alone signals and reaps. But if it is killed, somebody must end what it started, and a message about a
program that has just been started may never have been sent. Here the spawner writes each pid at its start, which costs
no system call, and the master reads them when the spawner is gone: it may signal, where the worker is another user.
"""

from __future__ import annotations

import mmap
import struct

_PID = struct.Struct("=i")


class Roll:
    """At most `places` pids. Made before the processes that share it are forked."""

    def __init__(self, places: int) -> None:
        self._memory = mmap.mmap(-1, places * _PID.size)
        self._free = list(range(places))
        self._places: dict[int, int] = {}  # pid: place

    def add(self, pid: int) -> None:
        """Note a program that was started. Beyond the number of places nothing is noted."""
        if self._free:
            place = self._places[pid] = self._free.pop()
            _PID.pack_into(self._memory, place * _PID.size, pid)

    def remove(self, pid: int) -> None:
        """Strike out a program that was reaped."""
        place = self._places.pop(pid, None)
        if place is not None:
            _PID.pack_into(self._memory, place * _PID.size, 0)
            self._free.append(place)

    def clear(self) -> list[int]:
        """Return the pids that are noted, and strike them out: the spawner that noted them is gone."""
        # What programs of the same user might have written there is no pid of a group.
        pids = [pid for (pid,) in _PID.iter_unpack(self._memory[:]) if pid > 1]
        self._memory[:] = bytes(len(self._memory))
        return pids
