import sys, os

first_modules = sorted(sys.modules)
first_keys = list(globals())
import atexit, builtins, codecs, ctypes, gc, json, locale, multiprocessing, pickle, re, resource, signal, subprocess
import threading, time, traceback, warnings

told = {}


def tell(name, value):
    """Keep `value`, without what is each request's and each server's own."""
    told[name] = re.sub(r"(REMOTE_PORT|SERVER_PORT)([^\d]+)\d+", r"\1\2N", json.dumps(value, default=repr))


def lines_of(path, *names):
    with open(path) as file:
        return [line for line in file if line.startswith(names)]


def output_of(*words):
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode("utf-8", "backslashreplace")


# The environment: as Python has it, as the C library has it, as others are given it; and after a change.
tell("environ", list(os.environ.items()))
tell("environb", list(os.environb.items()))
tell("posix.environ", sorted(sys.modules["posix"].environ.items()))
tell("env of others", output_of("/usr/bin/env").splitlines())
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
tell("getenv of C", [libc.getenv(name) for name in (b"PATH", b"QUERY_STRING", b"SCRIPT_NAME", b"NONE", b"MINE")])
os.environ["NEW"] = "é"
del os.environ["QUERY_STRING"]
os.environ["PATH"] += ":/nowhere"
tell("env of others, changed", output_of("/usr/bin/env").splitlines())
tell("getenv of C, changed", [libc.getenv(name) for name in (b"PATH", b"QUERY_STRING", b"NEW")])
libc.setenv(b"OF_C", b"1", 1)
tell("getenv of C, changed by C", libc.getenv(b"OF_C"))

# The process.
tell("argv", sys.argv)
tell("orig_argv", getattr(sys, "orig_argv", None))
tell("cwd", os.getcwd())
mask = os.umask(0)
os.umask(mask)
tell("umask", mask)
tell("descriptors", [os.fstat(number).st_mode >> 12 for number in range(3)])
held = []
for name in os.listdir("/proc/self/fd"):
    try:
        os.fstat(int(name))
        held.append(name)
    except OSError:
        pass  # the directory itself
tell("descriptors held", sorted(held))
tell("descriptor flags", [(os.get_inheritable(n), os.get_blocking(n)) for n in range(3)])
tell("dispositions", {n: repr(signal.getsignal(n)) for n in range(1, 65) if n not in (32, 33)})
tell("status", lines_of("/proc/self/status", "SigP", "SigB", "SigI", "SigC", "Shd", "Threads", "Name", "Uid", "Gid",
                        "Groups", "Umask", "NoNewPrivs", "Seccomp", "Cap", "Cpus_allowed"))
tell("mask", repr(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
tell("itimer", [signal.getitimer(n) for n in range(3)])
tell("wakeup", signal.set_wakeup_fd(-1))
tell("session and group", [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()])
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    tell("terminal", error.errno)
tell("parent", os.readlink("/proc/%d/exe" % os.getppid()))
tell("limits", [resource.getrlimit(n) for n in range(16)])
tell("ids", [os.getresuid(), os.getresgid(), os.getgroups()])
tell("comm", lines_of("/proc/self/comm", ""))
tell("exe", os.readlink("/proc/self/exe"))
tell("root", os.readlink("/proc/self/root"))
tell("nice", [os.nice(0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))])
tell("oom", lines_of("/proc/self/oom_score_adj", ""))
tell("cgroup", lines_of("/proc/self/cgroup", ""))
with open("/proc/self/stat") as file:
    stat = file.read().rpartition(")")[2].split()
# The terminal and its group, priority, nice, threads, the signal at its end.
tell("stat", [stat[4], stat[5], stat[15], stat[16], stat[17], stat[35]])
used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
tell("times are its own", [each.ru_utime + each.ru_stime < 5 for each in used])

# The interpreter.
tell("path", sys.path)
tell("flags", repr(sys.flags))
tell("version", sys.version)
tell("places", [sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix, sys._base_executable,
                getattr(sys, "_home", 0), sys.platlibdir if hasattr(sys, "platlibdir") else 0, sys.pycache_prefix])
tell("xoptions", sys._xoptions)
tell("warnoptions", sys.warnoptions)
tell("bytecode", sys.dont_write_bytecode)
tell("hooks", [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__,
               sys.unraisablehook is sys.__unraisablehook__, sys.breakpointhook is sys.__breakpointhook__,
               threading.excepthook is getattr(threading, "__excepthook__", 0)])
tell("finders", [[getattr(m, "__name__", type(m).__name__) for m in sys.meta_path],
                 [getattr(m, "__qualname__", repr(m)) for m in sys.path_hooks]])
tell("limits of it", [sys.getrecursionlimit(), sys.getswitchinterval(), gc.get_threshold(), gc.isenabled(),
                      gc.get_debug(), gc.callbacks, sys.getprofile(), sys.gettrace(), sys.maxsize,
                      getattr(sys, "get_int_max_str_digits", int)()])
tell("encodings", [sys.getdefaultencoding(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(),
                   locale.getpreferredencoding(False), locale.getlocale(), locale.setlocale(locale.LC_ALL)])
tell("localeconv", locale.localeconv())
tell("filters", [repr(each) for each in warnings.filters])
tell("filters of the class", [warnings.defaultaction, sorted(getattr(warnings, "onceregistry", {}))])
tell("builtins", [__builtins__ is builtins, sorted(vars(builtins))])
tell("names of sys", sorted(vars(sys)))
tell("site", [getattr(sys.modules.get("site"), name, None) for name in ("ENABLE_USER_SITE", "USER_SITE", "PREFIXES")])
tell("time", [time.tzname, time.timezone, time.daylight])
tell("codecs", [codecs.lookup_error("strict").__name__, codecs.lookup("utf-8").name])

# The module.
tell("keys", first_keys)
main = sys.modules["__main__"]
tell("is main", [main.__dict__ is globals(), type(main).__name__, repr(main)])
tell("names", [__name__, __file__, __spec__, __doc__, __package__, globals().get("__cached__", "none"),
               globals().get("__annotations__", "none")])
tell("loader", [type(__loader__).__module__, type(__loader__).__name__, __loader__.path, __loader__.name,
                __loader__.get_source("__main__") == open(__file__, encoding="utf-8").read(),
                __loader__.get_filename("__main__")])
tell("code", [tell.__module__, tell.__code__.co_filename, tell.__code__.co_firstlineno, tell.__qualname__,
              tell.__code__.co_flags])
annotated: "int" = 1
tell("annotations", repr(globals().get("__annotations__", "none")))
here = sys._getframe()
tell("frame", [here.f_code.co_name, here.f_code.co_filename, here.f_code.co_flags, here.f_globals is here.f_locals])

# The streams.
for name in ("stdin", "stdout", "stderr"):
    f = getattr(sys, name)
    tell(name, [f.encoding, f.errors, f.line_buffering, f.newlines, f.name, f.mode, f.isatty(), f.seekable(),
                f.readable(), f.writable(), f.fileno(), getattr(f, "write_through", None), repr(f),
                type(f.buffer).__name__, type(getattr(f.buffer, "raw", None)).__name__, repr(f.buffer),
                f is getattr(sys, "__%s__" % name), f._CHUNK_SIZE, f.closed])
tell("stdin's data", sys.stdin.read())
tell("stdin at its end", [sys.stdin.read(), os.read(0, 1)])

# Threads and processes.
tell("threads", [threading.current_thread() is threading.main_thread(), threading.active_count(),
                 threading.current_thread().name, threading.current_thread().daemon,
                 threading.current_thread().ident == threading.get_ident()])
if hasattr(threading, "get_native_id"):
    tell("thread's number", threading.get_native_id() == os.getpid() == threading.main_thread().native_id)
results = []
thread = threading.Thread(target=lambda: results.append(threading.current_thread().name))
thread.start()
thread.join()
tell("a thread", results)
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
process = context.Process(target=lambda: theirs.send([os.environ["NEW"], os.getppid() == parent_pid]))
parent_pid = os.getpid()
process.start()
tell("multiprocessing", [ours.recv(), process.join(), process.exitcode, process.name])
pid = os.fork()
if not pid:
    os._exit(7)
tell("fork", os.waitpid(pid, 0)[1])
read, write = os.pipe()
if not os.fork():
    of_main = threading.current_thread() is threading.main_thread()
    os.write(write, json.dumps([sys.argv, os.environ["NEW"], of_main]).encode())
    os._exit(0)
os.wait()
tell("fork's view", os.read(read, 65536))
tell("no child is left", [])
try:
    os.wait()
except ChildProcessError as error:
    tell("no child is left", error.errno)
tell("a Python below", output_of(sys.executable, "-c", "import sys, os; print(sys.argv, sys.flags, os.environ)"))
tell("a shell below", output_of("/bin/sh", "-c", "ulimit -a; umask; pwd; ls /proc/self/fd | tr '\\n' ' '; echo $0 $#"))


class Odd:
    def __repr__(self):
        return "<Odd>"


def fails(depth):
    return fails(depth - 1) if depth else 1 // 0


try:
    fails(3)
except ZeroDivisionError:
    tell("traceback", traceback.format_exc())
try:
    exec("1 +")
except SyntaxError:
    tell("traceback of exec", traceback.format_exc().splitlines()[-3:])
try:
    import no_such_module_anywhere  # noqa: F401
except ImportError as error:
    tell("import error", [str(error), error.name])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    warnings.warn("odd")
tell("warning", [(each.filename, each.lineno, each.category.__name__) for each in caught])
tell("pickled", pickle.loads(pickle.dumps(Odd())).__class__ is Odd)
tell("regular expression", re.compile(r"(\w+) é").match("abc é").groups())
tell("hash of a number", [hash(1.5), hash(10**40), hash(None) if sys.version_info >= (3, 12) else 0])

atexit.register(lambda: print("at exit"))
text = json.dumps(told, indent=1)
sys.stdout.write("Content-Type: application/json\n\n" + text + "\n")
print("on stderr é", file=sys.stderr)
