"""What is on the disk counts: whatever changes between two requests, the next one runs what is there then."""

from __future__ import annotations

import contextlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import misbehaviour, support
from tests.warm_support import PERL, PYTHON, TIMES, pair_of, see

SAYS = '#!{}\nprint("X: y\\n\\n{}");\n'
IMPORTS = f"#!{PYTHON}\nimport helper\nprint('X: y\\n')\nprint(helper.WORD)\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    support.need_file(PYTHON)
    with pair_of(tmp_path_factory.mktemp("cgi"), tmp_path_factory.mktemp("spool")) as pair:
        yield pair


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "cgi").mkdir()
    (tmp_path / "cgi" / "settle").touch(0o644)
    return tmp_path / "cgi"


def said(server, path):
    seen = see(server, path)
    assert seen.status == 200, (seen, server.errors.text)
    return seen.text.strip()


def known(server, path, word):
    """Ask until whatever is made ready for the script is."""
    for _ in range(TIMES):
        assert said(server, path) == word


def rewrite(path, text):
    """Write it anew, with the same size and the same time, to the second."""
    found = path.stat()
    assert len(text) == found.st_size
    second = found.st_mtime_ns // 10**9 * 10**9
    path.write_text(text)
    os.utime(path, ns=(second, second + (found.st_mtime_ns + 1) % 10**9))


@pytest.mark.parametrize("interpreter", [PYTHON, PERL])
def test_a_script_that_changes(pair, interpreter):
    path = pair.write(SAYS.format(interpreter, "0"))
    known(pair.warm, path, "0")
    for n in range(1, 9):
        rewrite(pair.file(path), SAYS.format(interpreter, n))
        assert said(pair.warm, path) == str(n)
    known(pair.warm, path, "8")


@pytest.mark.parametrize("interpreter", [PYTHON, PERL])
def test_a_script_that_is_replaced(pair, interpreter):
    """By another file of the same name, by a link, by a program of another kind, and back."""
    path = pair.write(SAYS.format(interpreter, "0"))
    file = pair.file(path)
    known(pair.warm, path, "0")
    support.script(file.with_name("new"), SAYS.format(interpreter, "1")).rename(file)
    known(pair.warm, path, "1")
    file.unlink()
    assert see(pair.warm, path).status == 404
    file.symlink_to(support.script(file.parent / "aside", SAYS.format(interpreter, "2")))
    known(pair.warm, path, "2")
    support.script(file.parent / "aside", SAYS.format(interpreter, "3"))
    assert said(pair.warm, path) == "3"
    file.unlink()
    other = {PYTHON: PERL, PERL: PYTHON}[interpreter]
    support.script(file, SAYS.format(other, "4"))
    known(pair.warm, path, "4")
    file.chmod(0o644)
    assert see(pair.warm, path).status == 403
    file.chmod(0o755)
    assert said(pair.warm, path) == "4"
    support.script(file, "#!/bin/sh\nprintf 'X: y\\n\\n5\\n'\n")
    assert see(pair.warm, path).status == 500
    support.script(file, SAYS.format(interpreter, "6"))
    known(pair.warm, path, "6")


def test_a_module_beside_the_script(pair):
    """The interpreter has none of it: it is imported by each process anew."""
    path = pair.write(IMPORTS)
    helper = pair.file(path).with_name("helper.py")
    helper.write_text("WORD = 10")
    known(pair.warm, path, "10")
    for n in range(11, 16):
        # The compiled module beside it is taken for current by time and size; so the size is another each time.
        helper.write_text(f"WORD = {n}" + " " * (n - 10))
        assert said(pair.warm, path) == str(n)
    helper.unlink()
    assert see(pair.warm, path).status == 502
    helper.write_text("WORD = 20\n\n")
    known(pair.warm, path, "20")


def test_a_module_beside_the_script_that_has_a_standard_name(serve, directory):
    """Before the script is known, and after the standard one was imported ahead."""
    script = f"#!{PYTHON}\nimport fractions\nprint('X: y\\n')\nprint(getattr(fractions, 'WORD', 'standard'))\n"
    support.script(directory / "first", script)
    server = serve("--warm", cgi_dir=directory)
    known(server, "/cgi-bin/first", "standard")
    (directory / "fractions.py").write_text("WORD = 'ours'")
    known(server, "/cgi-bin/first", "ours")
    support.script(directory / "second", script)
    known(server, "/cgi-bin/second", "ours")
    server.wait_for_log(r"first is started cold: a file beside it has the name of a module that was imported ahead")
    (directory / "fractions.py").unlink()
    with contextlib.suppress(FileNotFoundError):
        [(cache := directory / "__pycache__"), *[file.unlink() for file in cache.iterdir()], cache.rmdir()]
    known(server, "/cgi-bin/first", "standard")


def test_a_standard_module_that_a_path_of_the_script_hides(pair):
    """A directory that the script itself puts first."""
    path = pair.write(
        f"#!{PYTHON}\nimport sys\nsys.path.insert(0, 'lib')\nimport colorsys\nprint('X: y\\n')\n"
        "print(getattr(colorsys, 'WORD', 'standard'))\n"
    )
    misbehaviour.program(pair.file(path).parent / "lib" / "colorsys.py", "WORD = 'ours'")
    assert said(pair.cold, path) == "ours"
    known(pair.warm, path, "ours")


OWN = f"#!{PYTHON}\nimport sys\nahead = 'own' in sys.modules\nimport own\nprint('X: y\\n')\nprint(ahead, own.WORD)\n"


def ask_until(server, path, word):
    support.wait_until(lambda: "" if (found := said(server, path)) == word else found)


@pytest.mark.parametrize("warm", [["--warm"], ["--warm", "require"]])
def test_a_module_of_ones_own_is_imported_ahead(serve, directory, tmp_path, warm):
    (tmp_path / "lib").mkdir()
    own = tmp_path / "lib" / "own.py"
    own.write_text("WORD = 1")
    support.script(directory / "asks", OWN)
    server = serve(*warm, "--preload", "own", "--env", f"PYTHONPATH={own.parent}", cgi_dir=directory)
    known(server, "/cgi-bin/asks", "True 1")
    own.write_text("WORD = 'two'")
    # The next request already; and soon it is ahead again.
    assert said(server, "/cgi-bin/asks") in ("False two", "True two")
    ask_until(server, "/cgi-bin/asks", "True two")
    assert "Traceback" not in server.errors.text


def test_none_of_many_at_once_is_lost_when_a_module_changes(serve, directory, tmp_path):
    """Neither those whose child finds it changed, nor those that wait for a child of the interpreter that is replaced;
    and what is not run at all is told of each, however many children tell at once."""
    (tmp_path / "lib").mkdir()
    own = tmp_path / "lib" / "own.py"
    own.write_text("WORD = 0")
    support.script(directory / "asks", OWN)
    support.script(directory / "unfit", f"#!{PYTHON}\n# \0\n")
    options = ("--warm", "require", "--preload", "own", "--env", f"PYTHONPATH={own.parent}")
    server = serve(*options, cgi_dir=directory)
    known(server, "/cgi-bin/asks", "True 0")
    with ThreadPoolExecutor(16) as clients:
        for number in range(1, 5):
            (tmp_path / "new").write_text(f"WORD = {number}")
            os.replace(tmp_path / "new", own)
            assert {answer.status for answer in clients.map(server.get, ["/cgi-bin/asks"] * 64)} == {200}
        assert {answer.status for answer in clients.map(server.get, ["/cgi-bin/unfit"] * 64)} == {500}
    assert "Traceback" not in server.errors.text


REPORTS = f"""#!{PYTHON}
import os, socket
print('X: y\\n', flush=True)
(address,) = [word for word in open('/proc/self/cmdline', 'rb').read().split(b'\\0') if word.startswith(b'gateway-')]
reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for message in (b'm \\xff', b'm ' + b'x' * 60000, b's /\\xff', b's ' + b'/' * 60000, b'm \\nm .\\nm nosuch', b'e', b''):
    reports.sendto(message, b'\\0' + address)
print('told')
"""


def test_what_a_script_tells_the_spawner_does_no_harm(serve, directory):
    """It could be told anything: the address is no secret."""
    support.script(directory / "asks", SAYS.format(PYTHON, "runs"))
    support.script(directory / "tells", REPORTS)
    server = serve("--warm", "require", cgi_dir=directory)
    for _ in range(3):
        known(server, "/cgi-bin/tells", "told")
        known(server, "/cgi-bin/asks", "runs")


def test_what_cannot_be_imported_ahead_is_imported_later(serve, directory, tmp_path):
    """A name that nothing has: scripts are run as ever."""
    support.script(directory / "asks", SAYS.format(PYTHON, "runs"))
    support.script(directory / "perl", SAYS.format(PERL, "runs"))
    server = serve("--warm", "require", "--preload", "no_such_module", cgi_dir=directory)
    known(server, "/cgi-bin/asks", "runs")
    known(server, "/cgi-bin/perl", "runs")


HARM = {
    "starts a thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    "opens a descriptor": "import os\nkept = os.open('/dev/null', os.O_RDONLY)",
    "changes the environment": "import os\nos.environ['OF_OWN'] = '1'",
    "sets a signal handler": "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)",
    "warns": "import warnings\nwarnings.warn('odd')",
    "changes the directory": "import os\nos.chdir('/')",
    "changes the path": "import sys\nsys.path.append('/own')",
    "sets a hook": "import sys\nsys.excepthook = lambda *_: None",
    "adds to builtins": "import builtins\nbuiltins.own = 1",
    "adds an importer": "import sys\nsys.meta_path.append(type('F', (), {'find_spec': lambda *_: None})())",
    "changes a stream": "import sys\nsys.stdout = sys.stderr",
    "changes the recursion limit": "import sys\nsys.setrecursionlimit(5000)",
    "raises": "raise RuntimeError",
    "exits": "import sys\nsys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "kills itself": "import os\nos.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("harm", HARM)
def test_a_module_that_does_more_than_be_imported_is_not_imported_ahead(serve, directory, tmp_path, harm):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "own.py").write_text(f"WORD = 1\n{HARM[harm]}\n")
    text = f"#!{PYTHON}\nimport sys\nprint('X: y\\n')\nprint('own' in sys.modules)\n"
    support.script(directory / "asks", text)
    options = ("--warm", "require", "--preload", "own", "--env", f"PYTHONPATH={tmp_path}/lib")
    known(serve(*options, cgi_dir=directory), "/cgi-bin/asks", "False")


HANGS = {
    "own.py": "import os, signal\nopen(f'{__file__}.pid', 'w').write(f'{os.getpid()}\\n')\nwhile 1: signal.pause()\n",
    "own.pm": "open my $f, '>', __FILE__ . '.pid'; print $f qq{$$\\n}; close $f; sleep 9 while 1; 1;\n",
}


@pytest.mark.parametrize("name", HANGS)
def test_a_module_that_hangs_is_ended_with_the_server(serve, directory, tmp_path, name):
    """In the child that tries it out, which nobody but the interpreter knows of."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / name).write_text(HANGS[name])
    support.script(directory / "asks", SAYS.format(PYTHON if name == "own.py" else PERL, "runs"))
    variables = [option for each in ("PYTHONPATH", "PERL5LIB") for option in ("--env", f"{each}={tmp_path}/lib")]
    server = serve("--warm", "--preload", "own", *variables, cgi_dir=directory)
    known(server, "/cgi-bin/asks", "runs")
    told = tmp_path / "lib" / f"{name}.pid"
    support.wait_until(lambda: "" if told.exists() and told.read_text() else "it is not imported yet")
    server.stop()
    misbehaviour.wait_until_gone(int(told.read_text()))


def test_a_module_of_a_virtual_environment(serve, directory, tmp_path):
    """Installed there, it is not the interpreter's own, and found anew by each process."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python3.*/site-packages")
    (packages / "own.py").write_text("WORD = 1")
    support.script(directory / "asks", OWN.replace(PYTHON, f"{tmp_path}/venv/bin/python3"))
    server = serve("--warm", "require", cgi_dir=directory)
    known(server, "/cgi-bin/asks", "False 1")
    (packages / "own.py").write_text("WORD = 22")
    assert said(server, "/cgi-bin/asks") == "False 22"


PERL_OWN = f"""#!{PERL}
my $ahead = 0; BEGIN {{ $ahead = $INC{{'Own.pm'}} ? 1 : 0 }}
use Own; print "X: y\\n\\n$ahead $Own::WORD\\n";
"""


@pytest.mark.parametrize("warm", [["--warm"], ["--warm", "require"]])
def test_a_module_of_ones_own_in_perl(serve, directory, tmp_path, warm):
    (tmp_path / "lib").mkdir()
    own = tmp_path / "lib" / "Own.pm"
    own.write_text("package Own; our $WORD = 1; 1;")
    support.script(directory / "asks", PERL_OWN.replace("my $ahead = 0;", "our $ahead;"))
    server = serve(*warm, "--preload", "Own", "--env", f"PERL5LIB={own.parent}", cgi_dir=directory)
    known(server, "/cgi-bin/asks", "1 1")
    own.write_text("package Own; our $WORD = 'two'; 1;")
    assert said(server, "/cgi-bin/asks") in ("0 two", "1 two")
    ask_until(server, "/cgi-bin/asks", "1 two")


PERL_HARM = {
    "opens a descriptor": "open our $kept, '<', '/dev/null';",
    "changes the environment": "$ENV{OF_OWN} = 1;",
    "sets a handler": "$SIG{USR1} = sub {};",
    "handles warnings": "$SIG{__WARN__} = sub {};",
    "warns": "warn 'odd';",
    "changes the directory": "chdir '/';",
    "changes the path": "push @INC, '/own';",
    "knows its $0": "our $where = $0;",
    "is false": "0;",
    "dies": "die;",
    "exits": "exit 0;",
    "sets the umask": "umask 0;",
    "changes $/": "$/ = undef;",
}


@pytest.mark.parametrize("harm", PERL_HARM)
def test_a_module_in_perl_that_does_more_is_not_imported_ahead(serve, directory, tmp_path, harm):
    (tmp_path / "lib").mkdir()
    tail = "" if harm == "is false" else " 1;"
    (tmp_path / "lib" / "Own.pm").write_text(f"package Own; our $WORD = 1; {PERL_HARM[harm]}{tail}")
    support.script(directory / "asks", f"#!{PERL}\nprint qq{{X: y\\n\\n}}, $INC{{'Own.pm'}} ? 1 : 0;\n")
    options = ("--warm", "require", "--preload", "Own", "--env", f"PERL5LIB={tmp_path}/lib")
    known(serve(*options, cgi_dir=directory), "/cgi-bin/asks", "0")


def test_a_module_in_perl_that_a_lib_of_the_script_hides(serve, directory):
    script = "use lib 'lib';\nuse Time::Local;\nprint qq{X: y\\n\\n}, $Time::Local::WORD // 'standard';\n"
    support.script(directory / "asks", f"#!{PERL}\n{script}")
    server = serve("--warm", cgi_dir=directory)
    known(server, "/cgi-bin/asks", "standard")
    misbehaviour.program(directory / "lib" / "Time" / "Local.pm", "package Time::Local; our $WORD = 'ours'; 1;")
    known(server, "/cgi-bin/asks", "ours")
