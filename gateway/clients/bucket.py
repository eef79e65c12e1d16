"""A leaky bucket in one number. Pure: the clock is an argument.

The bucket holds what has come and has not leaked out at the rate. All there is to know of it is when it will be empty,
given that nothing more comes: a request that comes puts this moment off by 1/rate, and one that would put it off past
what the burst allows is refused and changes nothing. The same requests pass as with nginx's limit_req, which keeps how
full it is and since when (two numbers that must be written together; one number is written in one piece). ATM Forum
TM 4.1 calls it the virtual scheduling algorithm.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.clients.settings import RateLimit


class Verdict(NamedTuple):
    """Whether a request passes, and when the bucket is empty after it.

    `wait`, in seconds: of a request that passes, until its turn at the rate; of one that does not, until another would.
    """

    passes: bool
    empty_at: float
    wait: float


def judge(limit: RateLimit, empty_at: float, now: float) -> Verdict:
    """Judge a request at `now` where the bucket would have been empty `empty_at`; 0.0 for a new one."""
    ahead = empty_at - now
    if ahead <= 0.0:
        return Verdict(True, now + 1.0 / limit.rate, 0.0)
    too_long = ahead - limit.burst / limit.rate
    # A billionth: a request that comes exactly when it may is not refused for a rounding.
    if too_long > 1e-9:
        return Verdict(False, empty_at, too_long)
    return Verdict(True, empty_at + 1.0 / limit.rate, ahead)
