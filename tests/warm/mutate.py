#!/usr/bin/python3 -u
"""Tells first what an earlier request would have changed, then changes it all."""
import sys

marks = [n for n in ("mark", "open_mark") if n in vars(__import__("builtins"))]
import builtins, json, locale, os, random, secrets, signal, tempfile, uuid, warnings

seen = {
    "builtins": marks + [n for n in ("len", "open", "print") if "lambda" in repr(getattr(builtins, n))],
    "os": [n for n in ("getcwd", "listdir") if callable(getattr(os, n)) and "lambda" in repr(getattr(os, n))],
    "environment": sorted(n for n in os.environ if n.startswith("MARK")),
    "cwd": os.path.realpath(os.getcwd()) == os.path.dirname(os.path.realpath(__file__)),
    "json": hasattr(json, "mark"),
    "path": [p for p in sys.path if "mark" in p],
    "modules": [n for n in sys.modules if n.startswith("mark")],
    "signal": repr(signal.getsignal(signal.SIGUSR1)),
    "umask": os.umask(0o022),
    "filters": [f for f in warnings.filters if f[2] is UserWarning],
    "locale": locale.setlocale(locale.LC_NUMERIC),
    "argv": sys.argv[1:],
    "limit": sys.getrecursionlimit(),
    "files": [n for n in os.listdir("/proc/self/fd") if int(n) > 9],
    "main": [n for n in globals() if n.startswith("mark_")],
    "query": os.environ["QUERY_STRING"],
    "hook": sys.excepthook is sys.__excepthook__,
    "stdin": sys.stdin.read(),
}
unique = [random.random(), str(uuid.uuid4()), secrets.token_hex(8), tempfile.mktemp(), random.getrandbits(64)]
try:
    import ssl

    unique.append(ssl.RAND_bytes(8).hex())
except ImportError:
    pass
mark_of_main = 1
builtins.mark = builtins.open_mark = seen["query"]
os.getcwd = lambda: "/mark"
os.listdir = lambda *_: []
os.environ["MARK"] = "1"
os.putenv("MARK_C", "1")
os.chdir("/")
json.mark = 1
sys.path.insert(0, "/mark")
sys.modules["mark"] = sys
signal.signal(signal.SIGUSR1, lambda *_: None)
os.umask(0)
warnings.simplefilter("error", UserWarning)
random.seed(1)
sys.setrecursionlimit(2000)
sys.argv.append("mark")
sys.excepthook = print
for n in range(20, 24):
    os.dup2(1, n)
del sys.modules["json"]
print("Content-Type: application/json\n")
print(json.dumps([seen, unique]))
builtins.print = builtins.len = lambda *_: None
