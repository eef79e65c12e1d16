"""What all front workers together know of client addresses: how fast each asks, how many connections it has.

A hash table of fixed size in memory that the master makes before it forks. Some facts about it:

- An entry is a key, a digest of the client's identity under a secret, so that nobody can choose addresses that fall
  into one place; the moment at which its bucket is empty; and for each worker how many connections it has. Each number
  is written in one piece, and a worker's counts by that worker alone.
- A key has eight places where it may be. One is free when its bucket is empty and nobody counts there. If none is,
  the one with no connection whose bucket is empty first is forgotten; if all have connections, the new client is not
  counted. So whoever has more networks than there are entries is not limited, and nobody is refused for another's.
- There is no lock. Two workers that write the moment of one bucket at once lose one of the two requests. Two that take
  one free place at once for two clients leave it to one of them; the other's is taken again with its next request. A
  worker writes what it knows itself and never adds to what it finds, so a wrong count is put right with the next
  connection of that client that comes or goes.
- What a dead worker counted is cleared by the master.
"""

from __future__ import annotations

import mmap
import os
from hashlib import blake2b

from gateway.clients.bucket import Verdict, judge
from gateway.clients.settings import RateLimit

_WAYS = 8
_NUMBER = 8
_COUNT = 4


class ClientTable:
    """`entries` clients, at most, as `workers` workers see them. Made by the master before it forks."""

    def __init__(self, entries: int, workers: int) -> None:
        self.sets = max(1, entries // _WAYS)
        self.entries = self.sets * _WAYS
        self.workers = workers
        self.secret = os.urandom(16)
        numbers = 2 * self.entries * _NUMBER
        self._memory = mmap.mmap(-1, numbers + workers * self.entries * _COUNT)
        view = memoryview(self._memory)
        self.keys = view[: numbers // 2].cast("Q")
        self.empty_at = view[numbers // 2 : numbers].cast("d")
        self.counts = view[numbers:].cast("I")

    def __repr__(self) -> str:
        used = sum(1 for key in self.keys if key)
        return f"<ClientTable: {used} of {self.entries} used, {sum(self.counts)} connections>"

    def recover(self, worker: int) -> None:
        """Forget the connections of a worker that has died."""
        first = worker * self.entries
        self.counts[first : first + self.entries] = memoryview(bytes(self.entries * _COUNT)).cast("I")

    def key(self, identity: bytes) -> int:
        """Return the key of a client (see `client_identity`); never 0."""
        digest = blake2b(identity, digest_size=_NUMBER, key=self.secret).digest()
        return int.from_bytes(digest, "little") or 1


class ClientShare:
    """One worker's side of the table."""

    def __init__(self, table: ClientTable, worker: int) -> None:
        self.key = table.key
        self._keys = table.keys
        self._empty_at = table.empty_at
        self._counts = table.counts
        self._sets = table.sets
        self._mine = worker * table.entries
        self._columns = [number * table.entries for number in range(table.workers)]
        # Clients that have connections here: how many, and where that was written.
        self._here: dict[int, int] = {}
        self._places: dict[int, int] = {}

    def ask(self, key: int, limit: RateLimit, now: float) -> Verdict:
        """Count a request of a client; return whether it passes. `now` is monotonic seconds."""
        place = self._find(key)
        if place < 0:
            place = self._take(key, now)
            if place < 0:
                return Verdict(True, now, 0.0)
        verdict = judge(limit, self._empty_at[place], now)
        if verdict.passes:
            self._empty_at[place] = verdict.empty_at
        return verdict

    def arrive(self, key: int, now: float) -> int:
        """Count a connection of a client; return how many it has, with this one, in all workers."""
        self._here[key] = mine = self._here.get(key, 0) + 1
        place = self._find(key)
        if place < 0:
            place = self._take(key, now)
            if place < 0:
                return mine
        self._write(key, place)
        return sum([self._counts[column + place] for column in self._columns])

    def leave(self, key: int) -> None:
        """A connection of a client has ended."""
        left = self._here.get(key, 0) - 1
        if left > 0:
            self._here[key] = left
        else:
            self._here.pop(key, None)
        place = self._find(key)
        if place >= 0:
            self._write(key, place)
        else:
            self._tidy(self._places.pop(key, -1))

    def _find(self, key: int) -> int:
        """Return the place of a key, -1 for none."""
        first = key % self._sets * _WAYS
        try:
            return first + self._keys[first : first + _WAYS].tolist().index(key)
        except ValueError:
            return -1

    def _take(self, key: int, now: float) -> int:
        """Return a place for a new key; -1 if there are connections in all of them."""
        first = key % self._sets * _WAYS
        for place in sorted(range(first, first + _WAYS), key=self._empty_at.__getitem__):
            if not any(self._counts[column + place] for column in self._columns):
                self._keys[place] = key
                self._empty_at[place] = now
                return place
        return -1

    def _write(self, key: int, place: int) -> None:
        """Write down how many connections of `key` are here; clear where that was written before."""
        before = self._places.get(key, place)
        here = self._here.get(key, 0)
        self._counts[self._mine + place] = here
        if here:
            self._places[key] = place
        else:
            self._places.pop(key, None)
        if before != place:
            self._tidy(before)

    def _tidy(self, place: int) -> None:
        """Where another client's key stands now, write what is counted there of that one."""
        if place >= 0:
            key = self._keys[place]
            is_there = self._places.get(key) == place
            self._counts[self._mine + place] = self._here.get(key, 0) if is_there else 0
