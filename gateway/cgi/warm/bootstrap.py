"""A warm Python interpreter: ``PYTHON [FLAGS] bootstrap.py CONTROL CLONE REPORTS NAME MODULE…``; CPython 3.8 and later.

CONTROL is a descriptor, a SEQPACKET socket to the spawner; CLONE the number of the clone system call; REPORTS the
abstract address of a datagram socket; NAME ``script`` if a child has its script's name; MODULEs are imported.

From the spawner: ``f COUNT``, fork so many children; ``l`` and lines of ``m MODULE`` or ``s PATH``: have this ready for
later children. To it: ``r VERSION``, ready; ``c PID``, from a child, with the descriptor over which it is given its
request; ``e``, no child; ``n MODULE``, it is not fit to be imported ahead. A request is a length in 8 bytes, and then,
ended by NUL each, ``w`` or ``W`` (not to be started cold), the script's path, directory and environment;
with it come the descriptors [stdin,] stdout, stderr.

Only the standard library, and little of it: each page of memory that a child writes to costs microseconds.
"""

from __future__ import annotations

import _socket
import ctypes
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

_RIGHTS = (_socket.SOL_SOCKET, 1)  # SCM_RIGHTS
_CLONE_FLAGS = 0x8000 | 17  # CLONE_PARENT, SIGCHLD
_PIECE = 64 * 1024
_SCRIPTS = 256  # whose code is kept; the oldest is dropped
# From the first byte of a bytes object to the begin of the object (CPython).
_BYTES_AT = sys.getsizeof(b"") - 1

_libc = ctypes.PyDLL(None)
_api = ctypes.pythonapi
_before_fork, _after_parent, _after_child = _api.PyOS_BeforeFork, _api.PyOS_AfterFork_Parent, _api.PyOS_AfterFork_Child
_before_fork.restype = _after_parent.restype = _after_child.restype = None
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long,) * 6
_prctl = _libc.prctl
_DIE_WITH_PARENT = 1, 9  # PR_SET_PDEATHSIG, SIGKILL
_inotify = _libc.inotify_init1(0x80000 | 0x800)  # IN_CLOEXEC | IN_NONBLOCK
_add_watch = _libc.inotify_add_watch
# IN_MODIFY, IN_ATTRIB (also the removal of a file's last name), IN_MOVE_SELF, IN_DELETE_SELF
_CHANGES = 0x2 | 0x4 | 0x800 | 0x400
_ioctl = _libc.ioctl
_FIONREAD = 0x541B
_count = ctypes.c_int()
_environ = ctypes.c_void_p.in_dll(_libc, "environ")
_Loader = sys.modules["_frozen_importlib_external"].SourceFileLoader

# Where the interpreter's own modules are; what else it finds may be anything.
_LIBRARY = os.path.dirname(os.path.realpath(os.__file__)) + os.sep
_FOREIGN = (_LIBRARY + "site-packages" + os.sep, _LIBRARY + "dist-packages" + os.sep)
_HAS_SCRIPT_DIRECTORY = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))

_FILES = (sys.modules["_io"].TextIOWrapper, sys.modules["_io"].BufferedWriter, sys.modules["_io"].BufferedRandom)

# In the C locale an interpreter sets this for itself and for what it starts (PEP 538).
_coerced = b"LC_CTYPE=" + os.environb[b"LC_CTYPE"] + b"\0" if b"LC_CTYPE" in os.environb else b""

_kept: list[object] = []  # what the C library points to


class _Script:
    """What is known of a script before it runs."""

    __slots__ = ("code", "directory", "directory_time", "identity", "name", "shadows", "source")

    def __init__(self, path: bytes) -> None:
        self.name = os.fsdecode(path)
        self.identity = _identity(os.stat(path))
        self.code: CodeType | None = None
        self.directory = real = os.path.dirname(os.path.realpath(self.name))
        self.directory_time = os.stat(real).st_mtime_ns
        # A file beside the script hides a module of that name: the one that was imported ahead is not meant.
        names = os.listdir(real) if _HAS_SCRIPT_DIRECTORY else []
        self.shadows = any(name.partition(".")[0] in _ahead_names for name in names)

    def read(self) -> None:
        """Read the source; raise ValueError if it may not be taken as the interpreter takes a file."""
        with open(self.name, "rb") as file:
            self.source = file.read()
        if b"\0" in self.source:
            raise ValueError("it has a NUL in it")
        if b"coding" not in b"".join(self.source.split(b"\n", 2)[:2]):
            self.source.decode()

    def is_current(self, path: bytes) -> bool:
        return self.identity == _identity(os.stat(path)) and os.stat(self.directory).st_mtime_ns == self.directory_time


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


_scripts: dict[bytes, _Script] = {}
_words = sys.argv  # a script has its own
_allowed = frozenset(sys.argv[5:])  # modules that may be imported ahead though they are not the interpreter's
_baseline = frozenset(sys.modules)  # there before every script, or used here; the rest was imported ahead
_known: frozenset[str] = frozenset()  # all that are there before the script
_ahead_names: set[str] = set()  # of top-level modules that were
_ahead_files: dict[str, tuple[int, ...]] = {}  # theirs, and what these are, where the kernel tells of no changes


# -- the interpreter


def _main() -> NoReturn:
    control = _socket.socket(fileno=int(sys.argv[1]))
    _prctl(*_DIE_WITH_PARENT)
    reports = b"\0" + os.fsencode(sys.argv[3])
    os.set_inheritable(control.fileno(), False)
    for name in sys.argv[5:]:
        _import_ahead(control, name)
    _settle()
    control.send(b"r %d.%d.%d" % sys.version_info[:3])
    while True:
        message = control.recv(_PIECE)
        if not message:
            os._exit(0)
        if message[:1] == b"f":
            for _ in range(int(message[2:])):
                connection = _fork(control, int(_words[2]))
                if connection is not None:
                    _run(_receive(connection), reports)
        else:
            for line in sorted(message.split(b"\n")[1:]):  # modules first: they put scripts out of date
                if line[:1] == b"m":
                    _import_ahead(control, line[2:].decode())
                else:
                    _read_ahead(line[2:])
            _settle()


def _settle() -> None:
    """Have the collector leave alone what is here: a child would copy each page that it marks."""
    global _known
    _known = frozenset(sys.modules)
    gc.collect()
    gc.freeze()


def _fork(control: _socket.socket, clone: int) -> _socket.socket | None:
    """Fork a child; return its connection there, None here."""
    _before_fork()
    pid = _syscall(clone, _CLONE_FLAGS, 0, 0, 0, 0)
    if pid:
        _after_parent()
        if pid < 0:
            control.send(b"e")
        return None
    _after_child()
    try:
        os.setsid()
        ours, theirs = _socket.socketpair()
        rights = theirs.fileno().to_bytes(4, sys.byteorder)
        control.sendmsg((b"c %d" % os.getpid(),), ((*_RIGHTS, rights),))
        theirs.close()
        control.close()
    except OSError:
        _quietly(lambda: control.send(b"e"))
        os._exit(1)
    return ours


# -- importing ahead


def _is_own(name: str, module: ModuleType) -> bool:
    """Whether a module belongs to the interpreter."""
    spec = getattr(module, "__spec__", None)
    origin = getattr(spec, "origin", None)
    if origin in ("built-in", "frozen") or not isinstance(origin, str):
        return isinstance(origin, str)
    if name.partition(".")[0] not in getattr(sys, "stdlib_module_names", (name.partition(".")[0],)):
        return False
    origin = os.path.realpath(origin)
    return origin.startswith(_LIBRARY) and not origin.startswith(_FOREIGN)


def _import_ahead(control: _socket.socket, name: str) -> None:
    """Import a module, if a trial in a child of its own shows that it leaves nothing behind but modules."""
    if name in sys.modules:
        return
    pid = os.fork()
    if not pid:
        _prctl(*_DIE_WITH_PARENT)  # it may hang
        _quietly(lambda: _is_harmless(name) and os._exit(42))
        os._exit(1)
    if os.waitpid(pid, 0)[1] != 42 << 8:  # what exits by itself says something else
        control.send(b"n " + name.encode())
        return
    __import__(name)
    for there in set(sys.modules) - _baseline:
        _ahead_names.add(there.partition(".")[0])
        path = getattr(sys.modules[there], "__file__", None)
        if path:
            try:
                if path not in _ahead_files and _add_watch(_inotify, os.fsencode(path), _CHANGES) < 0:
                    _ahead_files[path] = _identity(os.stat(path))
            except OSError:
                pass
    for script in _scripts.values():
        script.directory_time = 0  # to be looked at again: it may hide the new ones


def _is_harmless(name: str) -> bool:
    import signal
    import warnings

    warned: list[object] = []
    warnings.showwarning = lambda *arguments: warned.append(arguments)
    warnings.simplefilter("always")
    before = _world(signal)
    __import__(name)
    new = set(sys.modules) - _baseline
    are_known = all(_is_own(each, sys.modules[each]) or each.partition(".")[0] in _allowed for each in new)
    return are_known and _world(signal) == before and not warned


def _world(signal: Any) -> tuple[object, ...]:
    """What an import must not change: it would be changed for scripts that do not import it."""
    return (
        os.listdir("/proc/self/task"),
        os.listdir("/proc/self/fd"),
        [repr(signal.getsignal(number)) for number in range(1, 65) if number not in (32, 33)],
        dict(os.environ),
        os.getcwd(),
        list(sys.path),
        list(sys.meta_path),
        list(sys.path_hooks),
        (sys.excepthook, sys.displayhook, sys.stdin, sys.stdout, sys.stderr, sys.getrecursionlimit()),
        set(vars(sys.modules["builtins"])),
    )


def _read_ahead(path: bytes) -> None:
    """Keep the code of a script, if it compiles without a word."""
    import warnings

    try:
        script = _Script(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            script.read()
            script.code = compile(script.source, script.name, "exec", 0, True)
    except (OSError, SyntaxError, ValueError, Warning, RecursionError, MemoryError):
        _scripts.pop(path, None)
        return
    if len(_scripts) >= _SCRIPTS:
        del _scripts[next(iter(_scripts))]
    _scripts[path] = script


# -- the child


def _receive(connection: _socket.socket) -> list[bytes]:
    """Return the request that this child is for, [verb, path, directory, environment]; end if there will be none."""
    message, ancillary, _, _ = connection.recvmsg(_PIECE, 64)
    if not message:
        os._exit(0)
    end = 8 + int.from_bytes(message[:8], sys.byteorder)
    while len(message) < end:
        more = connection.recv(end - len(message))
        if not more:
            os._exit(0)
        message += more
    connection.close()
    rights = ancillary[0][2]
    descriptors = [int.from_bytes(rights[at : at + 4], sys.byteorder) for at in range(0, len(rights), 4)]
    for number, descriptor in zip((2, 1, 0), reversed(descriptors)):  # without a body, stdin is the null device already
        os.dup2(descriptor, number)
        os.close(descriptor)
    return message[8:].split(b"\0", 3)


def _set_environment(text: bytes) -> None:
    """Put `text`, NAME=VALUE and NUL each, in place of the environment, Python's and the C library's."""
    if _coerced and b"\0LC_CTYPE=" not in b"\0" + text:
        text += _coerced
    pairs = text.split(b"\0")[:-1]
    # The C library takes an environment that somebody else has laid out (environ(7)): one table, no copies.
    address = id(text) + _BYTES_AT
    addresses = bytearray()
    values = {}
    for pair in pairs:
        addresses += address.to_bytes(8, sys.byteorder)
        address += len(pair) + 1
        name, _, value = pair.partition(b"=")
        values[name] = value
    table = bytes(addresses) + bytes(8)
    _kept.append((text, table))
    _environ.value = id(table) + _BYTES_AT
    kept: Any = os.environ
    for mapping in (kept._data, sys.modules["posix"].environ):
        mapping.clear()
        mapping.update(values)


def _run(request: list[bytes], reports: bytes) -> NoReturn:
    """Be the script. Returns nothing, and raises only what the interpreter is to end with."""
    verb, path, directory, environment = request
    _set_environment(environment)
    try:
        os.chdir(directory)
    except OSError as error:
        _report(reports, b"chdir %d" % (error.errno or 0))
        os._exit(127)
    news: list[bytes] = []
    try:
        known = _scripts.get(path)
        script = known if known and known.is_current(path) else _Script(path)
        if script is not known:
            news.append(b"s " + path)
            script.read()
        why = _why_cold(script, news)
    except (OSError, ValueError) as error:
        why = str(error)
    if why:
        _start_cold(reports, verb, path, why, news)
    if _words[4] == "script":
        _prctl(15, path.rpartition(b"/")[2][:15])  # PR_SET_NAME
    status = _execute(script)
    _quietly(lambda: _finish(status, reports, news))  # the script may have replaced, or forbidden, what that calls
    raise SystemExit(status)  # the interpreter's own way has words and rules for all else


def _why_cold(script: _Script, news: list[bytes]) -> str:
    """Return why a fresh process is needed, or ''. Raises OSError."""
    if script.shadows:
        return "a file beside it has the name of a module that was imported ahead"
    # Looked for and not taken: it is there for every child. Each page that is touched costs more than this.
    if _has_event():
        news.append(b"o")
        return "a module that was imported ahead has changed"
    for name, identity in _ahead_files.items():
        if _identity(os.stat(name)) != identity:
            news.append(b"o")
            return name + " has changed"
    return ""


def _has_event() -> bool:
    """Whether a watched file has changed (inotify(7)); nothing is watched any more afterwards."""
    if _inotify < 0:
        return False
    _ioctl(_inotify, _FIONREAD, ctypes.byref(_count))
    os.close(_inotify)
    return _count.value > 0


def _report(reports: bytes, *lines: bytes, flags: int = 0) -> None:
    try:
        sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        sender.sendto(b"\n".join(lines), flags, reports)
        sender.close()
    except OSError:
        pass


def _start_cold(reports: bytes, verb: bytes, path: bytes, why: str, news: list[bytes]) -> NoReturn:
    """Execute the script instead, in this process, unless that is not wanted, and not for a moment only."""
    words = why.encode("utf-8", "backslashreplace").replace(b"\n", b" ")
    if verb == b"W" and b"o" not in news:
        _report(reports, b"unfit " + words, *news)
        os._exit(127)
    _report(reports, b"cold " + words, *news)
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(path, (path,), os.environb)
    except OSError as error:
        _report(reports, b"exec %d" % (error.errno or 0))
    os._exit(127)


def _become_main(script: _Script) -> ModuleType:
    """Make the script's module, and what it sees of its start (pythonrun.c, pymain_run_python)."""
    name = script.name
    sys.argv = [name]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[-len(_words) :] = [name]
    if _HAS_SCRIPT_DIRECTORY:
        sys.path[0] = script.directory
    if "threading" in sys.modules:
        sys.modules["threading"]._main_thread._native_id = os.getpid()
    main = sys.modules["__main__"] = type(sys)("__main__")
    space = main.__dict__
    space["__loader__"] = _Loader("__main__", name)
    if sys.version_info < (3, 14):
        space["__annotations__"] = {}
    space.update(__builtins__=sys.modules["builtins"], __file__=name, __cached__=None)
    return main


def _execute(script: _Script) -> int:
    """Run the code; return the exit status."""
    main = _become_main(script)
    error: BaseException | None = None
    try:
        exec(script.code or compile(script.source, script.name, "exec", 0, True), main.__dict__)
    except BaseException as caught:
        error = caught
    # Nothing is being handled from here on, for what the script has set to be called now.
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return _exit_status(error.code)
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without the frame that is ours
    return _show(error)


def _exit_status(code: object) -> int:
    """Return what SystemExit means (pythonrun.c, _Py_HandleSystemExit)."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 255
    _flush()
    write: Any = sys.stderr.write if sys.stderr else lambda text: os.write(2, text.encode())
    _quietly(lambda: write(str(code)))
    _quietly(lambda: write("\n"))
    return 1


def _show(error: BaseException) -> int:
    """Tell of an exception that nobody caught, as the interpreter does; return the exit status."""
    kind, trace = type(error), error.__traceback__
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        try:
            sys.excepthook(kind, error, trace)
        except SystemExit as stop:
            return _exit_status(stop.code)
        except BaseException as worse:
            sys.stderr.write("Error in sys.excepthook:\n")
            worse.__traceback__ = worse.__traceback__ and worse.__traceback__.tb_next
            sys.__excepthook__(type(worse), worse, worse.__traceback__)
            sys.stderr.write("\nOriginal exception was:\n")
            sys.__excepthook__(kind, error, trace)
    except BaseException:
        pass
    if isinstance(error, KeyboardInterrupt):
        # The interpreter then kills itself by SIGINT; it has been told of already.
        sys.excepthook = lambda *_: None
        raise error
    return 1


def _finish(status: int, reports: bytes, news: list[bytes]) -> None:
    """End as the interpreter does and in its order (pylifecycle.c, Py_FinalizeEx), but take apart only what the script
    has made: each object of the warm interpreter that is freed would be a page to copy. Returns if that does not do."""
    modules = sys.modules
    if "threading" in modules and not _quietly(modules["threading"]._shutdown):
        return
    if "atexit" in modules:
        _quietly(modules["atexit"]._run_exitfuncs)  # it says so itself
    for name, module in list(modules.items()):
        if name not in _known and name != "__main__" and type(module) is type(sys) and _is_own(name, module):
            news.append(b"m " + name.encode())
    if news:
        _report(reports, *news, flags=_socket.MSG_DONTWAIT)  # some later child will tell the same
    if not _flush() or ("_thread" in modules and modules["_thread"]._count()):
        return  # streams that do not take it, threads that go on
    # The collector ends what the script has made while that still has the names it was made with.
    vars(sys).update(dict.fromkeys(("last_type", "last_value", "last_traceback", "last_exc")))
    modules.pop("__main__", None)
    gc.collect()
    # Whatever still holds a file that was not closed: what was written to it is not lost.
    for thing in (*gc.get_objects(), sys.__stdout__, sys.__stderr__):
        if issubclass(type(thing), _FILES):  # its __class__ may lie, or raise
            _quietly(lambda thing=thing: thing.closed or thing.flush())
    if _flush():
        os._exit(status)


def _flush() -> bool:
    """Flush stdout and stderr; return whether both have taken it."""
    files = [getattr(sys, name, None) for name in ("stdout", "stderr")]
    return False not in [_quietly(lambda file=file: file is None or file.closed or file.flush()) for file in files]


def _quietly(call: Any) -> bool:
    """Return whether `call` could be made."""
    try:
        call()
    except BaseException:
        return False
    return True


_main()
