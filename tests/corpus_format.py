r"""The corpus of raw requests: how ``corpus/*.txt`` are written, and the reading of them.

::

    == length-with-sign
    RFC 9110 8.6: Content-Length = 1*DIGIT
    | POST /cgi-bin/echo HTTP/1.1
    | Host: a.example
    | Content-Length: +5
    |
    | hello\
    = 400 close

``==`` begins a case and names it; free text says why. A line after ``| `` is sent with CR LF at its end, or as it
stands where it ends in a backslash. Escapes: ``\r \n \t \s`` (a space) ``\\ \xHH``, and ``\(text*N)`` for N times text.

``=`` gives the statuses of all responses in order and what becomes of the connection: ``open``, ``close`` (the last
response says so), ``idle`` (closed later, unannounced) or ``cut`` (closed within the last response's body). ``200h``
is an answer to HEAD. An interim ``100`` is demanded where the client waits for it, and allowed where it does not.

``+ text`` must be, ``- text`` must not be in a response (head, empty line, decoded body), with the same escapes;
``+2 text`` is said of the second final response alone.

``@ front`` marks a case whose last refusal is not the reader's but comes from what is behind it.
``@ options`` gives options of the server that this case wants; such a case is sent whole only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")

_PLAIN = re.compile(r"[^\\*]+|\*(?!\d+\))")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([rnts\\]))")
_END_OF_REPEAT = re.compile(r"\*(\d+)\)")
_NAMED = {"r": b"\r", "n": b"\n", "t": b"\t", "s": b" ", "\\": b"\\"}
_MARK = re.compile(r"([+-])(\d*) (.*)")
_ENDS = ("open", "close", "idle", "cut")


@dataclass(frozen=True)
class Mark:
    """A text that must be, or must not be, in one final response (counted from 1) or in any (0)."""

    wanted: bool
    response: int
    text: bytes


@dataclass(frozen=True)
class Status:
    code: int
    to_head: bool = False


@dataclass
class Case:
    name: str
    theme: str
    why: str = ""
    raw: bytes = b""
    statuses: tuple[Status, ...] = ()
    end: str = ""
    marks: list[Mark] = field(default_factory=list)
    refused_behind_reader: bool = False
    options: tuple[str, ...] = ()

    @property
    def final_statuses(self) -> tuple[Status, ...]:
        return tuple(status for status in self.statuses if status.code >= 200)

    @property
    def interims(self) -> int:
        return len(self.statuses) - len(self.final_statuses)

    def __str__(self) -> str:
        return f"{self.theme}/{self.name}"


def unescape(text: str) -> bytes:
    """The bytes that a line of the corpus stands for. Raises ValueError where it is not well written."""
    data, position, _ = _unescape(text, 0, nested=False)
    if position != len(text):
        raise ValueError(f"an end of a repetition without its beginning in {text!r}")
    return data


def _unescape(text: str, position: int, nested: bool) -> tuple[bytes, int, int]:
    """Return the bytes, where they end, and how often a repetition that ends there is meant."""
    parts: list[bytes] = []
    while position < len(text):
        if text.startswith("\\(", position):
            inner, position, times = _unescape(text, position + 2, nested=True)
            parts.append(inner * times)
        elif plain := _PLAIN.match(text, position):
            parts.append(plain[0].encode("ascii"))
            position = plain.end()
        elif escape := _ESCAPE.match(text, position):
            parts.append(bytes.fromhex(escape[1]) if escape[1] else _NAMED[escape[2]])
            position = escape.end()
        elif nested and (end := _END_OF_REPEAT.match(text, position)):
            return b"".join(parts), end.end(), int(end[1])
        else:
            raise ValueError(f"unknown escape at {position} in {text!r}")
    if nested:
        raise ValueError(f"a repetition without its end in {text!r}")
    return b"".join(parts), position, 1


def _sent(line: str) -> bytes:
    text = line[2:]
    backslashes = len(text) - len(text.rstrip("\\"))
    return unescape(text[:-1]) if backslashes % 2 else unescape(text) + b"\r\n"


def _read_expectation(case: Case, text: str) -> None:
    *statuses, end = unescape(text).decode("ascii").split()
    if end not in _ENDS or case.end:
        raise ValueError(f"{case}: {text}")
    case.statuses = tuple(Status(int(word.rstrip("h")), word.endswith("h")) for word in statuses)
    case.end = end


def _read_line(case: Case, line: str) -> None:
    if line.startswith("|"):
        case.raw += _sent(line)
    elif line.startswith("= "):
        _read_expectation(case, line[2:])
    elif mark := _MARK.fullmatch(line):
        sign, response, text = mark.groups()
        case.marks.append(Mark(sign == "+", int(response or 0), unescape(text)))
    elif line == "@ front":
        case.refused_behind_reader = True
    elif line.startswith("@ options "):
        case.options = tuple(line.split()[2:])
    else:
        case.why = f"{case.why} {line}".strip()


def read_corpus_file(path: Path) -> Iterator[Case]:
    """The cases of one file. Raises ValueError where it is not well written."""
    case: Case | None = None
    for number, line in enumerate(path.read_text("ascii").splitlines(), 1):
        try:
            if line.startswith("== "):
                if case is not None:
                    yield _complete(case)
                case = Case(line[3:].strip(), path.stem)
            elif line and not line.startswith("#"):
                if case is None:
                    raise ValueError("before the first case")
                _read_line(case, line)
        except ValueError as error:
            raise ValueError(f"{path.name}:{number}: {error}") from None
    if case is not None:
        yield _complete(case)


def _complete(case: Case) -> Case:
    if not case.end or not case.why:
        raise ValueError(f"{case} lacks its expectation or its reason")
    return case


def read_corpus() -> list[Case]:
    return [case for path in sorted(CORPUS.glob("*.txt")) for case in read_corpus_file(path)]
