"""CGI scripts in Python, run again and again in one process: what mod_perl calls a registry.

Some facts about what a script may take for its own. Each request has a fresh ``__main__``, its own environment, also
for the C library and for what the script starts, arguments, working directory and streams: descriptor 0 is the body
itself, descriptor 1 a file in memory, which is sent on, and which none other has: what the script has started may write
to it for longer than the request lasts. All else is the process's and stays: modules, with what a script has changed in
them. So a script must be written for this. What is seen to be left behind in a state that another must not meet (an
exception that nobody caught, a changed working directory, umask, signal mask or handler, a thread, a process) ends the
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
from fcgi_pool.runtime.streams import Input

if TYPE_CHECKING:
    from types import CodeType, ModuleType

# Up to so many bytes a body is kept in memory (a memfd), above it in a nameless file.
_IN_MEMORY = 1024 * 1024
# What a script has printed is sent on by so many bytes, and taken from descriptor 1 by so many.
_BUFFER = 64 * 1024
_PIECE = 1024 * 1024
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
        self._codes: dict[str, tuple[tuple[int, ...], CodeType, str]] = {}
        self._path = list(sys.path[1:])  # the first is the script's directory
        self._hook = sys.excepthook
        self._streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
        self._words = _Words()
        self._environ: Any = os.environ  # a script may put something else in its place
        self._environment: tuple[bytes, bytes] | None = None  # what the C library looks at
        self._modules: dict[str, int] = {}  # files of modules, and when they were changed
        self._count = len(sys.modules)
        self._looked = time.monotonic()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._standard = null, null, os.dup(2)
        self._pid = os.getpid()
        self._real = ""
        # What is to be as before is what the first script finds.
        self._before: tuple[object, ...] | None = None

    def respond(self, environ: dict[str, Any], connection: Connection) -> bool:
        """Run a script and send its response; return whether this process may run another. Raises WebServerGone."""
        _set_stream("stderr", self._words.stream_to(connection))
        try:
            return self._respond(environ, connection)
        finally:
            self._words.connection = None
            for name, stream in self._streams.items():
                _set_stream(name, stream)
            # The request's no more; and where the script has closed one, no connection gets its number.
            for number, descriptor in enumerate(self._standard):
                os.dup2(descriptor, number)

    def _respond(self, environ: dict[str, Any], connection: Connection) -> bool:
        path = os.fsdecode(environ.get("SCRIPT_FILENAME", "").encode("latin-1"))
        try:
            code, library = self._code(path)
            # Each time: another directory may have got this name.
            os.chdir(os.path.dirname(path) or ".")
            self._real = os.getcwd()
        except OSError as error:
            return _refuse(connection, f"{path}: {error.strerror}")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            sys.excepthook(type(error), error.with_traceback(None), None)
            connection.end(_FAILED)
            return True
        self._set_environment(environ)
        try:
            _take_body(environ, connection)
        except WebServerGone:
            raise
        except OSError as error:
            return _refuse(connection, f"there is no room for the request's body: {error.strerror}")
        if self._before is None:
            self._before = _state()
        with _Output(connection) as output:
            status, is_clean = self._run(path, library, code, output)
            self._words.pass_on()
            is_clean = is_clean and self._is_as_before()
            if not is_clean:
                # The web server must not send it another on this connection.
                connection.take_no_more()
            with contextlib.suppress(WebServerGone):
                output.end(status)
        connection.end(status)
        return is_clean

    def _run(self, path: str, library: str, code: CodeType, output: _Output) -> tuple[int, bool]:
        """Run the script in a module of its own; return its exit status and whether it ended as it should."""
        stdin, stdout = self._streams["stdin"], self._streams["stdout"]
        assert isinstance(stdin, io.TextIOWrapper) and isinstance(stdout, io.TextIOWrapper)
        buffer = io.BufferedWriter(output, _BUFFER)
        body = io.BufferedReader(io.FileIO(0, closefd=False))
        _set_stream("stdin", io.TextIOWrapper(body, stdin.encoding, stdin.errors))
        first = io.TextIOWrapper(buffer, stdout.encoding, stdout.errors, write_through=stdout.write_through)
        _set_stream("stdout", first)
        sys.argv = [path]
        sys.path = [library, *self._path] if _HAS_SCRIPT_DIRECTORY else list(self._path)
        sys.excepthook = self._hook
        main = sys.modules["__main__"] = _new_main(path)
        try:
            exec(code, main.__dict__)
            status = 0
        except SystemExit as stop:
            status = _exit_status(stop.code)
        except WebServerGone:
            status = -1
        except BaseException as error:
            _show(error)
            status = -1
        if os.getpid() == self._pid:
            _join_threads()
            output.is_last = True
        # What the script has made may still say something when it goes.
        _flush(first)
        main.__dict__.clear()
        _flush(first)
        if os.getpid() != self._pid:
            os._exit(status if status >= 0 else _FAILED)  # forked by the script, it must not serve
        return (status, True) if status >= 0 else (_FAILED, False)

    def _code(self, path: str) -> tuple[CodeType, str]:
        """Return a script's code and the directory of its file, where it finds modules; anew if it has changed.

        Raises OSError, SyntaxError, ValueError, RecursionError or MemoryError.
        """
        found = os.stat(path)
        identity = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
        known = self._codes.get(path)
        if known and known[0] == identity:
            return known[1:]
        with open(path, "rb") as file:
            code: CodeType = compile(file.read(), path, "exec", 0, True)
        library = os.path.dirname(os.path.realpath(path))
        self._codes[path] = identity, code, library
        return code, library

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
        os.environ = self._environ  # noqa: B003
        self._environ._data.clear()
        self._environ._data.update(values)

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
        for file in [getattr(module, "__file__", None) for module in list(sys.modules.values())]:
            if not isinstance(file, str):
                continue
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

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._pid = os.getpid()
        self._descriptor = os.memfd_create("stdout")
        os.dup2(self._descriptor, 1)
        self._taken = 0
        self._pieces: list[bytes] = []
        self.is_last = False

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, data: Any) -> int:
        """Send a piece. After the end of its request nobody hears it."""
        if os.getpid() != self._pid:
            return os.write(1, data)  # a process that the script has forked is as any that it has started
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
        """Take what was written to descriptor 1, by a program that the script has started, say. It is left where it is:
        more may be on its way."""
        while self._taken < os.fstat(self._descriptor).st_size:
            piece = os.pread(self._descriptor, _PIECE, self._taken)
            self._pieces.append(piece)
            self._taken += len(piece)


class _Words(io.RawIOBase):
    """What scripts say on stderr, on its way to the web server; what a module has kept of it serves all requests.

    What comes between requests, or from a process that was forked, goes to this process's own standard error. What
    comes from another thread, which could write into the midst of a record, waits for the script's own.
    """

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self._pid = os.getpid()
        self._thread = _thread.get_ident()
        self._held: list[bytes] = []

    def stream_to(self, connection: Connection) -> io.TextIOWrapper:
        """Return a stream for a request."""
        self.connection = connection
        buffer: Any = self
        return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", write_through=True)

    def close(self) -> None:
        """Stay open: a stream that is dropped closes what is below it."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, data: Any) -> int:
        """Take words."""
        if not self.connection or self._pid != os.getpid():
            with contextlib.suppress(OSError):
                os.write(2, data)
        else:
            self._held.append(bytes(data))
            self.pass_on()
        return len(data)

    def flush(self) -> None:
        """Send what was said."""
        if self.pass_on() and self.connection:
            self.connection.flush_stderr()

    def pass_on(self) -> bool:
        """Give the connection what is held; return False if it is not this thread's, or process's, business."""
        if not self.connection or self._thread != _thread.get_ident() or self._pid != os.getpid():
            return False
        while self._held:
            self.connection.write_stderr(self._held.pop(0))
        return True


def _set_stream(name: str, stream: Any) -> None:
    """Give a script a stream by both names; one that it puts another in place of must not be closed for that."""
    vars(sys).update({name: stream, f"__{name}__": stream})


def _flush(first: io.TextIOWrapper) -> None:
    """Flush stdout, and what was stdout at first."""
    for stream in (sys.stdout, first):
        with contextlib.suppress(Exception):
            stream.flush()


def _refuse(connection: Connection, why: str) -> bool:
    """End a request whose script cannot be run. This process may run others."""
    connection.write_stderr(f"{why}\n".encode("utf-8", "backslashreplace"))
    connection.end(_FAILED)
    return True


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
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{code}\n")
    return 1


def _show(error: BaseException) -> None:
    """Tell of an exception that nobody caught."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    error.__traceback__ = trace
    try:
        sys.excepthook(type(error), error, trace)
    except BaseException:
        with contextlib.suppress(Exception):
            sys.__excepthook__(type(error), error, trace)


def _take_body(environ: dict[str, Any], connection: Connection) -> None:
    """Have the request's body, if it has one, at descriptor 0. Raises OSError; WebServerGone if it breaks off."""
    length = environ.get("CONTENT_LENGTH", "")
    if not length or length == "0":
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
    """Return umask, threads, whether there are children, signal mask and handlers.

    An alarm would have died with the script; it is not left set.
    """
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    mask = os.umask(0o022)
    if mask != 0o022:
        os.umask(mask)
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    return mask, _thread._count(), _has_children(), blocked, [_signal.getsignal(number) for number in _SIGNALS]


def _has_children() -> bool:
    """Whether there are processes to be waited for: running, or ended and nobody has asked."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
