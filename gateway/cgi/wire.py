"""What a front worker and its spawner say to each other: one SEQPACKET message, one marshalled value.

Both are children of one master and run the same interpreter, so marshal, the fastest codec there is, is safe here.
Worker to spawner: a `Start` with the descriptors stdin (absent: /dev/null), stdout, stderr; or the id of a run to be
ended, as an int. Spawner to worker: a list of events, several at once under load; the first list is empty, and says
that the spawner is ready.
"""

from __future__ import annotations

import marshal
import socket
from typing import cast

# id, program's path, working directory, environment, whether what it leaves in its process group is ended with it,
# and the number of the mount by whose warm interpreters it is run, or COLD.
Start = tuple[int, bytes, bytes, dict[bytes, bytes], bool, int]
COLD = -1
# ("started", id, pid) · ("failed", id, "chdir", "exec" or "limits", errno)
# ("ended", id, pid, wait status, CPU seconds, peak memory in bytes)
# ("cold", id, why): it was to be run warm, and is started cold · ("unfit", id, why): so it is not started at all
Event = (
    tuple[str, int, int] | tuple[str, int, str] | tuple[str, int, str, int] | tuple[str, int, int, int, float, int]
)

# A head of 64 KiB makes an environment little larger; the kernel takes no single variable over 128 KiB.
MESSAGE_LIMIT = 256 * 1024
# Room for messages in flight, so that a burst need not wait for the spawner.
_BUFFER = 4 * 1024 * 1024


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return ends


def encode_start(start: Start) -> bytes:
    """Return the message that asks for a program."""
    return marshal.dumps(start)


def encode_end(run_id: int) -> bytes:
    """Return the message that asks for the end of a run."""
    return marshal.dumps(run_id)


def decode_request(message: memoryview) -> Start | int:
    """Return what a worker asks."""
    return cast("Start | int", marshal.loads(message))


def encode_events(events: list[Event]) -> bytes:
    """Return the message that tells events."""
    return marshal.dumps(events)


def decode_events(message: memoryview) -> list[Event]:
    """Return what a spawner tells."""
    return cast("list[Event]", marshal.loads(message))
