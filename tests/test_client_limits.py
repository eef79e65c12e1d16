"""What decides about clients, purely: buckets, the shared table, paces, addresses, fields of proxies."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clients.addresses import Trusted, client_identity
from gateway.clients.bucket import judge
from gateway.clients.forwarded import Client, find_client
from gateway.clients.pace import Pace
from gateway.clients.settings import RateLimit, Trust
from gateway.clients.table import ClientShare, ClientTable
from tests import support

# The bucket. Each row: the limit, then (when, passes, wait) of requests one after the other.
BUCKETS = [
    (RateLimit(2.0), [(0, True, 0), (0, False, 0.5), (0.25, False, 0.25), (0.5, True, 0), (0.75, False, 0.25),
                      (9, True, 0), (9, False, 0.5)]),
    (RateLimit(1.0, 2), [(0, True, 0), (0, True, 1), (0, True, 2), (0, False, 1), (0.5, False, 0.5), (1, True, 2),
                         (1, False, 1), (4, True, 0)]),
    (RateLimit(10.0, 1), [(0, True, 0), (0.05, True, 0.05), (0.05, False, 0.05), (0.1, True, 0.1)]),
    # Less than one a second; refused ones do not put the next off.
    (RateLimit(0.1), [(0, True, 0), (5, False, 5), (9, False, 1), (10, True, 0), (19.5, False, 0.5)]),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "requests"), BUCKETS)
def test_a_bucket(limit, requests):
    begin = 1000.0
    empty_at = 0.0
    for when, passes, wait in requests:
        verdict = judge(limit, empty_at, begin + when)
        assert (verdict.passes, round(verdict.wait, 6)) == (passes, wait), when
        empty_at = verdict.empty_at


@given(
    st.floats(0.1, 1000), st.integers(0, 50), st.lists(st.floats(0, 2), min_size=1, max_size=60), st.floats(1, 10**6)
)
def test_a_bucket_passes_what_nginx_passes(rate, burst, pauses, now):
    """nginx's limit_req: excess = excess - rate * time + 1, refused over the burst, and then nothing is changed."""
    limit = RateLimit(rate, burst)
    excess = last = None
    empty_at = 0.0
    for pause in pauses:
        now += pause
        theirs = 0.0 if excess is None else max(0.0, excess - rate * (now - last) + 1)
        verdict = judge(limit, empty_at, now)
        if abs(theirs - burst) > 1e-6:  # not on the edge, where rounding decides
            assert verdict.passes == (theirs <= burst)
        empty_at = verdict.empty_at
        if verdict.passes:
            excess, last = theirs, now


# The table.

LIMIT = RateLimit(1.0, 3)


def shares(entries, workers):
    table = ClientTable(entries, workers)
    return table, [ClientShare(table, number) for number in range(workers)]


def test_workers_count_together():
    table, (one, two) = shares(64, 2)
    key = table.key(b"client")
    assert [one.arrive(key, 1.0), two.arrive(key, 1.0), two.arrive(key, 1.0), one.arrive(key, 1.0)] == [1, 2, 3, 4]
    assert one.arrive(table.key(b"another"), 1.0) == 1
    one.leave(key)
    two.leave(key)
    assert two.arrive(key, 2.0) == 3
    assert [share.ask(key, LIMIT, 9.0).passes for share in (one, two, one, two, one, two)] == [True] * 4 + [False] * 2


def test_what_a_dead_worker_counted_is_cleared_and_nothing_else():
    table, (one, two) = shares(64, 2)
    key = table.key(b"client")
    for share in (one, one, two):
        share.arrive(key, 1.0)
    table.recover(0)
    assert two.arrive(key, 1.0) == 2
    assert ClientShare(table, 0).arrive(key, 1.0) == 3


# Processes that were forked after the table was made, each with one worker's side. In an interpreter of its own, which
# has one thread.
RACE = """
import os, random
from gateway.clients.settings import RateLimit
from gateway.clients.table import ClientShare, ClientTable

def churn(share, dice):
    here = []
    for now in range(20_000):
        if here and dice.random() < 0.5:
            share.leave(here.pop(dice.randrange(len(here))))
        else:
            key = dice.choice(keys)
            share.ask(key, RateLimit(1.0, 3), float(now))
            share.arrive(key, float(now))
            here.append(key)
    share.arrive(witness, 1.0)
    for key in here:
        share.leave(key)

table = ClientTable(16, 5)
keys = [table.key(b"%d" % number) for number in range(40)]
witness = table.key(b"witness")
first = ClientShare(table, 4)
assert first.arrive(witness, 1.0) == 1
children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        churn(ClientShare(table, number), random.Random(number))
        os._exit(0)
    children.append(pid)
assert not any(os.waitpid(pid, 0)[1] for pid in children)
assert first.arrive(witness, 1.0) == 6
assert sum(table.counts) == 6, "of the others nothing is left"
for number in range(4):
    table.recover(number)
first.leave(witness)
first.leave(witness)
print("left:", sum(table.counts))
"""


def test_processes_that_race_count_together_and_leave_nothing_behind():
    """Four at once, for two sets of eight places: what a race has put wrong is put right by who comes and goes."""
    found = subprocess.run([sys.executable, "-c", RACE], cwd=support.ROOT, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("left: 0\n", "")


def test_memory_is_bounded_and_who_has_no_connection_gives_way():
    table, (share,) = shares(8, 1)  # one set of eight
    keys = [table.key(b"%d" % number) for number in range(1000)]
    assert all(share.ask(key, LIMIT, float(now)).passes for now, key in enumerate(keys))
    assert sum(1 for key in table.keys if key) == 8
    assert len(table.keys) == 8
    # The last eight are remembered.
    assert share.ask(keys[-8], LIMIT, 992.0).wait == 1
    # Who has connections is not forgotten for anybody; who finds no place is served.
    for key in keys[:8]:
        share.arrive(key, 1000.0)
    assert share.arrive(keys[9], 1000.0) == 1
    assert share.ask(keys[10], LIMIT, 1000.0) == (True, 1000.0, 0.0)
    share.leave(keys[9])
    for key in keys[:8]:
        share.leave(key)
    assert repr(table) == "<ClientTable: 8 of 8 used, 0 connections>"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.booleans()), max_size=200))
def test_whatever_comes_and_goes_nothing_is_left(steps):
    table, workers = shares(16, 3)
    here = []
    for worker, client, comes in steps:
        if comes:
            key = table.key(b"%d" % client)
            workers[worker].arrive(key, 1.0)
            here.append((workers[worker], key))
        elif here:
            share, key = here.pop(len(here) // 2)
            share.leave(key)
    for share, key in here:
        share.leave(key)
    assert not any(table.counts)


def test_a_race_for_one_place_is_put_right():
    """Two workers take one free place for two clients: the key of the second stands there, the first's count too."""
    table, (one, two) = shares(8, 2)
    first, second = table.key(b"first"), table.key(b"second")
    one.arrive(first, 1.0)
    place = list(table.keys).index(first)
    table.keys[place] = second  # as written by a worker that had found the place free
    assert two.arrive(second, 1.0) == 2, "slightly off"
    one.leave(first)
    assert two.arrive(second, 1.0) == 2
    two.leave(second)
    two.leave(second)
    assert not any(table.counts)


# Paces. Rows: (now, count, or None where there is nothing to do), too slow?
PACES = [
    [(0, 0, False), (9, 0, False), (10, 999, True)],
    [(0, 0, False), (10, 1000, False), (20, 2000, False), (30, 2500, True)],
    # Fast at first is no credit.
    [(0, 0, False), (10, 10**9, False), (20, 10**9 + 10, True)],
    # What it had nothing to do for is not held against it.
    [(0, 0, False), (9, 10, False), (9.5, None, False), (10, 10, False), (19, 10, False), (20, 1010, False)],
    # Looked at late.
    [(0, 0, False), (30, 2999, True)],
]


@pytest.mark.parametrize("looks", PACES)
def test_a_pace(looks):
    pace = Pace(100, 10.0)
    for now, count, expected in looks:
        if count is None:
            pace.rest()
        else:
            assert pace.is_too_slow(now, count) is expected, now


# Addresses.


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_which_addresses_are_one_client(one, another, same):
    assert (client_identity(one) == client_identity(another)) is same


def test_what_has_no_address_is_no_client():
    assert client_identity("unix:") == b""


def trusted(*networks, unix=False):
    return Trusted(Trust(tuple(map(ip_network, networks)), unix))


def test_who_is_trusted():
    some = trusted("10.0.0.0/8", "2001:db8::/32")
    for address, expected in [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), (None, False),
                              ("2001:db8::5", True), ("2001:db9::5", False), ("nonsense", False)]:  # fmt: skip
        assert some.has(address) is expected, address
    assert trusted(unix=True).has(None)
    assert not trusted(unix=True).has("127.0.0.1")


# The fields of proxies; 10.0.0.0/8 and 2001:db8::/32 are trusted.
XFF = b"x-forwarded-for"
CLIENTS = [
    (XFF, [], None),
    (XFF, ["192.0.2.1"], ("192.0.2.1", 0)),
    (XFF, ["6.6.6.6, 192.0.2.1"], ("192.0.2.1", 0)),
    (XFF, ["6.6.6.6, 192.0.2.1, 10.0.0.1,10.0.0.2"], ("192.0.2.1", 0)),
    (XFF, ["6.6.6.6", "192.0.2.1", "10.0.0.1"], ("192.0.2.1", 0)),
    (XFF, ["10.0.0.3, 10.0.0.2"], ("10.0.0.3", 0)),
    (XFF, ["192.0.2.1:1234"], ("192.0.2.1", 1234)),
    (XFF, ["[2001:db9::7]:80, 2001:db8::1"], ("2001:db9::7", 80)),
    (XFF, ["2001:db9::7"], ("2001:db9::7", 0)),
    (XFF, ["::ffff:192.0.2.1"], ("192.0.2.1", 0)),
    (XFF, [" ,, 192.0.2.1 , "], ("192.0.2.1", 0)),
    # What stands left of what nobody knows is not believed.
    (XFF, ["6.6.6.6, unknown, 10.0.0.2"], ("10.0.0.2", 0)),
    (XFF, ["6.6.6.6, unknown"], None),
    (XFF, ["192.0.2.1; DROP TABLE"], None),
    (XFF, ["192.0.2.001"], None),
    (XFF, ["192.0.2.1:99999"], None),
    (XFF, ["fe80::1%eth0"], None),
    (XFF, ["\u00e9"], None),
    (XFF, [", ".join(["192.0.2.1"] + ["10.0.0.1"] * 31)], ("192.0.2.1", 0)),
    (XFF, [", ".join(["192.0.2.1"] + ["10.0.0.1"] * 32)], ("10.0.0.1", 0)),
    (b"x-real-ip", ["192.0.2.1"], ("192.0.2.1", 0)),
    (b"forwarded", ["for=192.0.2.1"], ("192.0.2.1", 0)),
    (b"forwarded", ['For="[2001:db9:cafe::17]:4711"'], ("2001:db9:cafe::17", 4711)),
    (b"forwarded", ["for=6.6.6.6, for=192.0.2.43;by=203.0.113.1, for=10.0.0.1"], ("192.0.2.43", 0)),
    (b"forwarded", ['for="192.0.2.43:47011";host="a,b;c\\"d"'], ("192.0.2.43", 47011)),
    (b"forwarded", ["for=192.0.2.1", "for=10.0.0.1"], ("192.0.2.1", 0)),
    (b"forwarded", ["for=6.6.6.6, for=unknown, for=10.0.0.1"], ("10.0.0.1", 0)),
    (b"forwarded", ["for=6.6.6.6, for=_hidden, for=10.0.0.1"], ("10.0.0.1", 0)),
    (b"forwarded", ["for=6.6.6.6, by=10.0.0.1"], None),
    (b"forwarded", ["for=192.0.2.1;for=6.6.6.6"], None),
    (b"forwarded", ["for = 192.0.2.1"], None),
    (b"forwarded", ['for="192.0.2.1'], None),
    (b"forwarded", ["for=6.6.6.6", "nonsense here", "for=10.0.0.1"], ("10.0.0.1", 0)),
    (b"forwarded", [""], None),
    (b"forwarded", [", for=192.0.2.1 ; proto=http ,"], ("192.0.2.1", 0)),
]


@pytest.mark.parametrize(("header", "values", "expected"), CLIENTS)
def test_whose_request_a_proxy_passes_on(header, values, expected):
    fields = [(b"host", b"x"), *[(header, value.encode("latin-1")) for value in values]]
    found = find_client(fields, header, trusted("10.0.0.0/8", "2001:db8::/32"))
    assert (found.end if found else None) == expected


@pytest.mark.parametrize(
    ("header", "fields", "scheme"),
    [
        (XFF, [(XFF, b"192.0.2.1"), (b"x-forwarded-proto", b"https")], "https"),
        (XFF, [(XFF, b"192.0.2.1"), (b"x-forwarded-proto", b"http, HTTPS")], "https"),
        (XFF, [(XFF, b"192.0.2.1"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-proto", b"http")], "http"),
        (XFF, [(XFF, b"192.0.2.1"), (b"x-forwarded-proto", b"javascript")], ""),
        (XFF, [(XFF, b"192.0.2.1")], ""),
        # The one who has it from the client knows how.
        (b"forwarded", [(b"forwarded", b"for=192.0.2.1;proto=https, for=10.0.0.1;proto=http")], "https"),
        (b"forwarded", [(b"forwarded", b"for=192.0.2.1"), (b"x-forwarded-proto", b"https")], ""),
    ],
)
def test_the_scheme_that_a_proxy_tells(header, fields, scheme):
    assert find_client(fields, header, trusted("10.0.0.0/8")) == Client(("192.0.2.1", 0), scheme)


def test_a_proxy_that_tells_the_scheme_alone():
    fields = [(b"x-forwarded-proto", b"https")]
    assert find_client(fields, XFF, trusted("10.0.0.0/8")) == Client(None, "https")


@given(st.binary(max_size=200), st.sampled_from([XFF, b"forwarded"]))
def test_no_value_of_a_field_does_harm(value, header):
    found = find_client([(header, value)], header, trusted("10.0.0.0/8"))
    assert found is None or found.end is None or client_identity(found.end[0])
