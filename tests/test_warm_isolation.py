"""Nothing of one request is found by another: what it changed, what it was given, what it drew at random."""

from __future__ import annotations

import secrets

import pytest

from tests import misbehaviour, support, warm_isolation
from tests.warm_support import PERL, PYTHON


@pytest.fixture
def server(serve, tmp_path):
    support.need_file(PYTHON)
    for name in ("mutate.py", "memory.py"):
        misbehaviour.program(tmp_path / "cgi" / name, (warm_isolation.SCRIPTS / name).read_text())
    misbehaviour.program(
        tmp_path / "cgi" / "perl",
        f"#!{PERL}\nprint qq{{X: y\\n\\n}};\nprint join ',', $main::MARK // '', $ENV{{MARK}} // '',\n"
        "$SIG{USR1} // '', umask;\n"
        "our $MARK = 1; $ENV{MARK} = 1; $SIG{USR1} = sub {}; umask 0; *CORE::GLOBAL::time = sub { 1 };\n"
        "print qq{\\n}, rand, qq{\\n};",
    )
    return serve("--warm", "require", cgi_dir=tmp_path / "cgi")


def test_what_a_request_changes_no_other_finds(server):
    warm_isolation.run(server, 300, 6)


def test_the_same_in_perl(server):
    answers = [server.get("/cgi-bin/perl").text.splitlines() for _ in range(50)]
    assert {first for first, _ in answers} == {",,,18"}
    assert len({second for _, second in answers}) == 50


def test_a_secret_is_in_no_other_request(server):
    """In the query, a field and the body of one; then the next ones look for it in all that they can read."""
    secret = secrets.token_hex(16)
    asked = "/cgi-bin/memory.py?" + "".join(chr(ord(letter) + 1) for letter in secret)
    own = server.get(asked, headers={"X-Secret": secret}, method="POST", body=secret.encode())
    assert own.text == "found\n"
    for _ in range(5):
        assert server.get(asked).text == "clean\n"
