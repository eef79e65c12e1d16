"""Why a program failed, in words that name the culprit and the cure."""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import dataclass

from gateway.confinement.model import Confinement
from gateway.confinement.words import start_limit
from gateway.fault import Fault
from gateway.privileges import Account, own_account

_SCARCE = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS))
# Modules that left Python's standard library with 3.12 and 3.13 (PEP 632, PEP 594), and what brings them back.
_REMOVED_MODULES = {
    "cgi": "removed in Python 3.13; pip install legacy-cgi",
    "cgitb": "removed in Python 3.13; pip install legacy-cgi",
    "imp": "removed in Python 3.12; use importlib",
    "distutils": "removed in Python 3.12; pip install setuptools",
    "asyncore": "removed in Python 3.12; pip install pyasyncore",
    "asynchat": "removed in Python 3.12; pip install pyasynchat",
    "smtpd": "removed in Python 3.12; pip install aiosmtpd",
    "crypt": "removed in Python 3.13; pip install legacycrypt",
    "telnetlib": "removed in Python 3.13; pip install telnetlib3",
    "pipes": "removed in Python 3.13; use subprocess and shlex",
    "imghdr": "removed in Python 3.13; pip install filetype",
    "sndhdr": "removed in Python 3.13; pip install filetype",
    "uu": "removed in Python 3.13; use base64 or binascii",
    "nntplib": "removed in Python 3.13; pip install standard-nntplib",
}
_STDERR_HINTS = (
    (re.compile(r"SyntaxError: Missing parentheses in call to 'print'"), "the script is written for Python 2"),
    (re.compile(r"Can't locate (CGI(?:/\w+)?)\.pm"), "Perl has no longer CGI.pm: install libcgi-pm-perl, or cpan CGI"),
    (re.compile(r"Can't locate (\S+)\.pm in @INC"), "install that Perl module, or set PERL5LIB by --env"),
    (re.compile(r"Permission denied"), "the user that it runs as may not do that"),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, for an explanation. `status` is None while it has not been reaped. `limit`: which it has met."""

    path: bytes
    pid: int
    status: int | None
    stderr: str
    output: bytes = b""
    limit: str = ""


def exit_word(status: int) -> str:
    """Return a wait status as the access log shows it: an exit status, or a signal's name."""
    if os.WIFSIGNALED(status):
        return _signal_name(os.WTERMSIG(status))
    return str(os.WEXITSTATUS(status))


def not_stored(error: OSError, place: str) -> Fault:
    """Return the fault for a request whose body could not be stored; `place`: what the user knows --temp-dir by."""
    words = f"the body of the request could not be stored: {error.strerror}"
    if error.errno in _SCARCE:
        return Fault(503, f"{words}. Raise the limit (ulimit -n), or lower max_programs", retry_after=5)
    return Fault(507, f"{words}; see {place}")


def start_failed(path: bytes, phase: str, error: int, confinement: Confinement) -> Fault:
    """Return the fault for a program that could not be started: `phase` as the spawner tells it, `error` its errno."""
    name = os.fsdecode(path)
    if phase == "limits":
        words = "limits cannot be set on what has a set-user-id bit; no_new_privileges = true lets it run without"
        return Fault(500, f"{name} could not be started: {words}")
    if error in _SCARCE:
        cause = start_limit(confinement, error) or (
            "there are too few processes, descriptors or memory. Raise the limits (ulimit -u, ulimit -n), or lower "
            "max_programs (--max-programs)"
        )
        return Fault(503, f"{name} could not be started: {os.strerror(error)}; {cause}", retry_after=5)
    if error == errno.EACCES:
        return _refused(name, phase, confinement)
    if phase == "chdir":
        return Fault(500, f"{name} could not be started: its directory cannot be entered: {os.strerror(error)}")
    if not os.path.exists(path):
        return Fault(404, f"{name} does not exist any more")
    return Fault(500, f"{name} could not be started: {why_not_started(path, error)}")


def _refused(name: str, phase: str, confinement: Confinement) -> Fault:
    """Return the fault for a program that the user whom it runs as may not start."""
    account = confinement.account or own_account()
    closed = account.closed_directory(name)
    if closed:
        return Fault(500, f"{name} could not be started: user {account.name} may not enter {closed}: chmod +x {closed}")
    if phase == "chdir":
        return Fault(500, f"{name} could not be started: user {account.name} may not enter its directory")
    if trouble := access_trouble(name, account):
        return Fault(403 if trouble.startswith("it is not executable") else 500, f"{name}: {trouble}")
    if confinement.landlock and not os.statvfs(name).f_flag & os.ST_NOEXEC:
        return Fault(500, f"{name} could not be started: landlock.read has not all that it is made of (see ldd)")
    return Fault(500, f"{name} could not be started: {why_not_started(os.fsencode(name), errno.EACCES)}")


def access_trouble(name: str, account: Account) -> str:
    """Return what in the modes of a program and of its interpreter is in the way of a user, '' if nothing is seen."""
    try:
        if not account.may(os.stat(name), 1):
            return f"it is not executable for user {account.name}: chmod +x {name}"
    except OSError:
        return ""
    interpreter = os.fsdecode(_first_line(os.fsencode(name))[1])
    if interpreter and os.path.exists(interpreter):
        closed = account.closed_directory(interpreter)
        if closed:
            return f"the interpreter {interpreter} named in line 1 is where user {account.name} may not enter: {closed}"
        if not account.may(os.stat(interpreter), 1):
            return f"the interpreter {interpreter} named in line 1 is not executable for user {account.name}"
    return ""


def why_not_started(path: bytes, error: int) -> str:
    """Return in words why the kernel refuses to execute the file at `path` with errno `error`."""
    line, interpreter = _first_line(path)
    if error == errno.ETXTBSY:
        return "text file busy: somebody has it open for writing; close it, or write a new file and rename it"
    if line.startswith(b"\xef\xbb\xbf#!"):
        return "it begins with a byte order mark before '#!'; save it as UTF-8 without BOM"
    if interpreter and line.endswith(b"\r"):
        shown = ascii(interpreter.decode("utf-8", "backslashreplace") + "\r")
        return f"line 1 ends with CR LF: the kernel looks for {shown}; convert the file to LF: sed -i 's/\\r$//' FILE"
    if error == errno.ENOEXEC:
        if not line and not os.path.getsize(path):
            return "the file is empty"
        if line.startswith(b"\x7fELF"):
            return "exec format error: a program compiled for another kind of machine"
        return (
            "exec format error: no '#!' in line 1 and no program for this machine; "
            "name the interpreter there, as in #!/usr/bin/env python3"
        )
    if interpreter:
        shown = interpreter.decode("utf-8", "backslashreplace")
        if not os.path.exists(interpreter):
            return f"the interpreter {shown} named in line 1 does not exist; install it, or correct line 1"
        if error == errno.EACCES and not (os.access(interpreter, os.X_OK) and os.path.isfile(interpreter)):
            return f"the interpreter {shown} named in line 1 is not executable"
    if error == errno.ENOENT:
        return "its dynamic loader does not exist: it was compiled for another system (see ldd)"
    if error == errno.EACCES and os.statvfs(path).f_flag & os.ST_NOEXEC:
        return "its file system is mounted noexec"
    return os.strerror(error)


def interpreter_trouble(path: bytes) -> str:
    """Return what is wrong with the interpreter that the file's first line names, or '' if nothing is seen."""
    line, interpreter = _first_line(path)
    if not line.startswith(b"#!"):
        return ""
    if line.endswith(b"\r"):
        return why_not_started(path, errno.ENOENT)
    if not os.path.exists(interpreter):
        return why_not_started(path, errno.ENOENT)
    return ""


def is_a_script(path: bytes) -> bool:
    """Return whether a program is run by an interpreter that its first line names, which has to read it."""
    return _first_line(path)[0].startswith(b"#!")


def no_header(ending: Ending, why: str) -> Fault:
    """Return the fault for a program whose output is no response; `why` is what the judge of output says."""
    name = os.fsdecode(ending.path)
    parts = [f"{name} {_ended(ending)}: {why}"]
    if ending.limit:
        parts.append(ending.limit)
    status = 502
    trouble = _env_trouble(ending)
    if trouble:
        status = 500
        parts.append(trouble)
    return Fault(status, "; ".join([*parts, *evidence(ending.stderr, ending.output)]))


def evidence(stderr: str, output: bytes = b"") -> list[str]:
    """Return what a failed program left, in words: the cure if one is known, its first output, its last complaints."""
    parts = []
    hint = hint_from(stderr)
    if hint:
        parts.append(hint)
    if output:
        parts.append(f"its output begins {output[:120].decode('utf-8', 'backslashreplace')!a}")
    if stderr:
        parts.append(f"its stderr ends: {_on_one_line(stderr)}")
    return parts


def unreachable(server: str, error: int) -> Fault:
    """Return the fault for a FastCGI server that cannot be connected to for errno `error`."""
    cures = {
        errno.ENOENT: "there is no such socket: is the server running, and is the path right?",
        errno.ECONNREFUSED: "nobody listens there: the server is not running",
        errno.EACCES: "this user may not connect: see the owner and the mode of the socket",
        errno.EMFILE: "there are too few descriptors: raise the limit (ulimit -n)",
    }
    words = cures.get(error, os.strerror(error))
    return Fault(503, f"{server} cannot be reached: {words}", retry_after=5)


def cut_off(ending: Ending, why: str) -> str:
    """Return words for a program that left its response incomplete."""
    text = f"{os.fsdecode(ending.path)} {_ended(ending)}: {why}"
    if ending.limit:
        text += f"; {ending.limit}"
    if ending.stderr:
        text += f"; its stderr ends: {_on_one_line(ending.stderr)}"
    return text


def hint_from(stderr: str) -> str:
    """Return the cure for what a program complained of, if it is known, else ''."""
    missing = re.search(r"(?:No module named|ImportError: .*) '?([\w.]+)'?", stderr)
    if missing:
        module = missing[1]
        cure = _REMOVED_MODULES.get(module.split(".")[0])
        cure = cure or "install it for the interpreter that line 1 of the script names"
        return f"No module named '{module}': {cure}"
    for pattern, cure in _STDERR_HINTS:
        found = pattern.search(stderr)
        if found:
            return f"{found.group()}: {cure}"
    return ""


def _ended(ending: Ending) -> str:
    if ending.status is None:
        return f"(pid {ending.pid or '-'}) did not end" if ending.pid else "did not end"
    if os.WIFSIGNALED(ending.status):
        number = os.WTERMSIG(ending.status)
        return f"(pid {ending.pid}) was killed by {_signal_name(number)} ({signal.strsignal(number)})"
    return f"(pid {ending.pid}) ended with exit status {os.WEXITSTATUS(ending.status)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _env_trouble(ending: Ending) -> str:
    """Return words for an ``env`` in line 1 that did not find its interpreter: it runs, and ends with 126 or 127."""
    if ending.status is None or not os.WIFEXITED(ending.status) or os.WEXITSTATUS(ending.status) not in (126, 127):
        return ""
    line, interpreter = _first_line(ending.path)
    if not interpreter.endswith(b"/env"):
        return ""
    if line.endswith(b"\r"):
        return "line 1 ends with CR LF: env looks for a command with a CR in its name; convert the file to LF"
    words = line[2:].split()[1:]
    shown = b" ".join(words).decode("utf-8", "backslashreplace")
    return f"the interpreter {shown} named in line 1 was not found in PATH; install it, or set PATH by --env PATH=…"


def _first_line(path: bytes) -> tuple[bytes, bytes]:
    """Return the first line without its LF, and the interpreter it names after ``#!``, or b''."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b"", b""
    try:
        line = os.read(descriptor, 256).split(b"\n", 1)[0]
    except OSError:
        return b"", b""
    finally:
        os.close(descriptor)
    if not line.startswith((b"#!", b"\xef\xbb\xbf#!")):
        return line, b""
    words = line[line.index(b"#!") + 2 :].split()
    return line, words[0] if words else b""


def _on_one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = " | ".join(lines[-8:])
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)
