"""Numbers of system calls that neither Python nor Perl has a name for, by machine (the kernel's unistd.h)."""

from __future__ import annotations

import os


class Unknown(Exception):
    """The numbers of this machine are not known; the text says of which."""


# clone, recvmsg, sendmsg, memfd_create, dup3, prctl, setsid, exit_group
_NUMBERS = {
    "x86_64": (56, 47, 46, 319, 292, 157, 112, 231),
    "aarch64": (220, 212, 211, 279, 24, 167, 157, 94),
    "riscv64": (220, 212, 211, 279, 24, 167, 157, 94),
}


def calls(kind: str) -> list[bytes]:
    """Return the numbers that a bootstrap of `kind` needs; raise Unknown."""
    machine = os.uname().machine
    if machine not in _NUMBERS:
        raise Unknown(f"the system calls of a {machine} are not known")
    numbers = _NUMBERS[machine][:1] if kind == "python" else _NUMBERS[machine]
    return [b",".join(b"%d" % number for number in numbers)]
