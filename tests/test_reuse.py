"""Scripts that are run again and again in one process: ``--warm reuse``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys

import pytest

from tests import support
from tests.real_client import multipart
from tests.test_pool_peers import running_front

PYTHON = f"#!{sys.executable}\n"
HEADER = "print('Content-Type: text/plain\\n')\n"


@pytest.fixture
def reuse(tmp_path):
    """Start a server of some scripts, given by their names: ``reuse(hello="print(...)")``; one process for them all."""
    directory = tmp_path / "cgi"
    directory.mkdir()
    with contextlib.ExitStack() as stack:

        def start(*options, **scripts):
            for name, text in scripts.items():
                write(name, text)
            server = stack.enter_context(
                running_front("--warm", "reuse", "--children", "1", "--cgi-dir", str(directory), *options)
            )
            server.directory = directory
            return server

        def write(name, text):
            support.script(directory / f"{name}.py", text if text.startswith("#!") else PYTHON + HEADER + text)

        yield start


def get(server, name, query="", **more):
    answer = server.get(f"/cgi-bin/{name}.py{query}", **more)
    assert answer.status == 200, (answer, server.errors.text)
    return answer.text


PID = "import os; print(os.getpid())\n"


def test_one_process_runs_them_all(reuse):
    server = reuse(one=PID, two=PID)
    assert len({get(server, name) for name in ("one", "two", "one", "one", "two")}) == 1
    assert "1 × " in server.errors.text


def test_each_request_has_a_module_of_its_own(reuse):
    names = "print(__name__, __file__, sorted(n for n in globals() if n[0] != '_'))\nleft = 1\n"
    is_main = "import sys; print(sys.modules['__main__'].__dict__ is globals())\n"
    server = reuse(names=names, main=is_main)
    first = get(server, "names")
    assert first == f"__main__ {server.directory}/names.py []\n"
    assert get(server, "names") == first
    assert get(server, "main") == "True\n"


ENVIRONMENT = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
print(os.environ["QUERY_STRING"], libc.getenv(b"QUERY_STRING").decode(), sys.argv, os.getcwd(), sys.path[0])
print("MINE" in os.environ, libc.getenv(b"MINE"))
sys.stdout.flush()
subprocess.run(["sh", "-c", "echo $QUERY_STRING $HTTP_X_Y $MINE; pwd"], check=True)
print(sorted(os.environ) == sorted(line.partition("=")[0] for line in
    subprocess.run(["env"], capture_output=True, text=True, check=True).stdout.splitlines()))
os.environ["MINE"] = "left"
sys.path.append("/nowhere")
os.putenv("HTTP_X_Y", "left")
"""


def test_each_request_has_its_own_environment(reuse):
    server = reuse(env=ENVIRONMENT)
    for number in range(3):
        here = server.directory
        head = f"a={number} a={number} ['{here}/env.py'] {here} {here}\nFalse None\n"
        answer = get(server, "env", f"?a={number}", headers={"X-Y": f"é{number}".encode().decode("latin-1")})
        assert answer == f"{head}a={number} é{number}\n{here}\nTrue\n"


def test_what_a_program_of_the_script_writes_comes_in_its_place(reuse):
    text = """
import os, subprocess, sys
for number in range(3):
    print("script", number, flush=True)
    subprocess.run(["echo", "program", str(number)])
os.write(1, b"last\\n")
print("end")
"""
    whole = "".join(f"script {number}\nprogram {number}\n" for number in range(3)) + "last\nend\n"
    server = reuse(both=text)
    assert [get(server, "both") for _ in range(2)] == [whole, whole]


BODY = """
import hashlib, os, subprocess, sys
if "sub" in os.environ["QUERY_STRING"]:
    sys.stdout.flush()
    subprocess.run(["sha256sum"])
else:
    print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), " -")
"""


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_bodies(reuse, size):
    server = reuse(sum=BODY)
    body = os.urandom(size)
    digest = f"{hashlib.sha256(body).hexdigest()}  -\n"
    for query in ("", "?sub", "", "?sub"):
        assert get(server, "sum", query, method="POST", body=body) == digest
    # One that has none does not see the last.
    assert get(server, "sum") == get(server, "sum", "?sub") == f"{hashlib.sha256(b'').hexdigest()}  -\n"


def test_a_body_that_is_not_read_is_not_met_by_the_next(reuse):
    server = reuse(deaf="print('deaf')", echo="import sys; print(sys.stdin.read())")
    with server.socket() as client:
        for _ in range(2):
            assert get(server, "deaf", method="POST", body=b"x" * 100_000) == "deaf\n"
            assert get(server, "echo", method="POST", body=b"mine") == "mine\n"
        client.close()


UPLOAD = """
import cgi, warnings
form = cgi.FieldStorage()
print(form["name"].value, form["file"].filename, len(form["file"].file.read()))
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="cgi left the standard library")
@pytest.mark.filterwarnings("ignore:'cgi' is deprecated")
def test_an_upload(reuse):
    server = reuse(upload=f"#!{sys.executable} -Wignore\n{HEADER}{UPLOAD}")
    kind, body = multipart(("name", None, b"Ada"), ("file", "a.bin", bytes(100_000)))
    for _ in range(2):
        assert get(server, "upload", method="POST", body=body, headers={"Content-Type": kind}) == "Ada a.bin 100000\n"


@pytest.mark.parametrize(
    ("code", "status", "exit_status"),
    [("0", 200, 0), ("None", 200, 0), ("3", 200, 3), ("-1", 200, 255), ("256", 200, 0), ("'words'", 200, 1)],
)
def test_exit_statuses(reuse, code, status, exit_status):
    server = reuse(end=f"import sys\nprint('said')\nsys.exit({code})", pid=PID)
    pid = get(server, "pid")
    answer = server.get("/cgi-bin/end.py")
    assert (answer.status, answer.text) == (status, "said\n")
    server.wait_for_access(rf"end\.py .* exit={exit_status} ")
    if "words" in code:
        server.wait_for_log(r"script \[.*\] end\.py\[-\]: words$")
    assert get(server, "pid") == pid


def test_an_exception_is_told_and_ends_the_process(reuse):
    server = reuse(bad="import nosuch", early=f"{PYTHON}1 / 0\n", wrong=f"{PYTHON}if\n", pid=PID)
    pid = get(server, "pid")
    assert get(server, "bad") == ""
    server.wait_for_log(r"script \[.*\] bad\.py\[-\]: ModuleNotFoundError: No module named 'nosuch'$")
    assert "scripts.py" not in server.errors.text
    second = get(server, "pid")
    assert second != pid
    assert server.get("/cgi-bin/early.py").status == 502
    server.wait_for_log(r"early\.py\[-\]: ZeroDivisionError: division by zero$")
    third = get(server, "pid")
    assert third != second
    assert server.get("/cgi-bin/wrong.py").status == 502
    server.wait_for_log(r"wrong\.py\[-\]: SyntaxError: ")
    # Nothing of it has run.
    assert get(server, "pid") == third


LEFT = {
    "directory": "import os; os.chdir('/')",
    "umask": "import os; os.umask(0o077)",
    "handler": "import signal; signal.signal(signal.SIGUSR2, signal.SIG_IGN)",
    "thread": "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "mask": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
    "zombie": "import os; os.fork() or os._exit(0)",
    "program": "import subprocess; subprocess.Popen(['cat'], stdin=-1, stdout=-3)",
    "gone": "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
}


@pytest.mark.parametrize("what", LEFT)
def test_a_process_that_is_left_otherwise_ends(reuse, what):
    server = reuse(leave=f"{LEFT[what]}\nprint('left')", pid=PID)
    pids = [get(server, "pid")]
    for _ in range(3):
        assert get(server, "leave", method="POST", body=b"x") == "left\n"
        # Whatever its method, the next request is served, and by another.
        pids.append(get(server, "pid", method="POST", body=b"x"))
    assert len(set(pids)) == 4
    assert "outcome=ok" in server.accesses.text


def test_threads_are_waited_for_as_at_an_interpreters_end(reuse):
    text = "import threading\nthreading.Thread(target=lambda: print('thread')).start()\nprint('main')"
    server = reuse(threads=text, pid=PID)
    pid = get(server, "pid")
    assert sorted(get(server, "threads").split()) == ["main", "thread"]
    assert get(server, "pid") == pid


def test_a_changed_script_is_run_as_it_is(reuse):
    server = reuse(change="print('one')", pid=PID)
    pid = get(server, "pid")
    assert get(server, "change") == "one\n"
    support.script(server.directory / "change.py", f"{PYTHON}{HEADER}print('two, and longer')")
    assert get(server, "change") == "two, and longer\n"
    assert get(server, "pid") == pid


def test_a_changed_module_ends_the_process(reuse):
    server = reuse(uses="import mine; print(mine.VALUE)", pid=PID)
    module = server.directory / "mine.py"
    module.write_text("VALUE = 'one'\n")
    assert get(server, "uses") == "one\n"
    module.write_text("VALUE = 'another'\n")
    support.wait_until(lambda: "" if get(server, "uses") == "another\n" else "it is the old one")


def test_death_is_told(reuse):
    server = reuse(dies="import os; os._exit(3)", killed="import os; os.kill(os.getpid(), 9)", fine="print('fine')")
    for name in ("dies", "killed"):
        assert server.get(f"/cgi-bin/{name}.py", method="POST", body=b"x").status == 502
        assert get(server, "fine") == "fine\n"
    server.wait_for_log("SIGKILL")


def test_streams_line_by_line(reuse):
    text = "import sys\nfor word in ('one', 'two'):\n    print(word, flush=True)\n    sys.stdin.readline()\n"
    big = "for number in range(200_000):\n    print(number)\n"
    server = reuse(big=big, streams=text)
    assert get(server, "streams") == "one\ntwo\n"
    assert get(server, "big") == "".join(f"{number}\n" for number in range(200_000))


def test_others_are_run_as_they_can_be(reuse):
    perl = '#!/usr/bin/perl\nprint "Content-Type: text/plain\\n\\n$$\\n";\n'
    optimised = f"#!{sys.executable} -O\n{HEADER}import sys, os; print(sys.flags.optimize, os.getpid())"
    server = reuse(perl=perl, shell="#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n%s\\n' $$\n", fast=optimised, pid=PID)
    assert get(server, "perl") != get(server, "perl")
    assert get(server, "shell") != get(server, "shell")
    # Their own flags, and a process of their own.
    fast = get(server, "fast")
    assert fast == get(server, "fast")
    assert fast == f"1 {fast.split()[1]}\n"
    assert fast.split()[1] != get(server, "pid").strip()
    raw = support.script(server.directory / "nph-raw.py", f"{PYTHON}print('HTTP/1.0 299 Mine\\r\\n\\r\\nraw')")
    assert server.exchange(f"GET /cgi-bin/{raw.name} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.0 299 Mine")


def test_a_process_serves_so_many(reuse):
    server = reuse("--pool-set", "max_requests=3", pid=PID)
    pids = [get(server, "pid") for _ in range(9)]
    assert len(set(pids)) >= 3


# What a script does to its streams and descriptors is done to the request's.

COPIES = """
import os, subprocess, sys
print("mine", flush=True)
path = os.environ["QUERY_STRING"]
if path:
    subprocess.run(["sh", "-c", f"(cat {path} >/dev/null; echo secret; echo done >{path}) &"], check=True)
"""


def test_what_is_written_after_the_end_is_nobodys(reuse, tmp_path):
    server = reuse(copies=COPIES, pid=PID)
    pid = get(server, "pid")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert get(server, "copies", f"?{fifo}") == "mine\n"
    # It now writes to what was the descriptor 1 of the first request.
    fifo.write_text("go on")
    assert fifo.read_text() == "done\n"
    assert get(server, "copies") == "mine\n"
    assert get(server, "pid") == pid


FORKS = {
    "falls off its end": "p = os.fork()\nprint('parent' if p else 'child')\np and os.waitpid(p, 0)",
    "exits": "p = os.fork()\np or print('child')\np or sys.exit(3)\nprint(os.waitpid(p, 0)[1] >> 8)",
    "raises": "p = os.fork()\np or print('child')\np or 1 / 0\nprint(os.waitpid(p, 0)[1] >> 8)",
}


@pytest.mark.parametrize("how", FORKS)
def test_a_forked_process_ends_with_the_script(reuse, how):
    begin = "import os, sys\nsys.stdout.flush()\n"
    server = reuse(forks=begin + FORKS[how], pid=PID, parent="import os; print(os.getppid())")
    pid, manager = get(server, "pid"), get(server, "parent")
    for _ in range(3):
        assert get(server, "forks").split() in (["child", "parent"], ["child", "3"], ["child", "1"])
        assert get(server, "pid") == pid
        assert get(server, "parent") == manager


STREAMS = {
    "wrapped": "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('é')",
    "detached": "sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8')\nprint('é')",
    "by number": "sys.stdout = os.fdopen(sys.stdout.fileno(), 'w', encoding='utf-8')\nprint('é')",
    "all by number": "sys.stdin, sys.stderr = os.fdopen(0), os.fdopen(sys.stderr.fileno(), 'w')\nprint('é')",
    "the first": "sys.__stdout__.write('é\\n')",
    "the first again": "sys.stdout = io.StringIO()\nsys.stdout = sys.__stdout__\nprint('é')",
    "replaced": "print('é')\nsys.stdout = io.StringIO()\nprint('unseen')",
    "none": "print('é')\nsys.stdout = sys.stderr = None",
    "closed": "print('é')\nsys.stdout.close()",
    "closed by number": "print('é', flush=True)\nos.close(1)\nos.close(0)",
    "exchanged": "print('é', flush=True)\nos.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
    "stderr": "__import__('faulthandler').enable()\nsys.stderr = io.TextIOWrapper(sys.stderr.buffer)\nprint('é')",
    "at its end": "class C:\n    def __del__(self): print('é')\nc = C()",
}


@pytest.mark.parametrize("how", STREAMS)
def test_streams_may_be_replaced(reuse, how):
    server = reuse(streams=f"import io, os, sys\nsys.stdout.flush()\n{STREAMS[how]}", sum=BODY, pid=PID)
    pid = get(server, "pid")
    for _ in range(2):
        assert get(server, "streams") == "é\n"
        assert get(server, "sum", "?sub", method="POST", body=b"x") == f"{hashlib.sha256(b'x').hexdigest()}  -\n"
    assert get(server, "pid") == pid


def test_words_of_threads_and_of_loggers_that_a_module_keeps(reuse):
    text = """
import logging, os, sys, threading
logging.basicConfig()
thread = threading.Thread(target=lambda: sys.stderr.write("from a thread\\n"))
thread.start()
thread.join()
logging.warning("of %s", os.environ["QUERY_STRING"])
"""
    server = reuse(words=text)
    for number in range(2):
        get(server, "words", f"?{number}")
        server.wait_for_log(rf"script \[.*\] words\.py\[-\]: WARNING:root:of {number}$")
        server.wait_for_log(r"script \[.*\] words\.py\[-\]: from a thread$")


# What a script leaves is not what the next one meets.

MEETS = "import os, sys\nprint(sys.argv[0][-8:], os.environ['QUERY_STRING'], sys.path[0] == os.getcwd())"


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.argv = None",
        "import sys; sys.path = tuple(sys.path)",
        "import os; os.environ = {}",
        "import sys; sys.excepthook = None",
        "import sys\nclass C:\n    def __str__(self): return 1 / 0\nsys.exit(C())",
        "import signal; signal.setitimer(signal.ITIMER_REAL, 0.02)",
        "x = " + "-" * 200_000 + "1",
        "x = 1" + " + 1" * 100_000,
    ],
)
def test_what_is_left_is_not_met(reuse, text):
    server = reuse(leaves=text, meets=MEETS, pid=PID)
    pid = get(server, "pid")
    for _ in range(2):
        server.get("/cgi-bin/leaves.py")
        assert get(server, "meets", "?q") == "meets.py q True\n"
    assert get(server, "pid") == pid


def test_modules_are_found_beside_the_file_of_a_link(reuse, tmp_path):
    server = reuse(pid=PID)
    away = tmp_path / "away"
    away.mkdir()
    (away / "beside_it.py").write_text("VALUE = 'found'\n")
    support.script(away / "real.py", f"{PYTHON}{HEADER}import beside_it, os; print(beside_it.VALUE, os.getcwd())")
    (server.directory / "link.py").symlink_to(away / "real.py")
    assert get(server, "link") == f"found {server.directory}\n"


def test_a_directory_that_another_has_taken_the_place_of(reuse, tmp_path):
    where = "import os; print(open('which').read())"
    server = reuse(pid=PID)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
        support.script(tmp_path / name / "where.py", f"{PYTHON}{HEADER}{where}")
    current = server.directory / "current"
    pid = get(server, "pid")
    for name in ("old", "new"):
        current.unlink(missing_ok=True)
        current.symlink_to(tmp_path / name)
        assert get(server, "current/where") == f"{name}\n"
    assert get(server, "pid") == pid


def test_a_body_for_which_there_is_no_room(reuse):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))"
    server = reuse(limits=limit, sum=BODY, pid=PID)
    pid = get(server, "pid")
    get(server, "limits")
    assert server.get("/cgi-bin/sum.py", method="POST", body=bytes(100_000)).status == 502
    server.wait_for_log(r"script \[.*\] sum\.py\[-\]: there is no room for the request's body: File too large$")
    assert get(server, "sum", method="POST", body=b"x") == f"{hashlib.sha256(b'x').hexdigest()}  -\n"
    assert get(server, "pid") == pid


def test_what_programs_of_a_script_say_is_logged(reuse):
    server = reuse(tells="import os; os.system('echo from a program >&2'); print('done')")
    assert get(server, "tells") == "done\n"
    server.wait_for_log(r"worker \d+ says: from a program$")
