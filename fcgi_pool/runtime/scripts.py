"""CGI scripts in Python, run again and again in one process: what mod_perl calls a registry.

Some facts about what a script may take for its own. Each request has a fresh ``__main__``, its own environment, also
for the C library and for what the script starts, arguments, working directory and streams: descriptor 0 is the body
itself, descriptor 1 a file in memory, which is sent on. All else is the process's and stays: modules, with what a
script has changed in them. So a script must be written for this. What is seen to be left behind in a state that another
must not meet (an exception that nobody caught, a changed working directory, umask or signal handler, a thread) ends the
process after the response, as does a module that has changed on disk.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import ctypes
import io
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from fcgi_pool.runtime.connection import Connection, WebServerGone
from fcgi_pool.runtime.streams import Errors, Input

if TYPE_CHECKING:
    from types import CodeType, ModuleType

# Up to so many bytes a body is kept in memory (a memfd), above it in a nameless file.
_IN_MEMORY = 1024 * 1024
# What a script has printed is sent on by so many bytes.
_BUFFER = 64 * 1024
# Modules' files are looked at so often, in seconds.
_LOOK_AGAIN = 1.0
_SIGNALS = tuple(sorted(_signal.valid_signals()))
# From the first byte of a bytes object to the begin of the object (CPython).
_BYTES_AT = sys.getsizeof(b"") - 1
_FAILED = 1
_HAS_SCRIPT_DIRECTORY = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))

_environ = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "environ")
_Loader: Any = sys.modules["_frozen_importlib_external"].SourceFileLoader


class Scripts:
    """Runs the script that SCRIPT_FILENAME names."""

    def __init__(self) -> None:
        self._codes: dict[str, tuple[tuple[int, ...], CodeType]] = {}
        self._path = list(sys.path[1:])  # the first is the script's directory
        self._hook = sys.excepthook
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._environment: tuple[bytes, bytes] | None = None  # what the C library looks at
        self._modules: dict[str, int] = {}  # files of modules, and when they were changed
        self._count = len(sys.modules)
        self._looked = time.monotonic()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._output = os.memfd_create("stdout")
        os.dup2(self._output, 1)
        self._directory = self._real = ""
        # What is to be as before is what the first script finds.
        self._before: tuple[object, ...] | None = None

    def respond(self, environ: dict[str, Any], connection: Connection) -> bool:
        """Run a script and send its response; return whether this process may run another. Raises WebServerGone."""
        path = os.fsdecode(environ.get("SCRIPT_FILENAME", "").encode("latin-1"))
        try:
            code = self._code(path)
            directory = os.path.dirname(path) or "."
            if directory != self._directory:
                os.chdir(directory)
                self._directory, self._real = directory, os.getcwd()
        except OSError as error:
            connection.write_stderr(f"{path}: {error.strerror}\n".encode("utf-8", "backslashreplace"))
            connection.end(_FAILED)
            return True
        except (SyntaxError, ValueError) as error:
            with _Errors(connection):
                sys.excepthook(type(error), error, None)
            connection.end(_FAILED)
            return True
        self._set_environment(environ)
        _take_body(environ, connection, self._null)
        if self._before is None:
            self._before = _state()
        output = _Output(connection, self._output)
        status, is_clean = self._run(path, code, output, connection)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        is_clean = is_clean and self._is_as_before()
        if not is_clean:
            # The web server must not send it another on this connection.
            connection.take_no_more()
        with contextlib.suppress(WebServerGone):
            output.end(status)
        connection.end(status)
        return is_clean

    def _run(self, path: str, code: CodeType, output: _Output, connection: Connection) -> tuple[int, bool]:
        """Run the script in a module of its own; return its exit status and whether it ended as it should."""
        stdin, stdout, _ = self._streams
        assert isinstance(stdin, io.TextIOWrapper) and isinstance(stdout, io.TextIOWrapper)
        buffer = io.BufferedWriter(output, _BUFFER)
        body = io.BufferedReader(io.FileIO(0, closefd=False))
        sys.stdin = io.TextIOWrapper(body, stdin.encoding, stdin.errors)
        sys.stdout = io.TextIOWrapper(buffer, stdout.encoding, stdout.errors, write_through=stdout.write_through)
        sys.stderr = Errors(connection)
        sys.argv[:] = [path]
        sys.path[:] = [self._directory, *self._path] if _HAS_SCRIPT_DIRECTORY else self._path
        sys.excepthook = self._hook
        main = sys.modules["__main__"] = _new_main(path)
        try:
            exec(code, main.__dict__)
            status = 0
        except SystemExit as stop:
            status = _exit_status(stop.code)
        except WebServerGone:
            return _FAILED, False
        except BaseException as error:
            trace = error.__traceback__.tb_next if error.__traceback__ else None
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            status = -1
        _join_threads()
        with contextlib.suppress(WebServerGone, ValueError):
            if not sys.stdout.closed:
                output.is_last = True
                sys.stdout.flush()
        main.__dict__.clear()
        return (status, True) if status >= 0 else (_FAILED, False)

    def _code(self, path: str) -> CodeType:
        """Return a script's code, compiled again if it has changed; raise OSError, SyntaxError or ValueError."""
        found = os.stat(path)
        identity = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
        known = self._codes.get(path)
        if known and known[0] == identity:
            return known[1]
        with open(path, "rb") as file:
            code: CodeType = compile(file.read(), path, "exec", 0, True)
        self._codes[path] = identity, code
        return code

    def _set_environment(self, environ: dict[str, Any]) -> None:
        """Put the variables of the request in place of the environment, Python's and the C library's."""
        values = {name.encode("latin-1"): value.encode("latin-1") for name, value in environ.items()}
        text = b"\0".join([name + b"=" + value for name, value in values.items()]) + b"\0"
        address = id(text) + _BYTES_AT
        addresses = []
        for name, value in values.items():
            addresses.append(address.to_bytes(8, sys.byteorder))
            address += len(name) + len(value) + 2
        table = b"".join(addresses) + bytes(8)
        # The C library takes an environment that somebody else has laid out (environ(7)).
        _environ.value = id(table) + _BYTES_AT
        self._environment = text, table
        kept: Any = os.environ
        kept._data.clear()
        kept._data.update(values)

    def _is_as_before(self) -> bool:
        """Whether the script has left the process as another one may find it."""
        try:
            is_there = os.getcwd() == self._real
        except OSError:
            is_there = False
        return is_there and _state() == self._before and not self._has_stale_module()

    def _has_stale_module(self) -> bool:
        """Whether the file of a module has changed since it was imported, or since the last look."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN and len(sys.modules) == self._count:
            return False
        self._looked, self._count = now, len(sys.modules)
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        for file in filter(None, files):
            try:
                changed = os.stat(file).st_mtime_ns
            except OSError:
                changed = 0
            if self._modules.setdefault(file, changed) != changed:
                return True
        return False


class _Output(io.RawIOBase):
    """What a script writes to stdout, on its way to the web server.

    `is_last`: what comes now is the end, and goes out with it in one piece.
    """

    def __init__(self, connection: Connection, descriptor: int) -> None:
        self._connection: Connection | None = connection
        self._descriptor = descriptor
        self._pieces: list[bytes] = []
        self.is_last = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, data: Any) -> int:
        """Send a piece. After the end of its request nobody hears it."""
        connection = self._connection
        if connection:
            self._take_written()
            self._pieces.append(bytes(data))
            if not self.is_last:
                connection.check()
                connection.send_stdout(self._pieces, False)
                self._pieces.clear()
        return len(data)

    def end(self, status: int) -> None:
        """Send what is left, and the end of the request. Raises WebServerGone."""
        connection, self._connection = self._connection, None
        self._take_written()
        if connection:
            connection.send_stdout(self._pieces, status == 0)

    def _take_written(self) -> None:
        """Take what was written to descriptor 1, by a program that the script has started, say."""
        size = os.fstat(self._descriptor).st_size
        if size:
            self._pieces.append(os.pread(self._descriptor, size, 0))
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)


class _Errors:
    """Has what is said of an error go to the web server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._before = sys.stderr

    def __enter__(self) -> None:
        sys.stderr = Errors(self._connection)

    def __exit__(self, *_: object) -> None:
        sys.stderr = self._before


def _new_main(path: str) -> ModuleType:
    main = type(sys)("__main__")
    main.__dict__.update(
        __loader__=_Loader("__main__", path),
        __builtins__=sys.modules["builtins"],
        __file__=path,
        __cached__=None,
    )
    return main


def _exit_status(code: object) -> int:
    """Return what SystemExit means (pythonrun.c, _Py_HandleSystemExit)."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _take_body(environ: dict[str, Any], connection: Connection, null: int) -> None:
    """Have the request's body at descriptor 0. Raises WebServerGone if it breaks off."""
    length = environ.get("CONTENT_LENGTH", "")
    if not length or length == "0":
        os.dup2(null, 0)
        return
    if length.isdigit() and int(length) <= _IN_MEMORY:
        body = os.memfd_create("stdin", os.MFD_CLOEXEC)
    else:
        body, path = tempfile.mkstemp()
        os.unlink(path)
    source = Input(connection)
    with os.fdopen(body, "wb", 0) as file:
        for part in iter(lambda: source.read(_IN_MEMORY), b""):
            left = memoryview(part)
            while left:
                left = left[file.write(left) or 0 :]
        os.lseek(body, 0, os.SEEK_SET)
        os.dup2(body, 0)


def _join_threads() -> None:
    """Wait for threads as the interpreter does at its end."""
    if _thread._count() and "threading" in sys.modules:
        threading: Any = sys.modules["threading"]
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()


def _state() -> tuple[object, ...]:
    """Return umask, threads and signal handlers."""
    mask = os.umask(0o022)
    if mask != 0o022:
        os.umask(mask)
    return mask, _thread._count(), [_signal.getsignal(number) for number in _SIGNALS]
