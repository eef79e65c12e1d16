"""Which first lines are run warm, and how many children wait: two decisions, without a process."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cgi.warm.interpreter import MOST, Demand
from gateway.cgi.warm.shebang import Recipe, recipe_for
from tests import support

SEARCH = b"/nowhere:/usr/bin:/bin"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory of interpreters: programs by the names of Python and Perl that tell their arguments."""
    support.need("cc")
    place = tmp_path_factory.mktemp("interpreters")
    source = place / "tells.c"
    source.write_text(
        "#include <stdio.h>\nint main(int n, char **v) { while (n--) { fputs(*v++, stdout); putchar(0); } }"
    )
    for name in ("python3", "python", "python3.12", "perl", "perl5.36.0", "ruby", "python3x"):
        subprocess.run(["cc", "-o", place / name, source], check=True)
    support.script(place / "python3.9", "#!/bin/sh\n")
    return place


def judge(line: bytes, tmp_path: Path, search: bytes = SEARCH) -> Recipe | str:
    path = tmp_path / "script"
    path.write_bytes(line)
    return recipe_for(os.fsencode(path), search)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#!{}/python3", ["python3"]),
        ("#! \t {}/python3 \t ", ["python3"]),
        ("#!{}/python", ["python"]),
        ("#!{}/python3.12 -u", ["python3.12", "-u"]),
        ("#!{}/python3 -Es", ["python3", "-Es"]),
        ("#!{}/python3 -X utf8", ["python3", "-X utf8"]),
        ("#!{}/python3 -Wignore", ["python3", "-Wignore"]),
        ("#!{}/perl -w", ["perl", "-w"]),
        ("#!{}/perl -w -T", ["perl", "-w -T"]),
        ("#!{}/perl5.36.0 -wT", ["perl5.36.0", "-wT"]),
        ("#!{}/perl -I/a", ["perl", "-I/a"]),
        ("#!/usr/bin/env {}/python3", ["python3"]),
        ("#!/usr/bin/env -S {}/python3 -u -s", ["python3", "-u", "-s"]),
    ],
)
def test_what_is_run_warm_is_given_what_the_kernel_gives(directory, tmp_path, line, words):
    recipe = judge(line.format(directory).encode() + b"\n", tmp_path)
    assert isinstance(recipe, Recipe), recipe
    (tmp_path / "script").chmod(0o755)
    told = subprocess.run([tmp_path / "script"], capture_output=True, check=True).stdout.split(b"\0")[:-2]
    assert list(recipe.arguments) == told
    assert [os.path.basename(told[0]), *told[1:]] == [word.encode() for word in words]
    assert os.path.samefile(recipe.executable, told[0])
    assert recipe.is_named_after_script == ("env" not in line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "does not begin with #!"),
        ("print()\n", "does not begin with #!"),
        (" #!{}/python3\n", "does not begin with #!"),
        ("#!{}/python3", "has no proper end"),
        ("#!{}/python3\r\n", "has no proper end"),
        ("#!{}/python3 " + " " * 300 + "\n", "has no proper end"),
        ("#!{}/ruby\n", "ruby is neither Python nor Perl"),
        ("#!{}/python3x\n", "python3x is neither Python nor Perl"),
        ("#!{}/python3.9\n", "is a script itself"),
        ("#!{}/python3.7\n", "No such file or directory"),
        ("#!\n", "names no interpreter"),
        ("#!{}/python3 -c pass\n", "the flag -c pass"),
        ("#!{}/python3 -m cgi\n", "the flag -m cgi"),
        ("#!{}/python3 -u -s\n", "the flag -u -s"),
        ("#!{}/python3 -i\n", "the flag -i"),
        ("#!{}/python3 -x\n", "the flag -x"),
        ("#!{}/python3 -\n", "the flag -"),
        ("#!{}/python3 script\n", "the flag script"),
        ("#!{}/perl -n\n", "the flag -n"),
        ("#!{}/perl -d\n", "the flag -d"),
        ("#!{}/perl -e 1\n", "the flag -e 1"),
        ("#!\0{}/python3\n", "no proper end"),
        ("#!{}/python3\0\n", "no proper end"),
        ("#!{}/perl -Mstrict\n", "the flag -Mstrict"),
        ("#!/usr/bin/env\n", "more than an interpreter"),
        ("#!/usr/bin/env python3 -u\n", "more than an interpreter"),
        ("#!/usr/bin/env A=B\n", "more than an interpreter"),
        ("#!/usr/bin/env -S\n", "more than an interpreter"),
        ("#!/usr/bin/env -S A=B python3\n", "more than an interpreter"),
        ("#!/usr/bin/env -S 'python3'\n", "more than an interpreter"),
        ("#!/usr/bin/env -S ${{X}}python3\n", "more than an interpreter"),
        ("#!/usr/bin/env -i\n", "more than an interpreter"),
        ("#!/usr/bin/env no-such-python\n", "no-such-python is not in PATH"),
    ],
)
def test_what_is_not_run_warm_and_why(directory, tmp_path, line, why):
    verdict = judge(line.format(directory).encode(), tmp_path)
    assert isinstance(verdict, str), verdict
    assert why in verdict


def test_a_file_that_cannot_be_read_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        recipe_for(os.fsencode(tmp_path / "none"), SEARCH)
    with pytest.raises(IsADirectoryError):
        recipe_for(os.fsencode(tmp_path), SEARCH)


WORDS = b"#! DIR/python3 DIR/perl DIR/python3.9 /usr/bin/env -S -u -Es -w -T -I/a -X utf8 python3 perl A=B - -- ' \\ $"
PIECES = st.sampled_from([*WORDS.split(), b" ", b"\t", b"\r", b"\n", b"\0", b"\xff"])
LINES = st.lists(PIECES, max_size=9).map(b"".join) | st.binary(max_size=300)


@given(st.booleans(), LINES)
def test_whatever_is_accepted_is_what_the_kernel_would_start(directory, is_line, rest):
    place = os.fsencode(directory)
    line = (b"#!" if is_line else b"") + rest.replace(b"DIR", place) + b"\n"
    with tempfile.TemporaryDirectory() as name:
        verdict = judge(line, Path(name), place)
        if isinstance(verdict, str):
            assert verdict
            return
        path = Path(name) / "script"
        path.chmod(0o755)
        done = subprocess.run([path], capture_output=True, env={"PATH": os.fsdecode(place)}, check=True)
        told = done.stdout.split(b"\0")[:-1]
        assert told == [*verdict.arguments, os.fsencode(path)]
        assert verdict.kind in os.path.basename(os.fsdecode(verdict.executable))


# How many children wait.


def test_as_many_wait_as_were_short():
    demand = Demand()
    wanted = []
    for _ in range(6):
        demand.short(0.0)
        wanted.append(demand.wanted)
    assert wanted == [2, 4, 8, 16, 16, 16]
    assert demand.wanted == MOST


@pytest.mark.parametrize(
    ("moments", "wanted"),
    [
        ([1.0], 8),
        ([5.0], 8),
        ([5.1], 7),
        ([5.1, 5.2, 10.0], 7),
        ([5.1, 10.2], 6),
        ([5.1 * n for n in range(1, 8)], 1),
        ([5.1 * n for n in range(1, 20)], 1),
    ],
)
def test_one_less_after_each_calm(moments, wanted):
    demand = Demand()
    for _ in range(3):
        demand.short(0.0)
    for moment in moments:
        demand.calm(moment)
    assert demand.wanted == wanted


def test_a_shortage_ends_the_calm():
    demand = Demand()
    demand.short(0.0)
    demand.short(5.0)
    demand.calm(6.0)
    assert demand.wanted == 4
    demand.calm(10.1)
    assert demand.wanted == 3


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100))))
def test_never_none_and_never_too_many(events):
    demand = Demand()
    for is_short, moment in sorted(events, key=lambda event: event[1]):
        (demand.short if is_short else demand.calm)(moment)
        assert 1 <= demand.wanted <= MOST
