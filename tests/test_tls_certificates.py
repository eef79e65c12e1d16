"""Certificates: read, chosen by the name that is asked for, read again when they change, judged by --check."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tls.x509 import BadCertificate, parse_certificate, pem_certificates, when
from tests import support
from tests.client_support import directory, status
from tests.tls_support import (
    Authority,
    Pair,
    asked,
    client_context,
    connected,
    openssl,
    put,
    self_signed,
    serial_of,
    shown,
)

__all__ = ["directory"]

CONFIG = """
[server]
listen = ["127.0.0.1:0"]
{server}
[tls]
{tls}
[[routes]]
path = "/cgi-bin/"
cgi = "{directory}"
"""


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


def check(*options):
    """What --check says of options, and its exit status."""
    command = [sys.executable, "-m", "gateway", *map(str, options), "--check"]
    ended = subprocess.run(command, cwd=support.ROOT, capture_output=True, text=True, timeout=60, check=False)
    return ended.stdout + ended.stderr, ended.returncode


# What a certificate says.

SUBJECTS = [
    "/CN=localhost",
    "/C=DE/ST=Th\u00fcringen/L=Jena/O=Nobody, Inc. \\+ <Sons>; \"x\"/OU=#1\\\\2/CN= who? /emailAddress=a@example.org",
    "/DC=org/DC=example/UID=u1+CN=two of one/serialNumber=7/GN=G/SN=S/title=T/street=1 Way",
    "/CN=\u5c71\u7530 \U0001f600/1.2.3.4.5=unknown/O=\u00e9",
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_certificate_is_read_as_openssl_reads_it(tmp_path, subject):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    self_signed(cert, key, subject, "-addext", "subjectAltName=DNS:A.example.org,IP:127.0.0.1,DNS:*.example.org")
    found = parse_certificate(pem_certificates(cert.read_bytes())[0])
    told = openssl("x509", "-in", cert, "-noout", "-nameopt", "RFC2253", "-subject", "-issuer", "-serial", "-dates")
    assert told.splitlines() == [
        f"subject={found.subject}",
        f"issuer={found.issuer}",
        f"serial={found.serial}",
        f"notBefore={when(found.begins)}",
        f"notAfter={when(found.ends)}",
    ]
    assert found.names == ("a.example.org", "*.example.org")
    assert (found.addresses, found.key) == (1, "EC")


def test_dates_of_both_kinds(authority):
    pair = authority.issue("localhost", begins="19700102030405Z", ends="20991231235959Z", key="rsa")
    found = parse_certificate(pem_certificates(pair.certificate.read_bytes())[0])
    assert when(found.begins) == "Jan  2 03:04:05 1970 GMT"
    assert when(found.ends) == "Dec 31 23:59:59 2099 GMT"
    assert (found.key, found.key_size) == ("RSA", 2048)


@given(data=st.data())
def test_what_is_no_certificate_is_told(data):
    """Whatever was changed in one: it is read, or it is a bad one, and nothing else happens."""
    der = bytearray(_one())
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(der[: data.draw(st.integers(0, len(der)))]) if data.draw(st.booleans()) else bytes(der)
    try:
        parse_certificate(cut)
    except BadCertificate as bad:
        assert str(bad)


_known: list[bytes] = []


def _one() -> bytes:
    if not _known:
        pem = openssl(*["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null"])
        _known.append(pem_certificates(pem.encode())[0])
    return _known[0]


# Which one is shown.


def test_the_name_chooses_the_certificate(serve, directory, authority):
    first, exact, wild = (
        authority.issue(*names)
        for names in (["www.example.org"], ["deep.any.example.net", "Other.Example.NET"], ["*.example.net"])
    )
    server = serve(*first.options, *exact.options, *wild.options, cgi_dir=directory)
    known = {serial_of(pair.certificate): pair for pair in (first, exact, wild)}
    for name, pair in [
        ("www.example.org", first),
        ("other.example.net", exact),
        ("OTHER.example.net", exact),
        ("a.example.net", wild),
        ("deep.any.example.net", exact),
        ("deep.other.example.net", first),  # a wildcard stands for one label
        ("example.net", first),
        ("unknown.test", first),
        (None, first),
    ]:
        assert known[shown(server, name)] == pair, name
        assert known[shown(server, name, "-tls1_2")] == pair, name
    for name in ("www.example.org", "a.example.net"):
        assert status(asked(server, name=name, context=client_context(authority.certificate))) == 200
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        asked(server, name="unknown.test", context=client_context(authority.certificate))


def test_two_kinds_of_keys_for_the_same_names(serve, directory, authority):
    modern, old = authority.issue("localhost"), authority.issue("localhost", key="rsa")
    server = serve(*modern.options, *old.options, cgi_dir=directory)
    for algorithm, pair in (("ECDSA+SHA256", modern), ("RSA-PSS+SHA256", old)):
        assert shown(server, "localhost", "-sigalgs", algorithm) == serial_of(pair.certificate)


def test_a_name_that_is_none_harms_nobody(serve, directory, authority):
    pair = authority.issue("localhost")
    server = serve(*pair.options, cgi_dir=directory)
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client_context().wrap_bio(theirs, ours, server_hostname="bad-name.example")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    raw = ours.read()
    for bad in (b"b\xe4d-name.exampl\xff", b"bad..name.ex\x01mpl", b"................"):
        with server.socket() as client:
            client.sendall(raw.replace(b"bad-name.example", bad))
            assert client.recv(1)[0] in (0x15, 0x16)  # an alert, or the server's hello
    assert status(asked(server)) == 200


def test_the_configuration_file(serve, directory, authority, tmp_path):
    first, second = authority.issue("localhost"), authority.issue("*.example.org")
    both = tmp_path / "both.pem"
    both.write_bytes(second.key.read_bytes() + second.certificate.read_bytes())
    tls = f"""
certificate = "{first.certificate}"
key = "{first.key}"
minimum = "1.3"
[[tls.certificates]]
certificate = "both.pem"
"""
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(server="workers = 1", tls=tls, directory=directory))
    server = serve(config=config)
    assert shown(server, "a.example.org") == serial_of(second.certificate)
    assert shown(server, "b.test") == serial_of(first.certificate)
    assert asked(server, context=client_context(version=ssl.TLSVersion.TLSv1_3))
    with pytest.raises(ssl.SSLError, match="VERSION"):
        asked(server, context=client_context(version=ssl.TLSVersion.TLSv1_2))


MISTAKES = [
    ("minimum = '1.1'\ncertificate = 'c'", r":6: tls\.minimum: '1\.1': one of 1\.2, 1\.3"),
    ("", r"tls\.certificate: missing; name a PEM file"),
    ("key = '{key}'\n[[tls.certificates]]\ncertificate = '{cert}'\nkey = '{key}'", r"tls\.certificate: missing"),
    ("certificate = '{cert}'\nkey = '{other}'", r":7: tls\.key: .*other.key: the key is not that of the cert"),
    ("certificate = '{cert}'", r"tls\.key: .*there is no private key in it; name the key's file, too"),
    ("certificate = '{key}'", r"tls\.certificate: .*there is no certificate in it"),
    ("certificate = '{cert}'\nkey = '{locked}'", r"tls\.key: .*locked: the key is encrypted; store it without"),
    ("certificate = '{cert}'\nkey = '{key}'\nverify_client = 'optional'", r":8: tls\.verify_client: .*name a PEM file"),
    ("certificate = '{cert}'\nkey = '{key}'\nclient_ca = '{cert}'", r":8: tls\.client_ca: .*no client is asked"),
    ("certificate = '{cert}'\nkey = '{key}'\nclient_ca = '{key}'\nverify_client = 'require'", r":8: tls\.client_ca"),
    ("certificate = '{cert}'\nkey = '{key}'\nlisten = ['unix:/x']", r":8: tls\.listen\[1\]: unix:/x: TLS is for TCP"),
    ("[[tls.certificates]]\ncertificate = '{cert}'\nkey = '{key}'\n[[tls.certificates]]\ncertificate = 'no'",
     r":10: tls\.certificates\[2\]\.certificate: .*no: No such file"),
]  # fmt: skip


@pytest.mark.parametrize(("tls", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(directory, authority, tmp_path, tls, words):
    pair, other = authority.issue("localhost"), authority.issue("localhost")
    locked = tmp_path / "locked"
    openssl("pkey", "-in", pair.key, "-out", locked, "-aes128", "-passout", "pass:x")
    os.rename(other.key, tmp_path / "other.key")
    tls = tls.format(cert=pair.certificate, key=pair.key, other=tmp_path / "other.key", locked=locked)
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(server="", tls=tls, directory=directory))
    said, code = check("--config", config)
    assert code == 2
    assert re.fullmatch(rf"gateway: {config}.*{words}.*\n", said), said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-listen", "127.0.0.1:0"], "--tls-listen 127.0.0.1:0: there is no certificate; name it by --tls-cert"),
        (["--tls-client-ca", "x"], "--tls-client-ca x: there is no certificate"),
        (["CERT", "CERT", "--tls-key", "KEY"], "--tls-key KEY: 2 of --tls-cert, 1 of --tls-key"),
        (["CERT", "--tls-key", "KEY", "--tls-listen", "unix:x"], "--tls-listen unix:x: TLS is for TCP"),
        (["CERT", "--tls-key", "KEY", "--tls-verify-client", "require"], "--tls-verify-client require: whom are"),
        (["CERT", "--tls-key", "KEY", "--tls-listen", "[::1]:1", "--tls-listen", "[::1]:1"], "is given twice"),
    ],
)
def test_a_mistake_in_an_option(directory, certificate, options, words):
    cert, key = map(str, certificate)
    given = [word for option in options for word in (["--tls-cert", cert] if option == "CERT" else [option])]
    said, code = check("--cgi-dir", directory, *[key if word == "KEY" else word for word in given])
    assert code == 2
    assert words.replace("KEY", key) in said


# Read again.


@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_is_shown_without_a_word(serve, directory, authority, tmp_path, workers):
    pair, fresh, odd = (authority.issue("localhost") for _ in range(3))
    server = serve(*pair.options, cgi_dir=directory, workers=workers)
    with connected(server) as kept:
        before = [*server.workers()]
        pair.replace(fresh)
        start = server.wait_for_log(r"certificates: the files have changed").end()
        serial = serial_of(fresh.certificate)
        # Each worker was told before the log was, and reads what it is told before a connection that comes later.
        assert {shown(server, "localhost") for _ in range(8)} == {serial}
        # Only the certificate is new: its key is missing, so nothing changes, and that is said once.
        put(pair.certificate, odd.certificate)
        server.wait_for_log(r"certificates stay as they were: \S+\.key: the key is not that of", start=start)
        assert shown(server, "localhost") == serial
        put(pair.key, odd.key)
        server.wait_for_log(r"certificates: the files have changed", start=start)
        assert shown(server, "localhost") == serial_of(odd.certificate)
        assert server.errors.text[start:].count("stay as they were") == 1
        # A worker that is replaced shows it, too.
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        support.wait_until(lambda: "" if len(set(server.workers()) - set(before)) == workers else "not replaced yet")
        server.note_baseline(workers)
        assert {shown(server, "localhost") for _ in range(4)} == {serial_of(odd.certificate)}
        kept.close()


def test_a_certificate_behind_a_link(serve, directory, authority, tmp_path):
    """Let's Encrypt's clients keep a directory of links, which they lead elsewhere."""
    old, fresh = authority.issue("localhost"), authority.issue("localhost")
    live = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    live.certificate.symlink_to(old.certificate)
    live.key.symlink_to(old.key)
    server = serve(*live.options, cgi_dir=directory)
    for link, target in ((live.certificate, fresh.certificate), (live.key, fresh.key)):
        link.unlink()
        link.symlink_to(target)
    server.wait_for_log(r"certificates: the files have changed")
    assert shown(server, "localhost") == serial_of(fresh.certificate)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
def test_keys_are_for_root_alone(serve, directory, authority, tmp_path):
    """Workers run as another user, who can read neither the keys nor the directory that they are in."""
    pair, fresh, third = (authority.issue("localhost") for _ in range(3))
    safe = tmp_path / "private"
    safe.mkdir(mode=0o700)
    live = Pair(safe / "cert.pem", safe / "key.pem")
    live.replace(pair)
    os.chmod(live.key, 0o600)
    server = serve(*live.options, "--user", "nobody", cgi_dir=directory, workers=2)
    assert all(map(_uid, server.workers()))
    assert shown(server, "localhost") == serial_of(pair.certificate)
    live.replace(fresh)
    start = server.wait_for_log(r"certificates: the files have changed").end()
    assert {shown(server, "localhost") for _ in range(6)} == {serial_of(fresh.certificate)}
    live.replace(third)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(r"^gateway: reloaded", start=start)
    server.note_baseline(2)
    assert {shown(server, "localhost") for _ in range(6)} == {serial_of(third.certificate)}
    assert status(asked(server, "/")) == 200


def _uid(pid):
    return int(re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


# --check.


@pytest.mark.parametrize(
    ("wish", "words", "code"),
    [
        ({}, r"localhost, and for all other names; EC, until Dec 31 23:59:59 2099 GMT", 0),
        ({"ends": "20210101000000Z"}, r"FAILS  it expired on Jan  1 00:00:00 2021 GMT; renew it", 1),
        ({"begins": "20980101000000Z"}, r"FAILS  it is not valid before Jan  1 00:00:00 2098 GMT", 1),
        ({"key": "rsa"}, r"RSA 2048, until", 0),
    ],
)
def test_check_judges_certificates(directory, authority, wish, words, code):
    pair = authority.issue("localhost", **wish)
    said, status_ = check("--cgi-dir", directory, *pair.options)
    assert re.search(words, said), said
    assert status_ == code
    assert ("certificates would be refused" in said) == bool(code)
    assert "note   the certificate of its issuer, CN=Authority, is not in the file" in said


def test_check_sees_what_is_soon_and_what_is_open(directory, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", "/CN=localhost"]
    openssl(*words, "-keyout", key, "-out", cert)
    key.chmod(0o644)
    said, code = check("--cgi-dir", directory, "--tls-cert", cert, "--tls-key", key, "--tls-listen", "127.0.0.1:7443")
    assert "listen   127.0.0.1:7443, TLS" in said
    assert re.search(r"note   it expires in (9|10) days; renew it", said)
    assert "FAILS  it has no subjectAltName" in said
    assert f"note   every user of this machine can read the key in {key}; chmod 600" in said
    assert code == 1


def test_check_refuses_weak_ones(directory, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "10", "-subj", "/CN=localhost"]
    openssl(*words, "-keyout", key, "-out", cert)
    said, code = check("--cgi-dir", directory, "--tls-cert", cert, "--tls-key", key)
    assert code == 2
    assert "the key is weak; take RSA of 2048 bits or EC" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="root can become another")
def test_it_is_said_who_cannot_read(certificate):
    cert, key = certificate
    cert.parent.chmod(0o700)
    program = (
        "import json, os, sys\nfrom gateway.settings import KeyPair; from gateway.tls.certificates import read_pair\n"
        "import pwd; pwd.getpwuid(0); os.setgid(65534); os.setuid(65534)\n"
        "try: read_pair(KeyPair(*json.loads(sys.argv[1])))\nexcept ValueError as e: print(e)"
    )
    command = [sys.executable, "-c", program, json.dumps([str(cert), str(key)])]
    ended = subprocess.run(command, cwd=support.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == (
        f"{cert}: Permission denied for nobody (uid 65534); it is read by who starts the server, not by its user\n"
    ), ended.stderr
