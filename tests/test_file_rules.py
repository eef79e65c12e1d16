"""What decides how a file is answered, without a file: ranges, conditions, codings, types. RFC 9110."""

from __future__ import annotations

import errno
import os
import re
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.files import store
from gateway.files.types import media_type
from gateway.http.codings import preferred
from gateway.http.conditions import Asked, Validators, precondition, range_applies, read_date
from gateway.http.ranges import MOST, parts_of

# Ranges.


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (b"bytes=0-0", [(0, 1)]),
        (b"bytes=0-9", [(0, 10)]),
        (b"BYTES=2-4", [(2, 5)]),
        (b"bytes=9-", [(9, 10)]),
        (b"bytes=-1", [(9, 10)]),
        (b"bytes=-10", [(0, 10)]),
        (b"bytes=-999", [(0, 10)]),
        (b"bytes=5-999999999999999999", [(5, 10)]),
        (b"bytes= 1-2 , 5-6\t", [(1, 3), (5, 7)]),
        (b"bytes=,1-2,,5-6,", [(1, 3), (5, 7)]),
        (b"bytes=5-6,1-2", [(5, 7), (1, 3)]),
        (b"bytes=0-1,1-2", [(0, 3)]),
        (b"bytes=5-6,0-1,2-3", [(0, 4), (5, 7)]),
        (b"bytes=0-,-1", [(0, 10)]),
        (b"bytes=1-2,99-", [(1, 3)]),
        (b"bytes=10-", []),
        (b"bytes=-0", []),
        (b"bytes=99-,-0", []),
        (b"bytes=4-2", None),
        (b"bytes=1-2,4-2", None),
        (b"bytes=", None),
        (b"bytes=,", None),
        (b"bytes=-", None),
        (b"bytes=a-b", None),
        (b"bytes=1_0-2", None),
        (b"bytes=+1-2", None),
        (b"bytes=\xd9\xa1-2", None),
        (b"bytes=1 - 2", None),
        (b"bytes=0x1-2", None),
        (b"bytes=1-2-3", None),
        (b"bytes=1-2;3-4", None),
        (b"bytes=9999999999999999999999-", None),
        (b"bytes 1-2", None),
        (b"lines=1-2", None),
        (b"", None),
        (b"bytes=1-2\n", None),
        (b"bytes=" + b",".join(b"%d-%d" % (n * 10, n * 10) for n in range(MOST + 1)), None),
        (b"bytes=" + b"0-," * 5000, None),
    ],
)
def test_ranges(value, parts):
    assert parts_of(value, 10) == parts


def test_of_an_empty_file_there_is_no_part():
    assert parts_of(b"bytes=0-", 0) == []
    assert parts_of(b"bytes=-5", 0) is None


@given(st.binary(max_size=60) | st.text("bytes=0123456789-, ", max_size=40).map(str.encode), st.integers(0, 100))
def test_any_range_is_within_the_file(value, size):
    parts = parts_of(b"bytes=" + value, size) or []
    assert len(parts) <= MOST
    assert all(0 <= begin < end <= size for begin, end in parts)
    assert sum(end - begin for begin, end in parts) <= size


spec = st.tuples(st.integers(0, 30), st.integers(0, 30) | st.none()) | st.integers(0, 30)


@given(st.lists(spec, min_size=1, max_size=MOST), st.integers(0, 25))
def test_ranges_name_the_bytes_that_they_say(specs, size):
    """Against the plainest reading of section 14.1.2: a set of positions for each."""
    words, wanted = [], []
    for one in specs:
        if isinstance(one, int):
            words.append(f"-{one}")
            wanted.append(set(range(max(size - one, 0), size)))
        else:
            first, last = one
            words.append(f"{first}-{'' if last is None else last}")
            wanted.append(set(range(first, size if last is None else min(last + 1, size))))
    parts = parts_of(f"bytes={','.join(words)}".encode(), size)
    if any(isinstance(one, tuple) and one[1] is not None and one[1] < one[0] for one in specs):
        assert parts is None
    elif parts is not None:
        named = [position for begin, end in parts for position in range(begin, end)]
        assert len(named) == len(set(named))
        assert set(named) == set().union(*wanted)


# Conditions.

NOW = Validators(b'"tag"', 784111777, True)
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE, AFTER = b"Sun, 06 Nov 1994 08:49:36 GMT", b"Sun, 06 Nov 1994 08:49:38 GMT"


@pytest.mark.parametrize(
    ("asked", "reading", "writing"),
    [
        ({}, 0, 0),
        ({"if_match": b'"tag"'}, 0, 0),
        ({"if_match": b"*"}, 0, 0),
        ({"if_match": b'"a,b", "tag"'}, 0, 0),
        ({"if_match": b'W/"tag"'}, 412, 412),  # strong comparison
        ({"if_match": b'"x"'}, 412, 412),
        ({"if_match": b""}, 412, 412),
        ({"if_match": b"tag"}, 412, 412),
        ({"if_unmodified_since": DATE}, 0, 0),
        ({"if_unmodified_since": AFTER}, 0, 0),
        ({"if_unmodified_since": BEFORE}, 412, 412),
        ({"if_unmodified_since": b"yesterday"}, 0, 0),
        ({"if_none_match": b'"tag"'}, 304, 412),
        ({"if_none_match": b'W/"tag"'}, 304, 412),  # weak comparison
        ({"if_none_match": b"*"}, 304, 412),
        ({"if_none_match": b'"x" , W/"tag"'}, 304, 412),
        ({"if_none_match": b',, "x",,"tag",'}, 304, 412),
        ({"if_none_match": b'"x"'}, 0, 0),
        ({"if_none_match": b'"x "tag"'}, 0, 0),
        ({"if_none_match": b'"a","tag'}, 0, 0),
        ({"if_none_match": b"tag"}, 0, 0),
        ({"if_modified_since": DATE}, 304, 0),
        ({"if_modified_since": AFTER}, 304, 0),
        ({"if_modified_since": BEFORE}, 0, 0),
        ({"if_modified_since": b"0"}, 0, 0),
        # Section 13.2.2: the tag is asked where both are there, and If-Match before If-None-Match.
        ({"if_match": b'"tag"', "if_unmodified_since": BEFORE}, 0, 0),
        ({"if_match": b'"x"', "if_none_match": b'"tag"'}, 412, 412),
        ({"if_match": b'"tag"', "if_none_match": b'"tag"'}, 304, 412),
        ({"if_unmodified_since": BEFORE, "if_none_match": b'"tag"'}, 412, 412),
        ({"if_none_match": b'"x"', "if_modified_since": DATE}, 0, 0),
        ({"if_none_match": b'"tag"', "if_modified_since": BEFORE}, 304, 412),
    ],
)
def test_conditions(asked, reading, writing):
    assert precondition(Asked(**asked), b"GET", NOW) == reading
    assert precondition(Asked(**asked), b"HEAD", NOW) == reading
    assert precondition(Asked(**asked), b"PUT", NOW) == writing


@pytest.mark.parametrize(
    ("if_range", "settled", "applies"),
    [
        (None, True, True),
        (b'"tag"', True, True),
        (b'"tag"', False, True),
        (b'W/"tag"', True, False),
        (b'"x"', True, False),
        (DATE, True, True),
        (DATE, False, False),  # a date is strong only when the file has rested for a second
        (AFTER, True, False),  # exactly this one, not later
        (BEFORE, True, False),
        (b"", True, False),
        (b"*", True, False),
    ],
)
def test_if_range(if_range, settled, applies):
    now = Validators(NOW.tag, NOW.modified, settled)
    assert range_applies(Asked(if_range=if_range, range=b"bytes=0-"), b"GET", now) == applies
    assert not range_applies(Asked(if_range=if_range, range=b"bytes=0-"), b"HEAD", now)
    assert not range_applies(Asked(if_range=if_range), b"GET", now)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (DATE, 784111777),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        (b"Sun Nov  6 08:49:37 1994", 784111777),  # whatever zone the server is in
        (b"Thursday, 01-Jan-70 00:00:00 GMT", 0),
        (b"Sat, 29 Feb 2020 23:59:60 GMT", 1583020800),
        (b"Sat, 30 Feb 2020 00:00:00 GMT", None),
        (b"Sun, 06 Nov 1994 24:00:00 GMT", None),
        (b"Sun, 06 Nov 1994 08:49:37 +0200", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"sun, 06 nov 1994 08:49:37 gmt", None),
        (b"Sun, 06 Nov 0000 08:49:37 GMT", None),
        (b"784111777", None),
        (b"99999999999999999999 Feb 99:99:99 - 10000", None),
        (b"", None),
    ],
)
def test_dates(value, seconds):
    assert read_date(value) == seconds


@given(st.datetimes(datetime(1970, 1, 2), datetime(2069, 1, 1)))
def test_dates_are_read_as_they_are_written(moment):
    seconds = int(moment.replace(tzinfo=UTC).timestamp())
    assert read_date(formatdate(seconds, usegmt=True).encode()) == seconds


@given(st.binary(max_size=40))
def test_no_date_is_an_accident(value):
    assert read_date(value) is None or re.search(rb"[0-9]{2}:[0-9]{2}:[0-9]{2}", value)


# Codings.

ALL = (b"zstd", b"br", b"gzip")


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"gzip, deflate, br, zstd", b"zstd"),
        (b"x-gzip", b"gzip"),
        (b"GZIP", b"gzip"),
        (b"br;q=0.5, gzip;q=0.8", b"gzip"),
        (b"br;q=1.000, gzip", b"br"),
        (b"gzip;q=0", b""),
        (b"gzip;q=0.000, br;q=0.001", b"br"),
        (b"*", b"zstd"),
        (b"*;q=0", b""),
        (b"zstd;q=0, *", b"br"),
        (b"identity;q=1, gzip;q=0.5", b""),
        (b"identity, gzip", b"gzip"),
        (b"identity;q=0, *;q=0", b""),
        (b"deflate", b""),
        (b"", b""),
        (b"gzip;q=2", b""),
        (b"gzip;q=0.1234", b""),
        (b"gzip;level=9", b""),
        (b"gzip;q=nan", b""),
        (b"g zip", b""),
        (b" gzip ; q=1 ", b"gzip"),
        (b",,gzip,", b"gzip"),
    ],
)
def test_codings(accepted, coding):
    assert preferred(accepted, ALL) == coding


weight = st.sampled_from(["", ";q=0", ";q=0.0", ";q=0.5", ";q=1", "; q=0.333", ";Q=1.0"])
coding = st.sampled_from(["gzip", "br", "zstd", "identity", "deflate", "*", "x-gzip"])


@given(st.lists(st.tuples(coding, weight), max_size=6), st.lists(st.sampled_from(ALL), unique=True))
def test_what_is_refused_is_not_sent(accepted, available):
    value = ", ".join(name + weight for name, weight in accepted)
    got = preferred(value.encode(), tuple(available))
    assert got in (b"", *available)
    if got:
        weights = {name.removeprefix("x-"): float(weight.partition("=")[2] or 1) for name, weight in accepted}
        assert weights.get(got.decode(), weights.get("*", 0)) > 0


@given(st.binary(max_size=60))
def test_any_bytes_may_be_accepted(value):
    assert preferred(value, ALL) in (b"", *ALL)


# Types.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"a.html", b"text/html; charset=utf-8"),
        (b"a.HTML", b"text/html; charset=utf-8"),
        (b"a.js", b"text/javascript; charset=utf-8"),
        (b"a.mjs", b"text/javascript; charset=utf-8"),
        (b"a.css", b"text/css; charset=utf-8"),
        (b"a.txt", b"text/plain; charset=utf-8"),
        (b"a.json", b"application/json"),
        (b"a.svg", b"image/svg+xml"),
        (b"a.woff2", b"font/woff2"),
        (b"a.wasm", b"application/wasm"),
        (b"a.webp", b"image/webp"),
        (b"a.tar.gz", b"application/gzip"),
        (b"a.tgz", b"application/gzip"),
        (b"a.html.br", b"application/octet-stream"),
        (b"a", b"application/octet-stream"),
        (b".html", b"application/octet-stream"),
        (b"a:b.txt", b"text/plain; charset=utf-8"),
        (b"data:,x.html", b"text/html; charset=utf-8"),
        (b"\xff.txt", b"text/plain; charset=utf-8"),
        (b"a.\xff\n", b"application/octet-stream"),
    ],
)
def test_types_are_the_same_everywhere(name, kind):
    assert media_type(name) == kind


# What is kept, by a clock of the test's own.


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def aged(path, content, seconds=100):
    """A file whose last change, as far as the test can set it, was some time ago."""
    path.write_bytes(content)
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))
    return os.fsencode(path)


def test_what_is_known_is_believed_for_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_TICK", -1)  # a time of change cannot be set: let the file be old
    clock = Clock()
    files = store.FileStore([], [], clock)
    path = aged(tmp_path / "a.txt", b"old")
    first = files.find(path)
    aged(tmp_path / "a.txt", b"new")
    clock.time += 0.9
    assert files.find(path) is first
    clock.time += 0.2
    second = files.find(path)
    assert second.plain.file.content == b"new"
    clock.time += 1.1
    assert files.find(path) is second
    os.unlink(path)
    clock.time += 1.1
    assert files.find(path).status == 404


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    clock = Clock()
    files = store.FileStore([], [], clock)
    (tmp_path / "a").write_bytes(b"a")
    path = os.fsencode(tmp_path / "a")
    first = files.find(path)
    clock.time += 1.1
    assert files.find(path) is not first


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_FILES", 10)
    monkeypatch.setattr(store, "_BYTES", 10_000)
    files = store.FileStore([], [], Clock())
    for number in range(50):
        files.find(aged(tmp_path / str(number), bytes(2000)))
    assert len(files._kept) == 5
    assert files._bytes == 10_000
    for number in range(50, 80):
        files.find(aged(tmp_path / str(number), b""))
    assert len(files._kept) == 10
    files.find(aged(tmp_path / "large", bytes(store.SMALL + 1)))
    assert files._bytes == 0


def test_a_held_file_stays_what_it_was(tmp_path):
    path = aged(tmp_path / "large", bytes(store.SMALL + 1))
    files = store.FileStore([], [], Clock())
    file = files.find(path).plain.file
    assert file.content is None
    assert file.hold()
    assert file.hold()
    descriptor = file.descriptor
    (tmp_path / "large").write_bytes(b"x")
    file.release()
    assert file.descriptor == descriptor
    file.release()
    assert file.descriptor == -1
    assert not file.hold()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("ENOENT", 404),
        ("ENOTDIR", 404),
        ("ELOOP", 404),
        ("EACCES", 403),
        ("EMFILE", 503),
        ("ENFILE", 503),
        ("EIO", 500),
    ],
)
def test_whose_fault_it_is(number, status):
    code = getattr(errno, number)
    assert store.fault_of(b"/file", OSError(code, os.strerror(code))).status == status
