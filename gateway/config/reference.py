"""The reference page of the configuration file, made from its keys: ``python -m gateway.config.reference``."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import msgspec

from gateway.config.keys import Cgroup, Clients, KeyPair, Landlock, Limits, Redirect, Rewrite, Route, Server, Tls

_TITLE = "Configuration"
_HEAD = """\
``python -m gateway --config FILE`` reads TOML. ``--check`` says what is wrong with it and what would be served,
``--print-config`` shows all of it, defaults included. A mistake is one line with the file, the line and the key. Paths
begin at the file's directory; times are seconds, or have a unit: ``"500ms"``, ``"30s"``, ``"5m"``; sizes are bytes, or
``"512K"``, ``"16M"``, ``"2G"``. This page is made from the code that reads the file.

::

    [server]
    listen = ["127.0.0.1:8000"]

    [pools.blog]
    command = ["php-cgi"]
    max_children = 8

    [[routes]]
    path = "/cgi-bin/"
    cgi = "cgi-bin"
    warm = true

    [[routes]]
    path = "/"
    root = "site"
    fastcgi = "pool:blog"
    extensions = [".php"]
"""
_PARTS: tuple[tuple[str, str, type[msgspec.Struct]], ...] = (
    ("[server]", "", Server),
    ("[tls]", "``docs/tls.rst`` says more about these.", Tls),
    ("[[tls.certificates]]", "", KeyPair),
    ("[clients]", "``docs/limits.rst`` says more about these.", Clients),
    (
        "[[routes]]",
        "Of the routes that fit a request the one with the longest prefix is taken; of these the one with the closest\n"
        "host, its own name before a wildcard before none; of these the first whose method it is. Where only the\n"
        "method fits none, the answer is 405.",
        Route,
    ),
    (
        "limits, of the server or a route",
        "``docs/privileges.rst`` says more about these and the next two. ``\"unlimited\"``: none but the server's own.",
        Limits,
    ),
    ("landlock, of the server or a route", "", Landlock),
    ("cgroup, of the server or a route", "", Cgroup),
    ("redirect, of a route", "", Redirect),
    ("[[rewrites]]", "", Rewrite),
)
_VARIABLES = """\
In ``to`` and the last of ``try_files``, ``$host`` is the host that is asked for, without its port, ``$uri`` path and
query as they were sent, ``$path`` the decoded path, escaped anew, and ``$1`` to ``$9`` the groups of ``match``.
"""
_POOLS = """\
``[pools.NAME]`` has the keys of ``python -m fcgi_pool``, php-fpm's directives, which ``docs/fastcgi.rst`` lists. A
route names it by ``fastcgi = "pool:NAME"``. Without ``listen`` it serves this server alone.
"""
_NAMES = {"int": "number", "str": "text", "bool": "true or false", "float": "number", "NoneType": ""}


def page() -> str:
    """Return the page, reStructuredText."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from ("=" * len(_TITLE), _TITLE, "=" * len(_TITLE), "", _HEAD)
    for title, words, kind in _PARTS:
        yield from (title, "=" * len(title), "", *([words, ""] if words else []))
        for field in msgspec.structs.fields(kind):
            text, like, types = _described(field.type)
            default = _default(field)
            yield f"``{field.name}``"
            yield f"    {types}{f', {default}' if default else ''}. {text[0].upper()}{text[1:]}."
            if like:
                yield f"    {like}."
        yield ""
    yield from (_VARIABLES, "[pools.NAME]", "============", "", _POOLS.rstrip())


def _described(annotation: object) -> tuple[str, str, str]:
    """Return what a key is about, the nearest directive elsewhere, and its type in words."""
    kind, *metas = typing.get_args(annotation)
    meta = next(meta for meta in metas if isinstance(meta, msgspec.Meta))
    return meta.description or "", (meta.extra or {}).get("like", ""), _words(kind)


def _words(kind: object) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return "table"
    if arguments:
        names = [_words(argument) for argument in arguments]
        return " or ".join(dict.fromkeys(name for name in names if name))
    name = getattr(kind, "__name__", str(kind))
    return "table" if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else _NAMES.get(name, name)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value in (None, "", [], {}):
        return ""
    if isinstance(value, bool):
        return f"``{str(value).lower()}``"
    return f"``{value!r}``".replace("'", '"') if isinstance(value, list | int | float | str) else ""


if __name__ == "__main__":
    print(page(), end="")
