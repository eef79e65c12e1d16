"""A script in Python ends the same warm as cold: its status, its words on stderr, what it has written and leaves."""

from __future__ import annotations

import re

import pytest

from tests import support
from tests.warm_support import PYTHON, pair_of, see

BEGIN = "import sys, os\nprint('Content-Type: text/plain\\n\\nbegun é', flush=True)\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    support.need_file(PYTHON)
    with pair_of(tmp_path_factory.mktemp("cgi"), tmp_path_factory.mktemp("spool")) as pair:
        yield pair


def same(pair, text, begin=BEGIN, shebang=PYTHON, **more):
    return pair.same(pair.write(f"#!{shebang}\n{begin}{text}\n", "ends.py"), **more)


# sys.exit and its kin.


@pytest.mark.parametrize("code", ["", "0", "3", "255", "256", "-1", "-256", "2**31", "2**70", "-2**70", "True", "None",
    "'a text é'", "''", "object", "(1, 2)", "1.5", "b'x'"])  # fmt: skip
@pytest.mark.parametrize("way", ["sys.exit({})", "raise SystemExit({})", "def f(): exit({})\nf()"])
def test_exit(pair, way, code):
    same(pair, way.format(code))


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit",
        "raise SystemExit(1, 2)",
        "class E(SystemExit):\n    code = 5\nraise E()",
        "class C:\n    def __str__(self): return 1 / 0\nsys.exit(C())",
        "class C:\n    def __str__(self): return 'as it says'\nsys.exit(C())",
        "try:\n    sys.exit(4)\nfinally:\n    print('finally')",
        "print('without a line end', end='')\nsys.stdout.write('and without a flush')\nsys.exit(0)",
        "sys.stderr.write('no line end'); sys.exit('text')",
        "sys.stderr = None; sys.exit('text')",
        "sys.stdout = None; sys.exit(0)",
        "sys.stdout = None; sys.stderr = None; 1 / 0",
        "os._exit(9)",
        "os._exit(0)",
        "print('lost'); os._exit(0)",
        "os.abort()",
        "os.execv('/bin/sh', ['sh', '-c', 'echo from a shell; exit 6'])",
        "os.execv('/no/such/file', ['x'])",
        "os.execlp('env', 'env', 'echo', 'found in PATH')",
        "os.chdir('/'); print(os.getcwd())",
        "",
    ],
)
def test_other_ways(pair, text):
    same(pair, text)


# What the script leaves is in nobody's way.


@pytest.mark.parametrize(
    "text",
    [
        "import weakref\nclass C: pass\nc = C()\nos.kept = weakref.proxy(c)",
        "class C:\n    @property\n    def __class__(self): return 1 / 0\nos.kept = C()",
        "def no(*_): raise OSError('no')\nos._exit = no",
        "import gc\ndef no(*_): raise ValueError('no')\ngc.collect = gc.get_objects = no",
        "import _socket, colorsys\ndef no(*_): raise ValueError('no network')\n_socket.socket = no",
        "import stringprep\ndef hook(event, _):\n    if event[:3] in ('soc', 'gc.'): raise ValueError(event)\n"
        "sys.addaudithook(hook)",
    ],
)
def test_what_is_called_at_the_end_may_be_replaced(pair, text):
    assert same(pair, f"{text}\nprint('last')").end == "exit=0 outcome=ok"


@pytest.mark.parametrize(
    "text",
    [
        "import io; sys.stdout = io.StringIO(); print('in memory')",
        "sys.stdout = None",
        "del sys.stdout, sys.stderr",
        "sys.stderr.write('and this'); sys.stderr = None",
        "sys.stdout = open(os.devnull, 'w'); sys.exit(2)",
    ],
)
def test_what_was_written_before_a_stream_was_replaced(pair, text):
    assert "before" in same(pair, f"print('before', end='')\n{text}").text


# Exceptions that nobody catches.


@pytest.mark.parametrize(
    "text",
    [
        "1 / 0",
        "def f(): g()\ndef g():\n    raise ValueError('deep é')\nf()",
        "raise Exception",
        "raise Exception('several\\nlines\\n')",
        "assert False, 'asserted'",
        "import no_such_module",
        "from os import no_such_name",
        "no_such_name",
        "os.no_such_attribute",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('second')",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('second') from error",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('alone') from None",
        "def f(): return f()\nf()",
        "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E",
        "class E(Exception): pass\nE.__module__ = 'elsewhere'\nraise E('x')",
        "open('/no/such/file')",
        "b'\\xff'.decode()",
        "int('x' * 5000)",
        "compile('1 +', 'a name', 'exec')",
        "eval('1 +')",
        "exec('def f():\\n  1 / 0\\nf()')",
        "import json; json.loads('{')",
        "[].__iter__().__next__()",
        "raise GeneratorExit",
        "raise MemoryError",
        "raise StopIteration(3)",
        "raise BaseException('base')",
        "raise KeyboardInterrupt",
        "raise KeyboardInterrupt('words')",
        "class K(KeyboardInterrupt): pass\nraise K",
        "import signal; signal.raise_signal(signal.SIGINT)",
        "class C:\n    def __del__(self): print('deleted', flush=True)\nc = C()",
        "sys.unraisablehook = lambda u: print('unraisable', u.exc_type.__name__, flush=True)\n"
        "class C:\n    def __del__(self): 1 / 0\nC()",
        "sys.excepthook = lambda *e: print('hook', e[0].__name__, e[1], e[2].tb_lineno)\n1 / 0",
        "sys.excepthook = lambda *e: 1 / 0\nraise ValueError('first')",
        "sys.excepthook = lambda *e: sys.exit(7)\n1 / 0",
        "sys.excepthook = None\n1 / 0",
        "def hook(*e):\n    import traceback\n    print(sys.exc_info(), ''.join(traceback.format_exception(*e)))\n"
        "sys.excepthook = hook\ndef f(): 1 / 0\nf()",
        "sys.tracebacklimit = 0\n1 / 0",
        "import atexit\natexit.register(lambda: print(sys.last_type, sys.last_value, sys.last_traceback.tb_lineno))\n"
        "1 / 0",
        "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()",
        "import logging; logging.warning('a warning'); logging.getLogger('x').error('an error')",
        "import warnings; warnings.warn('odd'); warnings.warn('old', DeprecationWarning)",
        "import faulthandler; faulthandler.enable(); print(faulthandler.is_enabled())",
    ],
)
def test_exceptions(pair, text):
    same(pair, text)


@pytest.mark.skipif("sys.version_info < (3, 11)")
def test_exception_group_and_note(pair):
    same(pair, "e = ExceptionGroup('several', [ValueError(1), KeyError(2)])\ne.add_note('noted é')\nraise e")


@pytest.mark.parametrize(
    "text",
    [
        "print('X: y\\n')\n1 +\n",
        "print('never'\n",
        "if True:\nprint()\n",
        "\tx = 1\n        y = 2\n",
        "x = 'no end\n",
        "return 1\n",
        "# -*- coding: latin-1 -*-\nprint('X: y\\n')\n",
        "# -*- coding: utf-8 -*-\nfrom __future__ import annotations\nprint('X: y\\n')\nx: no_name = 1\nprint(x)\n",
        "from __future__ import no_such_feature\n",
        "print('X: y\\n')\nfrom __future__ import annotations\n",
        "print('X: y\\n')\nx = 1 is 1\nprint('\\d')\n",
        "'''docstring é'''\nprint('X: y\\n')\nprint(__doc__)\n",
        "",
        "\n\n",
        "print('X: y\\r\\n\\r\\n', end='')\r\nprint('lines with CR')\r\n",
        "\fprint('X: y\\n')\n",
        "print('X: y\\n')\nprint('no newline at the end')",
    ],
)  # fmt: skip
def test_what_compiles_and_what_does_not(pair, text):
    same(pair, text, begin="")


def test_a_source_in_another_encoding(pair):
    pair.same(pair.write(f"#!{PYTHON}\n# coding: latin-1\nprint('X: y\\n')\nprint(len('".encode() + b"\xe9'))\n"))


@pytest.mark.parametrize("raw", [b"print('X: y\\n')\nprint('\xff')\n", b"# \xff\nprint('X: y\\n')\n",
    b"print('X: y\\n')\n\0\n"])  # fmt: skip
def test_sources_that_are_no_text_are_the_interpreters_own_business(pair, serve, raw):
    """What is an error in a file is none in a string, and the other way round."""
    path = pair.write(f"#!{PYTHON}\n".encode() + raw)
    seen = see(pair.warm, path)
    assert seen.status == 500
    assert "cannot be run warm (--warm require): " in seen.complaint
    server = serve("--warm", cgi_dir=pair.directory)
    for _ in range(4):
        assert see(server, path) == see(pair.cold, path)


# Signals.


@pytest.mark.parametrize("name", ["KILL", "SEGV", "TERM", "ABRT", "HUP", "INT", "USR1", "PIPE", "ALRM", "XFSZ", "BUS"])
def test_killed(pair, name):
    assert same(pair, f"import signal\nos.kill(os.getpid(), signal.SIG{name})\nprint('after')").status in (200, 502)


def test_a_real_fault(pair):
    assert same(pair, "import ctypes\nctypes.string_at(0)").end == "exit=SIGSEGV outcome=truncated"


@pytest.mark.parametrize("text", [
    "import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('caught'))\nos.kill(0, signal.SIGTERM)",
    "import signal\nsignal.signal(signal.SIGALRM, lambda *_: sys.exit(4))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\n"
    "signal.pause()",
    "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nsignal.raise_signal(signal.SIGINT)",
    "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))\nx = 'x' * (1 << 29)",
])  # fmt: skip
def test_signals_and_limits(pair, text):
    same(pair, text)


# What is done at the end: in the interpreter's order.


@pytest.mark.parametrize(
    "text",
    [
        "import atexit\natexit.register(print, 'first'); atexit.register(print, 'second')",
        "import atexit\natexit.register(lambda: 1 / 0); atexit.register(print, 'still')",
        "import atexit\natexit.register(lambda: sys.exit(9)); atexit.register(print, 'still')",
        "import atexit\natexit.register(lambda: atexit.register(print, 'late'))",
        "import atexit\natexit.register(lambda: os._exit(8))",
        "import atexit\natexit.register(print, 'at exit')\n1 / 0",
        "import atexit, threading\natexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: print('thread', flush=True)).start()",
        # Threads that are waited for, and that are not.
        "import threading, queue\nq = queue.Queue()\n"
        "threading.Thread(target=lambda: print('in a thread', q.get(), flush=True)).start()\nq.put(1)\nprint('ends')",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('ends')",
        "import threading\nthreading.Thread(target=lambda: sys.exit(5)).start()",
        "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T')\nt.start(); t.join()",
        "import threading\nthreading.excepthook = lambda a: print('hook', a.exc_type.__name__, flush=True)\n"
        "t = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()",
        "import threading\ne = threading.Event()\nthreading.Thread(target=e.wait).start()\n"
        "import atexit\natexit.register(print, 'at exit')\nthreading._register_atexit(e.set) "
        "if hasattr(threading, '_register_atexit') else e.set()",
        "import concurrent.futures as c\nx = c.ThreadPoolExecutor(2)\nprint(list(x.map(abs, [-1, -2])))",
        "import concurrent.futures as c\nx = c.ThreadPoolExecutor(2)\nx.submit(lambda: print('done', flush=True))",
        "import multiprocessing as m\np = m.get_context('fork').Process(target=print, args=('child',))\np.start()",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print('async')\nasyncio.run(f())",
        # Files and streams that nobody closed.
        "f = open('kept.txt', 'w'); f.write('kept é'); os.link('kept.txt', 'again.txt') if 0 else None",
        "sys.stdout.write('x' * 100_000)",
        "sys.stdout.buffer.write(b'\\xff\\xfe')",
        "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'latin-1')\nprint('\\xe9')",
        "import io\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False), 'utf-16')\nprint('\\xe9')",
        "import io\nsys.stdout = io.StringIO()\nprint('nowhere')",
        "import codecs\nsys.stdout = codecs.getwriter('utf-8')(sys.stdout.detach())\nsys.stdout.write('\\xe9')",
        "sys.stdout.reconfigure(encoding='ascii', errors='xmlcharrefreplace')\nprint('\\xe9')",
        "sys.stdout.detach()",
        "out = os.fdopen(1, 'w'); out.write('through another')",
        "sys.stdout.close()",
        "sys.stdin.close()",
        "os.close(1); print('into nothing')",
        "os.close(1)",
        "os.close(2); 1 / 0",
        "os.close(0); print('no stdin')",
        "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); print('broken')",
        "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); print('broken'); sys.exit(3)",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('full')",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('full'); sys.exit(2)",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2); print('x', file=sys.stderr)",
        "class W:\n    def write(self, t): return os.write(1, t.encode())\n    def flush(self): 1 / 0\n"
        "sys.stdout = W()\nprint('w')",
        "class W:\n    def write(self, t): return os.write(1, t.encode())\n"
        "    def flush(self): os.write(1, b'flushed')\nsys.stdout = W()\nprint('w')",
        # What is taken apart.
        "class C:\n    def __del__(self): os.write(1, b'deleted')\nc = C()",
        "class C:\n    def __del__(self): os.write(1, b'cycle')\nc = C(); c.c = c",
        "class C:\n    def __del__(self): os.write(1, b'in a list')\nx = [C()]",
        "class C:\n    def __del__(self): print('printed')\nc = C()",
        "class C:\n    def __enter__(self): return self\n    def __exit__(self, *e): print('left', e[0])\n"
        "with C(): sys.exit(3)",
        "import weakref\nclass C: pass\nc = C(); weakref.finalize(c, print, 'finalized')",
        "import tempfile\nt = tempfile.NamedTemporaryFile(); import atexit\n"
        "atexit.register(lambda: print(os.path.exists(t.name)))",
        "import tempfile\nt = tempfile.TemporaryDirectory(dir='.')\nprint('ends')",
        "import sqlite3\nc = sqlite3.connect(':memory:'); c.execute('create table t (x)')",
        "def g():\n    try:\n        yield 1\n    finally:\n        os.write(1, b'closed')\nx = g(); next(x)",
        "import subprocess\np = subprocess.Popen(['sh', '-c', 'echo below'])\np.wait()",
        "class M:\n    def __getattr__(self, name): raise RuntimeError(name)\nsys.modules['odd'] = M()",
        "import gc\ngc.disable()\nprint(gc.isenabled())",
        "import shelve\ns = shelve.open('kept')\ns['a'] = 1",
        "import logging, logging.handlers\nh = logging.handlers.MemoryHandler(100, target=logging.StreamHandler())\n"
        "logging.getLogger().addHandler(h)\nlogging.warning('in memory')",
    ],
)
def test_at_the_end(pair, text):
    same(pair, text)


FILES = """
import io
kinds = [open('text', 'w'), open('binary', 'wb'), open('both', 'w+b'), open('lines', 'w', buffering=1)]
for f in kinds:
    f.write('é' if isinstance(f, io.TextIOBase) else b'bytes')
class Holder:
    def __init__(self):
        self.file = open('held', 'w')
        self.file.write('held')
import json
json.of_script = Holder()
import builtins
builtins.of_script = open('by builtins', 'w')
builtins.of_script.write('by builtins')
def local():
    f = open('dropped', 'w')
    f.write('dropped')
    return lambda: f
kept = local()
"""


def test_files_that_were_not_closed_have_what_was_written(pair):
    path = pair.write(f"#!{PYTHON}\n{BEGIN}{FILES}\n", "files.py")
    expected = {
        "text": "é", "binary": "bytes", "both": "bytes", "lines": "é", "held": "held", "by builtins": "by builtins",
        "dropped": "dropped",
    }  # fmt: skip
    directory = pair.file(path).parent
    for server in (pair.cold, *[pair.warm] * 4):
        assert see(server, path).status == 200
        assert {file.name: file.read_text() for file in directory.iterdir() if file.name != "files.py"} == expected
        for name in expected:
            (directory / name).unlink()


CGITB = """
import sys
print('Content-Type: text/plain\\n')
def hook(kind, error, trace):
    import traceback
    print('--> failed')
    frame = trace
    while frame:
        print(frame.tb_frame.f_code.co_name, frame.tb_lineno, sorted(n for n in frame.tb_frame.f_locals if n[0] != '_'))
        frame = frame.tb_next
    print(*traceback.format_exception(kind, error, trace))
sys.excepthook = hook
def inner(value): return 1 / value
def outer(): inner(0)
outer()
"""


def test_a_hook_like_that_of_cgitb(pair):
    seen = same(pair, CGITB, begin="")
    assert "outer 15 []" in seen.text
    assert "inner 14 ['value']" in seen.text


def test_cgitb(pair):
    support.need_file("/usr/lib/python3.11/cgitb.py")
    path = pair.write(
        "#!/usr/bin/python3.11\nimport warnings; warnings.simplefilter('ignore')\n"
        "import cgitb; cgitb.enable(format='text')\nprint('X: y\\n')\ndef f(a): return 1 / a\nf(0)"
    )
    said = [re.sub(r"(?m)^\w{3} \w{3} .*\d{4}$", "DATE", see(server, path).text) for server in (pair.cold, pair.warm)]
    assert said[0] == said[1]
    assert "ZeroDivisionError" in said[0]
