"""Where a connection stands."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """What a connection waits for."""

    IDLE = enum.auto()  # a request to begin
    HEAD = enum.auto()  # the rest of a head
    ANSWER = enum.auto()  # the answer; the request's body, if any, has not been asked for or is complete
    BODY = enum.auto()  # the rest of a body
    LINGER = enum.auto()  # the client's close, after an error
    CLOSING = enum.auto()  # the client's taking of what was written
