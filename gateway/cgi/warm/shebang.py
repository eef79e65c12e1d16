"""Which warm interpreter a script can be run by, from its first line; or in words why none."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

# The kernel reads so much of a first line (BINPRM_BUF_SIZE).
_LINE_LIMIT = 255
_PYTHON = re.compile(rb"python(?:3(?:\.[0-9]+)?)?")
_PERL = re.compile(rb"perl(?:5\.[0-9.]+)?")
# Flags without a value may stand together, and the last of them may be one with a value: -Es, -uX, -Wignore.
_PYTHON_FLAGS = re.compile(rb"-(?:[bBdEIOPqRsSuv]*)(?:[WX] ?[^\s]+)?")
# Perl takes several flags out of one word.
_PERL_FLAGS = re.compile(rb"-[wWXTtu]*(?:I[^\s]+)?(?: +-[wWXTtu]*(?:I[^\s]+)?)*")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an interpreter is started for scripts of one kind: the file, its name for itself, and its flags."""

    kind: Literal["python", "perl"]
    executable: bytes
    arguments: tuple[bytes, ...]  # its name, then flags
    # The kernel calls a process after the file it was told to execute: the script, or by way of env the interpreter.
    is_named_after_script: bool


def recipe_for(path: bytes, search: bytes) -> Recipe | str:
    """Return what runs the script at `path`, or why it cannot be run warm.

    `search` is the PATH of the script's environment, in which env(1) looks. Raises OSError if the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        line, newline, _ = os.read(descriptor, _LINE_LIMIT + 1).partition(b"\n")
    finally:
        os.close(descriptor)
    if not line.startswith(b"#!"):
        return "it is no script of Python or Perl: its first line does not begin with #!"
    # The kernel reads up to a NUL; whatever that makes of the line is not worth knowing.
    if not newline or line.endswith(b"\r") or b"\0" in line:
        return "its first line has no proper end"
    # The kernel takes what follows the interpreter as one argument (execve(2)).
    words = re.split(rb"[ \t]+", line[2:].strip(b" \t"), maxsplit=1)
    interpreter = words[0]
    is_direct = os.path.basename(interpreter) != b"env"
    if not is_direct:
        words = _words_of_env(words)
        if not words or words[0].startswith(b"-") or b"=" in words[0]:
            return "its first line asks env for more than an interpreter"
        found = words[0] if b"/" in words[0] else _search(words[0], search)
    else:
        found = interpreter
    if not words[0]:
        return "its first line names no interpreter"
    if not found:
        return f"{os.fsdecode(words[0])} is not in PATH"
    return _judge(found, words, is_direct)


def _words_of_env(words: list[bytes]) -> list[bytes]:
    """Return what env(1) executes: one word, or with -S what it splits."""
    if len(words) < 2 or not words[1].startswith(b"-S"):
        return words[1:] if len(words) == 2 and not re.search(rb"\s", words[1]) else []
    rest = words[1][2:]
    # Quotes, escapes and variables are env's own language.
    return [] if re.search(rb"[\\\"'$#]", rest) else rest.split()


def _search(name: bytes, path: bytes) -> bytes:
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + name
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return b""


def _judge(executable: bytes, words: list[bytes], is_direct: bool) -> Recipe | str:
    name = os.path.basename(executable)
    kind: Literal["python", "perl"]
    if _PYTHON.fullmatch(name):
        kind, flags = "python", _PYTHON_FLAGS
    elif _PERL.fullmatch(name):
        kind, flags = "perl", _PERL_FLAGS
    else:
        return f"{os.fsdecode(name)} is neither Python nor Perl"
    for flag in words[1:]:
        if flag == b"-" or not flags.fullmatch(flag):
            return f"the flag {os.fsdecode(flag)} in its first line"
    try:
        with open(executable, "rb") as file:
            if file.read(4) != b"\x7fELF":
                return f"{os.fsdecode(executable)} is a script itself"
    except OSError as error:
        return f"{os.fsdecode(executable)}: {error.strerror}"
    return Recipe(kind, executable, tuple(words), is_direct)
