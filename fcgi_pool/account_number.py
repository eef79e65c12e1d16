"""Numbers in the place of names of users and groups."""

from __future__ import annotations

# To setresuid(2) and chown(2) this one is -1: "stay as you are".
_NONE = 2**32 - 1


def account_number(text: str) -> int | None:
    """Return the number that `text` is, None if it is a name; raise ValueError for a number that nobody can have."""
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    if number >= _NONE:
        raise ValueError(f"{text}: numbers of users and groups are less than {_NONE}")
    return number
