"""What a worker is given of TLS."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.tls.certificates import Credentials


@dataclass(frozen=True, slots=True)
class TlsShare:
    """The listeners that speak TLS, and what is shown there: as the master has read it when the worker is forked."""

    listeners: Sequence[socket.socket]
    credentials: Credentials
