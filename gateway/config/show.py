"""Settings as a text that a person reads and diff compares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from fcgi_pool.listener import Address
from gateway.settings import Settings


def shown_settings(settings: Settings) -> str:
    """Return one line for each value, ``routes[1].mount.directory = "/srv/www"``, in the settings' order."""
    return "".join(f"{place} = {value}\n" for place, value in _lines("", settings))


def _lines(place: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Address):
        yield place, f'"{value}"'
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            inner = f"{place}.{field.name}" if place else field.name
            yield from _lines(inner, getattr(value, field.name))
    elif isinstance(value, tuple):
        if not value:
            yield place, "[]"
        elif all(isinstance(item, str | int) for item in value):
            yield place, f"[{', '.join(map(_scalar, value))}]"
        else:
            for number, item in enumerate(value):
                yield from _lines(f"{place}[{number + 1}]", item)
    else:
        yield place, _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, int | float):
        return str(value)
    # A line stays one, as TOML escapes what is in it; a byte that was no UTF-8 (PEP 383) is shown by its escape.
    return json.dumps(str(value), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
