"""A script in Python finds the same warm as cold: everything that it can ask for is compared."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from tests import support
from tests.warm_support import PYTHON, TIMES, Pair, pair_of, pythons, see, settle

PROBE = (Path(__file__).parent / "warm" / "probe.py").read_text()
BODY = "stdin é\n".encode()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    support.need_file(PYTHON)
    with pair_of(tmp_path_factory.mktemp("cgi"), tmp_path_factory.mktemp("spool"), "--env", "MINE=1") as pair:
        yield pair


def told(server, *asked, **more):
    """What the probe has told."""
    answer = server.get(*asked, **more)
    if answer.status != 200:
        settle(server)
        pytest.fail(server.errors.text, pytrace=False)
    assert answer.body.endswith(b"}\nat exit\n")
    return json.loads(answer.body.removesuffix(b"at exit\n"))


def compare(pair: Pair, path: str) -> None:
    headers = {"Host": "probe.example", "X-Odd": "a=b é".encode().decode("latin-1")}
    target = f"{path}/path%20info?q=1&=%C3%A9"
    more = {"method": "POST", "body": BODY, "headers": headers}
    cold = told(pair.cold, target, **more)
    for number in range(TIMES):
        warm = told(pair.warm, target, **more)
        wrong = [name for name in cold.keys() | warm if cold.get(name) != warm.get(name)]
        if wrong:
            lines = [f"{name}\n  cold {cold.get(name)}\n  warm {warm.get(name)}" for name in wrong]
            pytest.fail(f"request {number}\n" + "\n".join(lines), pytrace=False)


FLAGS = ["-u", "-I", "-Es", "-S", "-s", "-B", "-OO", "-X utf8", "-Xdev", "-Werror"]


@pytest.mark.parametrize("shebang", [PYTHON, "/usr/bin/env python3", *(f"{PYTHON} {flags}" for flags in FLAGS)])
def test_a_script_finds_the_same(pair, shebang):
    compare(pair, pair.write(f"#!{shebang}\n{PROBE}", "probe.py"))


@pytest.mark.parametrize("python", pythons())
def test_with_every_python_that_is_here(pair, python):
    compare(pair, pair.write(f"#!{python}\n{PROBE}", "probe.py"))


def test_in_a_virtual_environment(pair, tmp_path):
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    compare(pair, pair.write(f"#!{tmp_path}/venv/bin/python\n{PROBE}", "probe.py"))


@pytest.mark.parametrize("name", ["probe", "probe with spaces.py", "é.py", "a-name-longer-than-a-process-may-have.cgi"])
def test_by_any_name(pair, name):
    path = pair.write(f"#!{PYTHON}\n{PROBE}", name)
    compare(pair, urllib.parse.quote(path))


def test_by_way_of_a_link(pair):
    """The directory of modules is that of the file, all else is the link's."""
    path = pair.write(f"#!{PYTHON}\n{PROBE}", "probe.py")
    beside = pair.file(path).parent / "elsewhere"
    beside.mkdir()
    pair.file(path).rename(beside / "real.py")
    pair.file(path).symlink_to(beside / "real.py")
    compare(pair, path)


@pytest.mark.parametrize("env", [("LANG=C.UTF-8",), ("LC_ALL=C",), ("LC_ALL=POSIX", "PYTHONCOERCECLOCALE=0"),
    ("PYTHONUNBUFFERED=1",), ("PYTHONWARNINGS=error::UserWarning",), ("PYTHONHASHSEED=0",), ("PYTHONUTF8=1",),
    ("PYTHONIOENCODING=latin-1:replace",), ("PYTHONDONTWRITEBYTECODE=1", "PYTHONOPTIMIZE=2"), ("TZ=Asia/Tokyo",),
    ("PYTHONPATH=/nowhere:/tmp",), ("HOME=/root", "PYTHONNOUSERSITE=1"), ("PYTHONSAFEPATH=1",)])  # fmt: skip
def test_with_an_environment_of_the_mounts(tmp_path_factory, env):
    options = [word for each in env for word in ("--env", each)]
    with pair_of(tmp_path_factory.mktemp("cgi"), tmp_path_factory.mktemp("spool"), *options) as pair:
        compare(pair, pair.write(f"#!{PYTHON}\n{PROBE}", "probe.py"))


# What a script can see of whether its code was kept and a module imported ahead: for the tests' own sake.
TELLS = f"""#!{PYTHON}
import sys
ahead = "fractions" in sys.modules
import fractions
frame = sys._getframe(1) if hasattr(sys._getframe(0), "f_back") and sys._getframe(0).f_back else None
print("X: y\\n")
print(ahead, bool(frame and frame.f_locals["script"].code))
"""


def test_the_requests_that_are_compared_meet_all_that_is_made_ready(pair):
    """The first is of a script that is new, the last of one that is known."""
    path = pair.write(TELLS)
    assert see(pair.warm, path).text == "False False\n"
    support.wait_until(lambda: "" if (found := see(pair.warm, path).text) == "True True\n" else found)
