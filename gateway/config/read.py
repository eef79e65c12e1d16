"""A configuration file as a document, or one line for each mistake: the file, the line, the key, and what would be
right."""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Sequence

import msgspec

from gateway.config.errors import ConfigFileError, Mistake, Where
from gateway.config.keys import Document

# More than anybody writes; a device given by mistake has no end.
_MOST = 8 * 1024 * 1024
_LINE = re.compile(r"\(at line ([0-9]+), ")
_PATH = re.compile(r"^(.*?)(?: - at `(?:key in )?\$(.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_TYPE = re.compile(r"Expected `(.*)`, got `(.*)`")
_TYPES = {
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list, as [\"…\"]",
    "object": "a table",
    "null": "nothing",
}
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")


def read_document(path: str) -> tuple[Document, str]:
    """Return what the file says, and its text; raise ConfigFileError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise ConfigFileError(f"{path}: over {_MOST // 1024} KiB; that is no configuration file")
        text = data.decode("utf-8-sig")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigFileError(f"{path}: not UTF-8, as TOML is") from None
    except tomllib.TOMLDecodeError as error:
        found = _LINE.search(str(error))
        raise ConfigFileError(f"{path}{':' + found[1] if found else ''}: not TOML: {error}") from None
    except ConfigFileError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list …
        raise ConfigFileError(f"{path}: not TOML that can be read: {error}") from None
    try:
        _refuse_nul(raw, ())
    except Mistake as mistake:
        raise located(path, text, mistake) from None
    try:
        return msgspec.convert(raw, Document), text
    except msgspec.ValidationError as error:
        raise located(path, text, _mistake(str(error))) from None


def located(path: str, text: str, mistake: Mistake) -> ConfigFileError:
    """Return the error that says where in the file a mistake is."""
    line = line_of(text, mistake.where)
    words = f"{shown(mistake.where)}: {mistake}"
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)
    return ConfigFileError(f"{path}:{line or 1}: {printable}")


def _refuse_nul(value: object, where: Where) -> None:
    """Raise Mistake where a text holds a NUL, which no path, name or variable can."""
    if isinstance(value, str) and "\0" in value:
        raise Mistake(where, "there is a NUL in it")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, one in inner:
        _refuse_nul(part, where)
        _refuse_nul(one, (*where, part))


def shown(where: Where) -> str:
    """Return the name of a place: ``routes[2].cgi``, counted from 1."""
    words = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where)
    return words.removeprefix(".") or "the file"


def _mistake(words: str) -> Mistake:
    """Return what msgspec says as a mistake in our words."""
    found = _PATH.match(words)
    assert found
    what, path = found[1], found[2] or ""
    where: Where = tuple(int(step[2]) if step[2] else step[1] for step in _STEP.finditer(path) if step[1] or step[2])
    if unknown := _UNKNOWN.search(what):
        known = names_at(where)
        close = difflib.get_close_matches(unknown[1], known, 1, 0.6)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        return Mistake((*where, unknown[1]), f"there is no such key; {hint}")
    if missing := _MISSING.search(what):
        return Mistake(where, f"{missing[1]} is missing")
    if kinds := _TYPE.search(what):
        wanted, got = (
            " or ".join(_TYPES.get(kind.strip(), kind.strip()) for kind in text.split("|") if kind.strip() != "null")
            for text in kinds.groups()
        )
        return Mistake(where, f"{got} where {wanted} belongs")
    return Mistake(where, what)


def names_at(where: Where) -> list[str]:
    """Return the keys that a place may have."""
    kind: object = Document
    for part in where:
        if isinstance(part, int):
            continue  # an element is what its list is of
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
            kind = fields.get(str(part))
        while kind is not None and not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            inner = [argument for argument in typing.get_args(kind) if argument is not type(None)]
            structs = [argument for argument in inner if _leads_to_struct(argument)]
            kind = structs[0] if structs else None
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [field.name for field in msgspec.structs.fields(kind)]
    return []


def _leads_to_struct(kind: object) -> bool:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return True
    return any(_leads_to_struct(argument) for argument in typing.get_args(kind))


def line_of(text: str, where: Where) -> int:
    """Return the line, from 1, where a place of a TOML text begins; that of the nearest thing around it; 0 for none."""
    best = (0, 0)  # how many parts fit, and the line
    table: Where = ()
    counts: dict[Where, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            names = _parts(header[2])
            table = _resolved(names, counts, header[1] == "[[")
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_parts(key[1]))
        else:
            continue
        fit = _fit(here, where)
        if fit > best[0]:
            best = fit, number
    return best[1]


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(text))


def _resolved(names: Sequence[str], counts: dict[Where, int], is_element: bool) -> Where:
    """Return the place of a table header, whose arrays of tables stand at their last element."""
    where: Where = ()
    for position, name in enumerate(names):
        where = (*where, name)
        if is_element and position == len(names) - 1:
            counts[where] = counts.get(where, -1) + 1
        if where in counts:
            where = (*where, counts[where])
    return where


def _fit(here: Where, where: Where) -> int:
    """Return how many parts of `where` a place stands for; 0 if it is another's."""
    length = min(len(here), len(where))
    return length if here[:length] == where[:length] and len(here) <= len(where) else 0
