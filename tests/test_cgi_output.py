"""What a client gets for what a program writes (RFC 3875, 6): headers, redirects, lengths, framing, nph-."""

from __future__ import annotations

import hashlib
import os
import re
import socket

import pytest

from tests import misbehaviour, support

# Writes what it is sent: so each test has its program's output at hand.
SAY = "#!/bin/sh\nexec cat\n"

# The same, one byte a write.
SAY_SLOWLY = """#!/usr/bin/perl
$/ = undef;
my $all = <STDIN>;
syswrite STDOUT, $_ for split //, $all;
"""

# Says what it was asked, and how: the target of redirects.
ASKED = """#!/bin/sh
body=$(cat)
printf 'Content-Type: text/plain\\n\\n'
echo "$REQUEST_METHOD $SCRIPT_NAME|$PATH_INFO|$QUERY_STRING|${CONTENT_LENGTH-none}|${CONTENT_TYPE-none}|$body"
"""

# As many local redirects as the query says, then a page.
HOP = """#!/bin/sh
echo $$ >>hops
if [ "$QUERY_STRING" = 0 ]; then
    printf 'Content-Type: text/plain\\n\\narrived\\n'
else
    printf 'Location: /cgi-bin/hop?%d\\n\\n' $((QUERY_STRING - 1))
fi
"""


class Said:
    """One raw response, taken apart strictly."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.rest = raw.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) ([^\r\n]*)", line)
        assert match, line
        self.status, self.reason = int(match[1]), match[2]
        self.fields = []
        for field in fields:
            name, colon, value = field.partition(":")
            assert colon and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name), field
            assert "\n" not in value and "\r" not in value and "\0" not in value, field
            self.fields.append((name.lower(), value.strip()))

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name]

    def one(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None

    @property
    def chunked(self) -> bool:
        return self.one("transfer-encoding") == "chunked"

    @property
    def complete(self) -> bool:
        if self.chunked:
            return self.rest.endswith(b"0\r\n\r\n")
        length = self.one("content-length")
        return length is None or len(self.rest) == int(length)

    @property
    def body(self) -> bytes:
        assert self.complete, self.raw[-200:]
        if not self.chunked:
            return self.rest
        body, rest = b"", self.rest
        while True:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size, 16)
            body, rest = body + rest[:n], rest[n:]
            assert rest[:2] == b"\r\n"
            rest = rest[2:]
            if n == 0:
                assert rest == b""
                return body


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cgi")
    for name, text in [("say", SAY), ("nph-say", SAY), ("asked", ASKED), ("hop", HOP)]:
        misbehaviour.program(directory / name, text)
    return directory


@pytest.fixture(scope="module")
def shared(directory, tmp_path_factory):
    with misbehaviour.shared_server(directory, tmp_path_factory.mktemp("spool")) as server:
        yield server


@pytest.fixture
def server(shared):
    yield from misbehaviour.lent(shared)


@pytest.fixture
def gate(tmp_path):
    gate = misbehaviour.Gate(tmp_path / "gate")
    yield gate
    gate.wait_until_passed()
    gate.close()


@pytest.fixture
def say(server):
    """Have the program write exactly `output`; the answer to it, on a connection of its own."""

    def once(output, method="POST", program="say", version="1.1"):
        output = output if isinstance(output, bytes) else output.encode("latin-1")
        head = f"{method} /cgi-bin/{program} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
        return Said(server.exchange(f"{head}Content-Length: {len(output)}\r\n\r\n".encode() + output))

    return once


# The header block.


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_end_with_lf_or_cr_lf(say, newline):
    said = say(newline.join(["Content-Type: text/plain", "X-One:1", "x-two:   2  ", "", "body\r\n\n"]))
    assert (said.status, said.reason) == (200, "OK")
    assert said.all("content-type") == ["text/plain"]
    assert said.all("x-one") == ["1"]
    assert said.all("x-two") == ["2"]
    assert said.body == b"body\r\n\n"


@pytest.mark.parametrize("output", ["A: 1\r\nB: 2\n\r\nbody", "A: 1\nB: 2\r\n\nbody"])
def test_lines_may_end_this_way_and_that(say, output):
    said = say(output)
    assert (said.all("a"), said.all("b"), said.body) == (["1"], ["2"], b"body")


def test_a_header_split_anywhere(say, directory):
    support.need("perl")
    misbehaviour.program(directory / "slowly", SAY_SLOWLY)
    said = say("Status: 201 Made\r\nContent-Type: text/x\r\nX-A: b\r\n\r\nthe body", program="slowly")
    assert (said.status, said.reason) == (201, "Made")
    assert said.all("x-a") == ["b"]
    assert said.body == b"the body"


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("Status: 404 Not Found", 404, "Not Found"),
        ("Status: 299 Very Odd Indeed", 299, "Very Odd Indeed"),
        ("status:418 I'm a teapot", 418, "I'm a teapot"),
        ("STATUS: 403", 403, "Forbidden"),
        ("Status: 500 Script Says So", 500, "Script Says So"),
    ],
)
def test_status_is_kept_with_its_reason(say, line, status, reason):
    said = say(f"Content-Type: text/plain\n{line}\n\nbody")
    assert (said.status, said.reason, said.body) == (status, reason, b"body")
    assert said.all("status") == []


@pytest.mark.parametrize("value", ["", "abc", "20", "2000", "099", "-200", "+200", "2_0", "20x OK", "²00"])
def test_a_status_that_is_none_is_502(say, value):
    assert say(f"Content-Type: text/plain\nStatus: {value}\n\nbody").status == 502


def test_no_content_type_is_passed_on_without_one(say):
    said = say("X-A: b\n\n<html><title>page</title>")
    assert said.status == 200
    assert said.all("content-type") == []
    assert said.body == b"<html><title>page</title>"


@pytest.mark.parametrize(
    "field",
    [
        "Connection: close",
        "Keep-Alive: timeout=9",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X",
        "Upgrade: websocket",
        "Transfer-Encoding: gzip",
        "transfer-encoding: chunked",
    ],
)
def test_hop_by_hop_fields_of_a_program_are_dropped(server, field):
    output = f"Content-Type: text/plain\n{field}\nX-Kept: 1\n\nbody".encode()
    one = b"POST /cgi-bin/say HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(output)
    raw = server.exchange(one + b"\r\n" + output + one + b"Connection: close\r\n\r\n" + output)
    # The connection went on after the first, so the program's `Connection: close` was not ours.
    assert raw.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert raw.lower().count(b"x-kept: 1\r\n") == 2
    name, _, _ = field.encode().lower().partition(b":")
    if name == b"transfer-encoding":
        assert b"gzip" not in raw
        assert b"4\r\nbody\r\n0\r\n" in raw or b"\r\n\r\nbody" in raw
    elif name != b"connection":
        assert b"\r\n" + name + b":" not in raw.lower()


def test_a_program_that_chunks_itself_is_taken_at_its_bytes(say):
    said = say("Content-Type: text/plain\nTransfer-Encoding: chunked\n\n4\r\nbody\r\n0\r\n\r\n")
    assert said.body == b"4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "output",
    [
        "Content-Type: text/plain\nX-A: b\rSet-Cookie: evil=1\n\nbody",
        "Content-Type: text/plain\nX-A: b\r\rX: y\n\nbody",
        "Content-Type: text/plain\nX-A: b\0c\n\nbody",
        "Content-Type: text/plain\nX\0A: b\n\nbody",
        "Location: /cgi-bin/asked\rX: y\n\n",
        "Status: 200 OK\rX: y\nContent-Type: text/plain\n\nbody",
        "Status: 200 O\0K\nContent-Type: text/plain\n\nbody",
    ],
)
def test_injected_lines_are_502(say, output):
    said = say(output)
    assert said.status == 502
    assert b"evil=1" not in said.raw


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Content-Type: text/plain",
        "Content-Type: text/plain\n",
        "Content-Type: text/plain\r\n\r",
        "Content-Type: text/plain\nno colon here\n\nbody",
        ": no name\n\nbody",
        "Two Words: x\n\nbody",
        "Space : x\n\nbody",
        "<html>\n\nbody",
        "\x89PNG\r\n\x1a\n",
        "\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        "X-A: b\n folded\n\nbody",
        " X-A: b\n\nbody",
        "Content-Length: abc\n\nbody",
        "Content-Length: -1\n\nbody",
        "Content-Length: +4\n\nbody",
        "Content-Length: 4\nContent-Length: 5\n\nbody",
        "Content-Length: 99999999999999999999999999\n\nbody",
        "\n",
        "\nbody",
    ],
)
def test_what_is_no_header_is_502(say, output):
    assert say(output).status == 502


def test_header_sizes_up_to_the_limit_pass_and_more_is_502(say):
    said = say("Content-Type: text/plain\nX-Long: " + "a" * 60_000 + "\n\nbody")
    assert (said.status, len(said.one("x-long")), said.body) == (200, 60_000, b"body")
    assert say("Content-Type: text/plain\nX-Long: " + "a" * 66_000 + "\n\nbody").status == 502
    assert say("X-A: b\n" * 10_000 + "\nbody").status == 502


def test_several_fields_of_one_name_stay_several_and_in_order(say):
    said = say(
        "Set-Cookie: a=1; Path=/\nContent-Type: text/plain\nSet-Cookie: b=2\nLink: x\nset-cookie: a=3\nLink: y\n\n"
    )
    assert said.all("set-cookie") == ["a=1; Path=/", "b=2", "a=3"]
    assert said.all("link") == ["x", "y"]


def test_field_values_keep_their_bytes(say):
    said = say('X-Name: gr\u00fc\u00dfe\t("x")\nContent-Disposition: attachment; filename="a b"\n\n')
    assert said.one("x-name") == 'gr\u00fc\u00dfe\t("x")'
    assert said.one("content-disposition") == 'attachment; filename="a b"'


def test_the_programs_date_and_server_are_not_doubled(say):
    said = say("Content-Type: text/plain\nDate: Mon, 01 Jan 2001 00:00:00 GMT\nServer: mine\n\n")
    assert len(said.all("date")) == 1
    assert len(said.all("server")) <= 1


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_1xx_blocks_are_skipped(say, newline):
    hint = newline.join(["Status: 103 Early Hints", "Link: </a.css>", "", ""])
    final = newline.join(["Status: 201 Made", "X-A: b", "", "body"])
    said = say(hint * 10 + final)
    assert (said.status, said.reason, said.body) == (201, "Made", b"body")
    assert said.all("link") == []
    assert b" 103 " not in said.raw
    assert say(hint * 11 + final).status == 502


# Redirects.


def test_a_local_redirect_is_followed_inside_as_get(server):
    output = b"Location: /cgi-bin/asked/info%20x?q=1&r\n\n"
    said = Said(
        server.exchange(
            b"POST /cgi-bin/say HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/secret\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(output), output)
        )
    )
    assert said.status == 200
    assert said.all("location") == []
    assert said.body == b"GET /cgi-bin/asked|/info x|q=1&r|none|none|\n"


def test_a_local_redirect_of_a_head_request_has_no_body(server, directory):
    misbehaviour.program(directory / "go", "#!/bin/sh\nprintf 'Location: /cgi-bin/asked\\n\\n'\n")
    said = Said(server.exchange(b"HEAD /cgi-bin/go HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    assert (said.status, said.rest, said.all("location")) == (200, b"", [])


@pytest.mark.parametrize(("hops", "status"), [(0, 200), (1, 200), (10, 200), (11, 502), (500, 502)])
def test_ten_local_redirects_and_no_more(server, directory, hops, status):
    (directory / "hops").write_text("")
    answer = server.get(f"/cgi-bin/hop?{hops}")
    assert answer.status == status
    assert (answer.body == b"arrived\n") == (status == 200)
    assert len((directory / "hops").read_text().splitlines()) == min(hops, 10) + 1


def test_a_redirect_to_itself_ends(server, directory):
    misbehaviour.program(directory / "loops", "#!/bin/sh\nprintf 'Location: %s\\n\\n' \"$SCRIPT_NAME\"\n")
    assert server.get("/cgi-bin/loops").status == 502


def test_a_local_redirect_to_nothing_is_404(say):
    assert say("Location: /cgi-bin/nothing-there\n\n").status == 404


@pytest.mark.parametrize("place", ["/cgi-bin/../../etc/passwd", "/cgi-bin/%00", "/cgi-bin/..%2f..%2fetc/passwd"])
def test_a_local_redirect_out_of_the_tree_is_refused(say, place):
    said = say(f"Location: {place}\n\n")
    assert said.status in {400, 404, 502}
    assert b"root:" not in said.raw


def test_an_absolute_location_alone_is_302(say):
    said = say("Location: https://example.org/x?y#z\n\n")
    assert said.status == 302
    assert said.one("location") == "https://example.org/x?y#z"


def test_two_slashes_are_no_path_of_ours(say):
    # A reference to another host, and so the client's to follow.
    said = say("Location: //example.org/x\n\n")
    assert (said.status, said.one("location")) == (302, "//example.org/x")


@pytest.mark.parametrize("place", ["/cgi-bin/asked", "https://example.org/", "//example.org/", "other?x"])
@pytest.mark.parametrize("status", ["301 Moved", "303 See Other", "201 Created", "200 OK"])
def test_location_with_a_status_is_as_written(say, place, status):
    said = say(f"Location: {place}\nStatus: {status}\nContent-Type: text/plain\n\nsee there")
    assert f"{said.status} {said.reason}" == status
    assert said.one("location") == place
    assert said.body == b"see there"


def test_an_absolute_location_with_a_body(say):
    said = say("Content-Type: text/html\nLocation: https://example.org/\n\n<a href=x>")
    assert said.status == 302
    assert said.one("location") == "https://example.org/"
    assert said.one("content-type") == "text/html"
    assert said.body == b"<a href=x>"


def test_other_fields_stay_with_an_absolute_location(say):
    said = say("Set-Cookie: a=b\nLocation: https://example.org/\n\n")
    assert (said.status, said.one("set-cookie")) == (302, "a=b")


# Bodies and their lengths.


def test_too_long_a_content_length_closes_the_connection(server):
    output = b"Content-Type: text/plain\nContent-Length: 10\n\nhello"
    one = b"POST /cgi-bin/say HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(output), output)
    said = Said(server.exchange(one + one))
    assert said.status == 200
    assert said.one("content-length") == "10"
    assert said.rest == b"hello"
    server.wait_for_access(r'"POST /cgi-bin/say HTTP/1\.1" 200 .*outcome=truncated')


def test_too_short_a_content_length_is_cut_off_and_the_connection_goes_on(server):
    output = b"Content-Type: text/plain\nContent-Length: 5\n\nhelloHTTP/1.1 299 Evil\r\nContent-Length: 0\r\n\r\n"
    one = b"POST /cgi-bin/say HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(output)
    raw = server.exchange(one + b"\r\n" + output + one + b"Connection: close\r\n\r\n" + output)
    first, second = re.split(rb"(?<=hello)(?=HTTP/1\.1 )", raw)
    for part in (first, second):
        said = Said(part)
        assert (said.status, said.one("content-length"), said.body) == (200, "5", b"hello")


def test_an_exact_content_length_needs_no_chunks(say):
    said = say("Content-Type: text/plain\nContent-Length: 5\n\nhello")
    assert (said.chunked, said.body) == (False, b"hello")


def test_zero_content_length(say):
    said = say("Content-Type: text/plain\nContent-Length: 0\n\n")
    assert (said.status, said.body) == (200, b"")


def test_an_unknown_length_is_chunked_for_1_1_and_closed_for_1_0(server, say):
    assert say("Content-Type: text/plain\n\n" + "x" * 100_000).body == b"x" * 100_000
    output = b"Content-Type: text/plain\n\n" + b"x" * 100_000
    raw = server.exchange(b"POST /cgi-bin/say HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(output), output))
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"x" * 100_000


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("length", ["", "Content-Length: 4\n"])
@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_head_204_and_304_have_no_body_and_the_connection_stays_in_step(server, method, status, length, directory):
    output = f'Status: {status}\nContent-Type: text/plain\nETag: "x"\n{length}\nbody'.encode()
    misbehaviour.program(directory / "fixed", b"#!/bin/sh\ncat <<'END'\n%s\nEND\n" % output)
    one = f"{method} /cgi-bin/fixed HTTP/1.1\r\nHost: x\r\n"
    raw = server.exchange(f"{one}\r\nGET /cgi-bin/asked?next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert raw.startswith(f"HTTP/1.1 {status}\r\n".encode())
    head, _, rest = raw.partition(b"\r\n\r\n")
    if method == "HEAD" or status[:3] in {"204", "304"}:
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    if status.startswith("204"):
        assert b"content-length" not in head.lower()
    assert b"\r\ntransfer-encoding" not in head.lower() or status[:3] not in {"204", "304"}
    assert b"GET /cgi-bin/asked||next|none|none|" in rest


def test_ten_mebibytes_byte_for_byte(server, directory):
    blob = os.urandom(1 << 20) * 10
    (directory / "blob").write_bytes(blob)
    misbehaviour.program(directory / "send", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n'\nexec cat blob\n")
    answer = server.get("/cgi-bin/send")
    assert len(answer.body) == len(blob)
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(blob).digest()


def test_what_is_written_arrives_before_more_is_written(server, gate, directory):
    # Server-sent events: the program goes on only when the client has the line before.
    misbehaviour.program(
        directory / "events",
        f"#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\n'\nn=0\nwhile [ $n -lt 5 ]; do\n"
        f"printf 'data: %d\\n\\n' $n; read line <{gate.path}; n=$((n + 1))\ndone\n",
    )
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = b""
        for n in range(5):
            while b"data: %d\n\n" % n not in got:
                more = sock.recv(65536)
                assert more
                got += more
            assert b"data: %d\n\n" % (n + 1) not in got
            gate.open()
        while more := sock.recv(65536):
            got += more
    assert got.endswith(b"0\r\n\r\n")


def test_the_response_ends_when_its_content_length_is_reached(server, gate, directory):
    # The program goes on after it: its client need not wait.
    misbehaviour.program(
        directory / "lingers",
        f"#!/bin/sh\nprintf 'Content-Type: text/plain\\nContent-Length: 5\\n\\nhello'\nread line <{gate.path}\n",
    )
    with server.socket() as sock:
        for _ in range(2):
            sock.sendall(b"GET /cgi-bin/lingers HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while not got.endswith(b"\r\n\r\nhello"):
                more = sock.recv(65536)
                assert more, got
                got += more
    for _ in range(2):
        gate.open()


def test_the_response_ends_when_stdout_is_closed(server, gate, directory):
    misbehaviour.program(
        directory / "goes-on",
        f"#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello'\nexec >&-\nread line <{gate.path}\n",
    )
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/goes-on HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            more = sock.recv(65536)
            assert more, got
            got += more
    gate.open()


# nph-.


@pytest.mark.parametrize(
    "output",
    [
        b"HTTP/1.1 234 Odd\r\nX-Y: z\r\n\r\nbody\0\xff",
        b"HTTP/1.0 200 OK\n\nbody\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        b"no HTTP at all\n",
    ],
)
def test_nph_bytes_are_untouched_and_the_connection_closes(server, output):
    one = b"POST /cgi-bin/nph-say HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(output), output)
    assert server.exchange(one + one) == output


def test_nph_in_a_folder_and_not_in_the_middle_of_a_name(server, directory):
    misbehaviour.program(directory / "sub" / "nph-x", "#!/bin/sh\nprintf 'RAW\\n'\n")
    misbehaviour.program(directory / "x-nph-y", "#!/bin/sh\nprintf 'X-A: b\\n\\nbody'\n")
    assert server.exchange(b"GET /cgi-bin/sub/nph-x HTTP/1.1\r\nHost: x\r\n\r\n") == b"RAW\n"
    assert server.get("/cgi-bin/x-nph-y").headers["x-a"] == "b"


# A connection among others.


def test_pipelined_requests_are_answered_in_order(server, gate, directory):
    misbehaviour.program(directory / "waits", f"#!/bin/sh\nread line <{gate.path}\nprintf 'X-N: 0\\n\\nslow'\n")
    misbehaviour.program(directory / "quick", "#!/bin/sh\nprintf 'X-N: %s\\n\\nquick' \"$QUERY_STRING\"\n")
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/waits HTTP/1.1\r\nHost: x\r\n\r\n")
        for n in range(1, 20):
            sock.sendall(b"GET /cgi-bin/quick?%d HTTP/1.1\r\nHost: x\r\n\r\n" % n)
        sock.sendall(b"GET /cgi-bin/quick?20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        # Others are served while this one waits.
        assert server.get("/cgi-bin/quick?other").headers["x-n"] == "other"
        gate.open()
        got = b""
        while more := sock.recv(65536):
            got += more
    assert [int(n) for n in re.findall(rb"x-n: (\d+)", got, re.I)] == list(range(21))


def test_nobody_gets_anothers_response(server):
    socks: list[socket.socket] = [server.socket() for _ in range(32)]
    try:
        for turn in range(5):
            for n, sock in enumerate(socks):
                sock.sendall(b"GET /cgi-bin/asked?%d-%d HTTP/1.1\r\nHost: x\r\n\r\n" % (turn, n))
            for n, sock in enumerate(socks):
                got = b""
                while not got.endswith(b"0\r\n\r\n") and b"|none|none|\n" not in got:
                    more = sock.recv(65536)
                    assert more
                    got += more
                while b"transfer-encoding" in got.lower() and not got.endswith(b"0\r\n\r\n"):
                    got += sock.recv(65536)
                assert b"||%d-%d|" % (turn, n) in got
    finally:
        for sock in socks:
            sock.close()
