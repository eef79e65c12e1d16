"""How many connections all front workers together may hold to one FastCGI server, and which worker gets the next.

A FastCGI child serves one connection at a time, and an idle one pins it. So there are as many tokens as the server has
children; who connects takes one out of a pipe, who closes puts it back, as the processes of a jobserver do. A worker
keeps a connection while it has work for it. Who waits writes down since when, in memory that all workers share; who
ends a request looks there, and leaves the child to a worker whose oldest request has waited for much longer.

A token in the pipe wakes nobody. Whoever puts one back pokes the worker whose turn it is, and that one takes it. Each
side writes down what it wants before it looks for what the other side did, so that none of them sleeps over the other.
"""

from __future__ import annotations

import mmap
import os

from fcgi_pool.told import Board

# How often workers have come or gone; then the numbers of each worker's place.
_VERSION = 0
_HEADER = 1
_HELD, _IDLE, _WAITING, _SINCE, _USED = range(5)
_NUMBERS = 5
# All of them fit into the smallest pipe, a page.
MOST = 4096

# A connection is handed over to a worker whose oldest request has waited longer than ours by so many seconds. Closing
# one and opening another costs about as much as a short request, so it pays to serve some before. A worker that holds
# more than its share hands over earlier.
_PATIENCE = 0.005
_PATIENCE_OF_THE_RICH = 0.001


class Tokens:
    """`count` tokens of one FastCGI server. Made by the master before the workers that share it are forked.

    There are `places` for workers. Those of an old generation have theirs until they have gone, so that both together
    hold no more connections than there are tokens. `board`: where the manager of a pool of ours is told what the
    connections carry.
    """

    def __init__(self, count: int, places: int, board: Board | None) -> None:
        self.count = count
        self.board = board
        self.reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(self._writing, bytes(count))
        self._memory = mmap.mmap(-1, (_HEADER + places * _NUMBERS) * 8)
        # Each number is read and written in one piece.
        self.numbers = memoryview(self._memory).cast("d")
        self.pokes = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(places)]
        self._free = set(range(places))

    # -- the master's side

    @property
    def places(self) -> int:
        """How many workers can share them."""
        return len(self.pokes)

    def join(self) -> int:
        """Return the place of a new worker."""
        place = min(self._free)
        self._free.remove(place)
        self._set_used(place, 1.0)
        return place

    def leave(self, place: int) -> None:
        """A worker has gone for good; what it held was put back. Without any worker the tokens are given up."""
        self._set_used(place, 0.0)
        self._free.add(place)
        if len(self._free) == self.places:
            for descriptor in (self.reading, self._writing, *self.pokes):
                os.close(descriptor)

    def _set_used(self, place: int, used: float) -> None:
        self.numbers[_first(place) + _USED] = used
        self.numbers[_VERSION] += 1.0

    def put_back(self, count: int) -> None:
        """Put tokens back."""
        if count:
            os.write(self._writing, bytes(count))

    def recover(self, place: int) -> None:
        """Put back what the worker of a place held that has died, and wake the others."""
        first = _first(place)
        held = int(self.numbers[first + _HELD])
        for number in (_HELD, _IDLE, _WAITING, _SINCE):
            self.numbers[first + number] = 0.0
        if self.board:
            self.board.clear(place)
        self.put_back(held)
        for poke in self.pokes:
            os.eventfd_write(poke, 1)


class Share:
    """One worker's side of the tokens."""

    def __init__(self, tokens: Tokens, place: int) -> None:
        self._tokens = tokens
        self._numbers = tokens.numbers
        self._place = place
        self._mine = _first(place)
        self._version = -1.0
        self._known: list[tuple[int, int]] = []
        self._held: list[int] = []
        self.poked = tokens.pokes[place]
        self.places = tokens.board.places(place) if tokens.board else None

    def __repr__(self) -> str:
        held, idle, waiting = (int(self._numbers[self._mine + number]) for number in (_HELD, _IDLE, _WAITING))
        return f"<Share: {held} of {self._tokens.count} held, {idle} idle, {waiting} waiting>"

    @property
    def _peers(self) -> list[tuple[int, int]]:
        """The other workers: place, and where its numbers begin."""
        version = self._numbers[_VERSION]
        if version != self._version:
            self._version = version
            places = range(self._tokens.places)
            used = [(place, _first(place)) for place in places if self._numbers[_first(place) + _USED]]
            self._held = [first + _HELD for _, first in used]
            self._known = [peer for peer in used if peer[0] != self._place]
        return self._known

    def take(self) -> bool:
        """Take a token; return False if there is none."""
        # Who puts one back counts it down afterwards, and then looks for who waits: so whoever has written down that it
        # waits, and finds all of them held here, is poked.
        if self._peers and sum([self._numbers[place] for place in self._held]) >= self._tokens.count:
            return False
        # Counted before it is taken: if this process is killed in between, there is one too many and not one too few.
        self._numbers[self._mine + _HELD] += 1
        try:
            os.read(self._tokens.reading, 1)
        except BlockingIOError:
            self._numbers[self._mine + _HELD] -= 1
            return False
        return True

    def give(self) -> None:
        """Put a token back, and poke the worker that has waited longest."""
        self._tokens.put_back(1)
        self._numbers[self._mine + _HELD] -= 1
        self.poke_neediest()

    def poke_neediest(self) -> None:
        """Wake the worker whose oldest request has waited longest, if any waits: a token may be there for it."""
        neediest = min(filter(self._waits, self._peers), key=self._since, default=None)
        if neediest:
            os.eventfd_write(self._tokens.pokes[neediest[0]], 1)

    def tell(self, waiting: int, since: float, idle: int) -> None:
        """Write down how many requests wait, since when (monotonic seconds) the oldest, and idle connections."""
        numbers, mine = self._numbers, self._mine
        numbers[mine + _SINCE] = since
        numbers[mine + _WAITING] = waiting
        numbers[mine + _IDLE] = idle

    def ask_for_idle(self) -> None:
        """Poke the workers that hold idle connections: requests wait here."""
        for peer, first in self._peers:
            if self._numbers[first + _IDLE]:
                os.eventfd_write(self._tokens.pokes[peer], 1)

    @property
    def has_peers(self) -> bool:
        """Whether there are other workers."""
        return bool(self._peers)

    @property
    def others_waiting(self) -> int:
        """How many requests wait in the other workers."""
        return int(sum(self._numbers[first + _WAITING] for _, first in self._peers))

    def should_hand_over(self, since: float) -> bool:
        """Whether the next connection is another worker's, where the oldest request here waits since `since`.

        Where none waits, `since` is infinity.
        """
        for peer in self._peers:
            if self._waits(peer):
                others = self._since(peer)
                if others + _PATIENCE_OF_THE_RICH < since:
                    patience = _PATIENCE_OF_THE_RICH if self._is_rich(peer) else _PATIENCE
                    if others + patience < since:
                        return True
        return False

    def _is_rich(self, peer: tuple[int, int]) -> bool:
        """Whether this worker would still hold as many as `peer` after handing over one."""
        return self._numbers[self._mine + _HELD] > self._numbers[peer[1] + _HELD] + 1

    def _waits(self, peer: tuple[int, int]) -> bool:
        return self._numbers[peer[1] + _WAITING] > 0

    def _since(self, peer: tuple[int, int]) -> float:
        return self._numbers[peer[1] + _SINCE]


def _first(place: int) -> int:
    """Return where a place's numbers begin."""
    return _HEADER + place * _NUMBERS
