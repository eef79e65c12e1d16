"""What is decided without I/O: the judge of output, paths, variables, restarts, addresses, words."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_pool.listener import Address, AddressError
from gateway import diagnosis
from gateway.cgi.output import HEADER_LIMIT, BadOutput, Header, HeaderReader
from gateway.cgi.variables import Script, connection_variables, http_variable, mount_variables, request_variables
from gateway.confinement.model import Confinement
from gateway.http.message import Request
from gateway.log_file import escape
from gateway.routing import BadPath, Router, normalise
from gateway.supervision import LONGEST, Restarts

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_!", min_size=1, max_size=12)
VALUE = st.binary(max_size=40).map(
    lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip(b" \t")
)
SEGMENT = st.binary(min_size=1, max_size=6).map(lambda raw: raw.replace(b"/", b"x").replace(b"\0", b"y"))


def judge(pieces: list[bytes]) -> tuple[Header, bytes] | str | None:
    """Feed output in pieces; return the header and the rest, what is wrong, or None while incomplete."""
    reader = HeaderReader()
    found: tuple[Header, bytes] | None = None
    rest = b""
    for piece in pieces:
        if found:
            rest += piece
            continue
        try:
            found = reader.feed(piece)
        except BadOutput as bad:
            return str(bad)
        if found:
            rest = found[1]
    return (found[0], rest) if found else None


def cuts(data: bytes, where: list[int]) -> list[bytes]:
    """Return `data` cut at the places `where`."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in where)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@given(st.lists(st.tuples(TOKEN, VALUE), min_size=1, max_size=6), st.binary(max_size=50), st.lists(st.integers(0, 999)))
def test_a_header_is_the_same_however_it_is_cut(
    fields: list[tuple[str, bytes]], body: bytes, where: list[int]
) -> None:
    """Any well-formed header, LF or CRLF, cut anywhere, gives its fields and its body."""
    special = {"status", "content-length", "location", "connection", "te", "trailer", "upgrade", "keep-alive"}
    plain = [(name.encode(), value) for name, value in fields if name.lower() not in special]
    for end in (b"\n", b"\r\n"):
        data = b"X-First: 1" + end + b"".join(name + b": " + value + end for name, value in plain) + end + body
        found = judge(cuts(data, where))
        assert isinstance(found, tuple)
        assert found == judge([data])
        assert found[0].fields == [(b"X-First", b"1"), *plain]
        assert found[1] == body


@given(st.binary(max_size=300), st.lists(st.integers(0, 999)))
def test_garbage_is_judged_the_same_however_it_is_cut(data: bytes, where: list[int]) -> None:
    """A verdict on arbitrary bytes does not depend on the cuts, and is a header, a refusal or patience."""
    whole, cut = judge([data]), judge(cuts(data, where))
    if isinstance(whole, str):
        assert isinstance(cut, str)
    else:
        assert whole == cut


def test_a_header_without_end_is_refused() -> None:
    """Neither one endless line nor endless lines are collected."""
    for piece in (b"a" * 1000, b"Name: value\n" * 80):
        reader = HeaderReader()
        with pytest.raises(BadOutput, match="longer than"):
            for _ in range(HEADER_LIMIT // len(piece) + 2):
                reader.feed(piece)


@given(st.lists(SEGMENT, max_size=6))
def test_a_path_is_decoded_once(segments: list[bytes]) -> None:
    """Whatever the segments hold, encoding and reading gives them back, but for dots, which collapse."""
    encoded = b"".join(b"/" + b"".join(b"%%%02X" % byte for byte in segment) for segment in segments) or b"/"
    expected: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if not expected:
                with pytest.raises(BadPath):
                    normalise(encoded)
                return
            expected.pop()
        elif segment != b".":
            expected.append(segment)
    assert normalise(encoded).segments == tuple(expected)


@given(st.binary(max_size=40))
def test_no_path_leaves_the_root(raw: bytes) -> None:
    """Arbitrary bytes are refused, or give segments that cannot climb."""
    try:
        path = normalise(b"/" + raw)
    except BadPath:
        return
    for segment in path.segments:
        assert segment not in (b"", b".", b"..")
        assert b"\0" not in segment
        assert b".." not in segment.split(b"/")


def test_the_longest_prefix_of_whole_segments_wins() -> None:
    """/cgi-bin/ does not serve /cgi-binary, and /a/b/ wins over /a/."""
    router = Router([("/a/", "a"), ("/a/b/", "b")])
    found = router.match(b"/a/b/c")
    assert found
    assert (found.target, found.rest) == ("b", (b"c",))
    assert router.match(b"/ab") is None
    longer = router.match(b"/a/bc/d")
    assert longer
    assert longer.target == "a"


@given(st.dictionaries(TOKEN, VALUE, max_size=8))
def test_variables_hold_only_plain_names(fields: dict[str, bytes]) -> None:
    """A field becomes HTTP_NAME only if its name is letters, digits and hyphens; Proxy never does."""
    request = Request(
        b"GET", b"/p?q", (1, 1), [(name.lower().encode(), value) for name, value in fields.items()], b"/p", b"q", b"h:8"
    )
    request.fields += [(b"proxy", b"evil"), (b"x_y", b"1"), (b"content-length", b"5")]
    connection = connection_variables(None, None, "http", False)
    script = Script(b"/p", b"/d/p", b"")
    variables = request_variables(request, script, mount_variables(b"/d", ()), connection, None, True)
    assert b"HTTP_PROXY" not in variables
    assert b"HTTP_X_Y" not in variables
    assert b"HTTP_CONTENT_LENGTH" not in variables
    assert b"CONTENT_LENGTH" not in variables
    assert variables[b"SERVER_NAME"] == b"h"
    assert variables[b"SERVER_PORT"] == b"8"
    for name in variables:
        assert name.replace(b"_", b"").isalnum()
    assert http_variable(b"accept-language") == b"HTTP_ACCEPT_LANGUAGE"


def test_a_process_that_keeps_dying_is_slowed_and_never_given_up() -> None:
    """The first early death costs nothing, later ones more and more, up to a bound; a long life is forgiven all."""
    restarts = Restarts()
    delays = [restarts.delay(0.1) for _ in range(12)]
    assert delays[:4] == [0.0, 0.1, 0.2, 0.4]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST
    assert restarts.delay(60) == 0.0
    assert restarts.delay(0.1) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("[::1]:8000", Address(host="::1", port=8000)),
        (":8000", Address(host="0.0.0.0", port=8000)),
        ("localhost:0", Address(host="localhost", port=0)),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
    ],
)
def test_addresses_are_read(text: str, expected: Address) -> None:
    """The three forms of an address, and back."""
    assert Address.parse(text) == expected
    assert Address.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "80", "::1:80", "host", "host:", "host:99999", "unix:", "unix:" + "x" * 108, "[x]:1"]
)
def test_wrong_addresses_are_refused(text: str) -> None:
    """Anything else is refused with words."""
    with pytest.raises(AddressError):
        Address.parse(text)


def test_a_live_socket_is_not_stolen_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    """Whether somebody accepts there decides; a file that is no socket is never removed."""
    path = tmp_path / "s"
    first = Address(path=str(path)).listen()
    with pytest.raises(AddressError, match="in use"):
        Address(path=str(path)).listen()
    assert path.exists()
    first.close()
    second = Address(path=str(path)).listen()
    assert path.stat().st_mode & 0o777 == 0o660
    second.close()
    other = tmp_path / "f"
    other.write_text("mine")
    with pytest.raises(AddressError, match="no socket"):
        Address(path=str(other)).listen()
    assert other.read_text() == "mine"


@given(st.text(max_size=60))
def test_a_logged_text_stays_in_its_line(text: str) -> None:
    """No control character, quote or lone surrogate is left bare."""
    escaped = escape(text)
    assert escaped.isprintable() or all(not 0 <= ord(character) < 32 for character in escaped)
    assert "\n" not in escaped
    assert '"' not in escaped.replace('\\"', "")


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("ModuleNotFoundError: No module named 'cgi'", "pip install legacy-cgi"),
        ("ModuleNotFoundError: No module named 'yaml'", "install it for the interpreter"),
        ("SyntaxError: Missing parentheses in call to 'print'. Did", "Python 2"),
        ("Can't locate CGI.pm in @INC (you may", "libcgi-pm-perl"),
        ("Can't locate DBI.pm in @INC (you may", "PERL5LIB"),
        ("all is well", ""),
    ],
)
def test_complaints_have_cures(stderr: str, words: str) -> None:
    """What interpreters complain of is answered by what helps."""
    assert words in diagnosis.hint_from(stderr)
    assert bool(words) == bool(diagnosis.hint_from(stderr))


def test_scarcity_is_503_and_the_rest_is_explained(tmp_path: Path) -> None:
    """errno decides about the status; the file about the words."""
    program = tmp_path / "p"
    program.write_text("#!/nowhere/python2\n")
    program.chmod(0o755)
    path = os.fsencode(program)
    assert diagnosis.start_failed(path, "exec", errno.EAGAIN, Confinement()).status == 503
    assert diagnosis.start_failed(path, "exec", errno.EAGAIN, Confinement()).retry_after > 0
    missing = diagnosis.start_failed(path, "exec", errno.ENOENT, Confinement())
    assert missing.status == 500
    assert "the interpreter /nowhere/python2 named in line 1 does not exist" in missing.words
    assert diagnosis.start_failed(path + b"x", "exec", errno.ENOENT, Confinement()).status == 404
