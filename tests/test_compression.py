"""``--compress``: what programs write, in a coding that the client accepts."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.compression import CODINGS, Encoder, is_compressible
from tests import misbehaviour, support
from tests.test_cgi_output import Said
from tests.test_pool_peers import running_front

TEXT = b"".join(b"line %d of a page that repeats itself\n" % number for number in range(2000))

PROGRAM = f"""#!{support.sys.executable}
import os, sys
name, _, rest = os.environ["QUERY_STRING"].partition("&")
text = b"".join(b"line %d of a page that repeats itself\\n" % number for number in range(2000))
out = sys.stdout.buffer
head = {{
    "plain": "Content-Type: text/html; charset=utf-8\\nETag: \\"x\\"\\nVary: Cookie\\nAccept-Ranges: bytes",
    "long": f"Content-Type: application/json\\nContent-Length: {{len(text)}}",
    "less": f"Content-Type: text/plain\\nContent-Length: {{len(text) + 1}}",
    "more": f"Content-Type: text/plain\\nContent-Length: {{len(text) - 1}}",
    "small": "Content-Type: text/plain\\nContent-Length: 5",
    "coded": "Content-Type: text/plain\\nContent-Encoding: x",
    "image": "Content-Type: image/png",
    "fixed": "Content-Type: text/plain\\nCache-Control: max-age=1, No-Transform",
    "part": f"Status: 206\\nContent-Type: text/plain\\nContent-Range: bytes 0-1/{{len(text)}}",
    "events": "Content-Type: text/event-stream",
    "failed": "Status: 404 Nowhere\\nContent-Type: image/svg+xml",
}}[name]
out.write(head.encode() + b"\\n\\n")
if name == "events":
    for number in range(3):
        out.write(b"data: %d\\n\\n" % number)
        out.flush()
        open(rest).readline()
elif os.environ["REQUEST_METHOD"] != "HEAD":
    out.write(b"small" if name == "small" else text)
"""


def decode(coding, data):
    if coding == "gzip":
        return gzip.decompress(data)
    if coding == "br":
        return pytest.importorskip("brotli").decompress(data)
    if coding == "zstd":
        return pytest.importorskip("zstandard").ZstdDecompressor().decompressobj().decompress(data)
    return data


@pytest.fixture
def directory(tmp_path):
    support.script(tmp_path / "say", PROGRAM)
    return tmp_path


@pytest.fixture
def server(serve, directory):
    return serve("--compress", cgi_dir=directory)


def ask(server, query, *fields, method="GET", version="1.1"):
    lines = [f"{method} /cgi-bin/say?{query} HTTP/{version}", "Host: a.example", *fields, "Connection: close", "", ""]
    return Said(server.exchange("\r\n".join(lines).encode()))


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_page_in_each_coding(server, coding):
    if coding.encode() not in CODINGS:
        pytest.skip(f"{coding} is not installed")
    got = ask(server, "plain", f"Accept-Encoding: {coding}")
    assert decode(coding, got.body) == TEXT
    assert len(got.body) < len(TEXT) / 3
    assert (got.one("content-encoding"), got.one("etag")) == (coding, 'W/"x"')
    assert got.all("vary") == ["Cookie", "Accept-Encoding"]
    assert got.one("accept-ranges") is None
    server.wait_for_access(rf'" 200 {len(got.body)} .*outcome=ok')


@pytest.mark.parametrize("fields", [(), ("Accept-Encoding: identity",), ("Accept-Encoding: gzip;q=0, deflate",)])
def test_who_accepts_none_gets_it_as_it_is(server, fields):
    got = ask(server, "plain", *fields)
    assert (got.body, got.one("content-encoding"), got.one("etag")) == (TEXT, None, '"x"')
    assert got.all("vary") == ["Cookie", "Accept-Encoding"]


@pytest.mark.parametrize("query", ["small", "coded", "image", "fixed", "part"])
def test_what_is_left_as_it_is(server, query):
    got = ask(server, query, "Accept-Encoding: gzip", "Range: bytes=0-1")
    assert got.body == (b"small" if query == "small" else TEXT)
    assert got.one("content-encoding") == ("x" if query == "coded" else None)
    assert got.one("vary") is None


def test_a_length_is_that_of_what_is_sent(server):
    got = ask(server, "long", "Accept-Encoding: gzip")
    assert gzip.decompress(got.body) == TEXT
    assert got.one("content-length") in {None, str(len(got.body))}
    head = ask(server, "long", "Accept-Encoding: gzip", method="HEAD")
    assert (head.rest, head.one("content-encoding"), head.one("content-length")) == (b"", "gzip", None)
    head = ask(server, "long", method="HEAD")
    assert (head.rest, head.one("content-encoding"), head.one("content-length")) == (b"", None, str(len(TEXT)))
    assert ask(server, "long", "Accept-Encoding: gzip", version="1.0").body == TEXT


def test_a_status_and_its_reason_stay(server):
    got = ask(server, "failed", "Accept-Encoding: gzip")
    assert (got.status, got.reason, gzip.decompress(got.body)) == (404, "Nowhere", TEXT)


def test_more_than_was_promised_is_not_sent(server):
    assert gzip.decompress(ask(server, "more", "Accept-Encoding: gzip").body) == TEXT[:-1]


def test_less_than_was_promised_is_no_whole_response(server):
    got = ask(server, "less", "Accept-Encoding: gzip")
    assert got.chunked
    assert not got.complete
    size, _, rest = got.rest.partition(b"\r\n")
    assert TEXT.startswith(zlib.decompressobj(31).decompress(rest[: int(size, 16)]))
    server.wait_for_access("outcome=truncated")


def test_events_come_one_by_one(server, tmp_path):
    gate = misbehaviour.Gate(tmp_path / "gate")
    with server.socket() as client:
        client.sendall(
            f"GET /cgi-bin/say?events&{gate.path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n".encode()
        )
        coder, got, raw = zlib.decompressobj(31), b"", b""
        for number in range(3):
            while not got.endswith(b"data: %d\n\n" % number):
                raw += client.recv(65536)
                coder, got = zlib.decompressobj(31), b""
                rest = raw.partition(b"\r\n\r\n")[2]
                while b"\r\n" in rest:
                    size, _, rest = rest.partition(b"\r\n")
                    got += coder.decompress(rest[: int(size, 16)])
                    rest = rest[int(size, 16) + 2 :]
            gate.open()
    gate.close()


def test_nothing_is_coded_unless_it_is_asked_for(serve, directory):
    server = serve(cgi_dir=directory)
    got = ask(server, "plain", "Accept-Encoding: gzip")
    assert (got.body, got.one("content-encoding"), got.one("vary")) == (TEXT, None, "Cookie")


def test_a_page_of_a_pool(tmp_path):
    support.need("php-cgi")
    (tmp_path / "page.php").write_text('<?php echo str_repeat("0123456789", 500);')
    with running_front("--php", str(tmp_path), "--children", "1", "--compress") as server:
        for _ in range(2):  # with a header that is not known yet, and one that is
            raw = server.exchange(
                b"GET /page.php HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
            )
            assert gzip.decompress(Said(raw).body) == b"0123456789" * 500


@given(st.sampled_from(CODINGS), st.lists(st.binary(max_size=5000), min_size=1, max_size=8))
def test_any_pieces_come_out_whole(coding, pieces):
    encoder = Encoder(coding)
    coded = [encoder.encode(piece, number == len(pieces) - 1) for number, piece in enumerate(pieces)]
    assert decode(coding.decode(), b"".join(coded)) == b"".join(pieces)


@pytest.mark.parametrize(
    ("status", "fields", "is_one"),
    [
        (200, [(b"Content-Type", b"text/html")], True),
        (200, [(b"content-type", b"TEXT/Plain ; charset=x")], True),
        (200, [(b"Content-Type", b"application/ld+json")], True),
        (500, [(b"Content-Type", b"text/html")], True),
        (200, [], False),
        (200, [(b"Content-Type", b"video/mp4")], False),
        (204, [(b"Content-Type", b"text/html")], False),
        (304, [(b"Content-Type", b"text/html")], False),
        (206, [(b"Content-Type", b"text/html")], False),
        (200, [(b"Content-Type", b"text/html"), (b"Content-MD5", b"x")], False),
        (200, [(b"Content-Type", b"text/html"), (b"CACHE-CONTROL", b"no-transform")], False),
    ],
)
def test_what_can_be_coded(status, fields, is_one):
    assert is_compressible(status, fields) == is_one
