"""What a manager waits for: descriptors, each with what is to be done when it is readable."""

from __future__ import annotations

import selectors
from collections.abc import Callable


class Loop:
    """Calls back for descriptors that are readable. One thread, no order among them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `descriptor` is readable, until it is ignored."""
        self._selector.register(descriptor, selectors.EVENT_READ, ready)

    def ignore(self, descriptor: int) -> None:
        """Watch a descriptor no longer; before it is closed."""
        self._selector.unregister(descriptor)

    def wait(self, seconds: float) -> None:
        """Wait for readable descriptors, so many seconds at most, and call back for each."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            # An earlier one's callback may have ended this one.
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def close(self) -> None:
        """Give the descriptor back."""
        self._selector.close()
