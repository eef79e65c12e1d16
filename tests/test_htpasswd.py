"""Files of passwords: what is taken, what is refused and in which words; names and passwords out of a request."""

from __future__ import annotations

import base64

import bcrypt
import pytest

from gateway.clients import htpasswd
from gateway.clients.htpasswd import HtpasswdError, Passwords, parse_htpasswd, read_htpasswd
from gateway.handlers.basic_auth import read_credentials

HASH = bcrypt.hashpw(b"secret", b"$2b$04$abcdefghijklmnopqrstuu")


def test_names_and_hashes():
    text = b"# people\n\nalice:" + HASH + b"\r\n  \nb\xc3\xb6b:" + HASH.replace(b"$2b", b"$2y") + b":more\n"
    users = parse_htpasswd(text)
    assert list(users) == [b"alice", "böb".encode()]
    found = Passwords(users)
    assert found.verify(b"alice", b"secret")
    assert found.verify("böb".encode(), b"secret")
    for user, password in [(b"alice", b"Secret"), (b"alice", b""), (b"carol", b"secret"), (b"", b"secret")]:
        assert not found.verify(user, password)
    assert repr(found) == "<Passwords: 2 users>"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "SHA-1"),
        (b"bob:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "MD5"),
        (b"bob:$1$rasmusle$rISCgZzpwk3UhDidwXvin0", "MD5"),
        (b"bob:rl.3StKT.4T8M", "crypt"),
        (b"bob:secret", "crypt or no hash"),
        (b"bob:", "crypt or no hash"),
        (b"bob:$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy", "supp"),
        (b"bob:" + HASH[:-1], "damaged"),
        (b"bob:" + HASH.replace(b"$04$", b"$03$"), "cost 3"),
        (b"bob:" + HASH.replace(b"$04$", b"$17$"), "cost 17"),
        (b"bob", "NAME:HASH"),
        (b":" + HASH, "NAME:HASH"),
        (b"b\x07b:" + HASH, "NAME:HASH"),
        (b"alice:" + HASH, "twice"),
    ],
)  # fmt: skip
def test_what_is_not_safe_is_refused_by_line_and_reason(line, words):
    with pytest.raises(HtpasswdError, match=words) as caught:
        parse_htpasswd(b"alice:" + HASH + b"\n" + line)
    assert str(caught.value).startswith("line 2: ")


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        read_htpasswd(str(tmp_path / "absent"))
    (tmp_path / "large").write_bytes(b"#" * (htpasswd._FILE_SIZE + 1))
    with pytest.raises(HtpasswdError, match="larger"):
        read_htpasswd(str(tmp_path / "large"))


def test_a_password_is_checked_as_far_as_bcrypt_looks():
    long = b"x" * 72
    found = Passwords({b"alice": bcrypt.hashpw(long, bcrypt.gensalt(4))})
    assert found.verify(b"alice", long + b"what comes after is not looked at, as with Apache")
    assert not found.verify(b"alice", long[:-1])


def test_who_is_not_there_costs_as_much(monkeypatch):
    """One hash is checked for every name, known or not, and always the same one for one name."""
    checked = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: checked.append(hashed) or True)
    hashes = [b"cheap", b"dear"]
    found = Passwords(dict(zip([b"alice", b"bob"], hashes, strict=True)))
    assert found.verify(b"alice", b"")
    assert checked.pop() == b"cheap"
    seen = set()
    for number in range(100):
        name = b"nobody %d" % number
        assert not found.verify(name, b"")
        assert not found.verify(name, b"")
        assert len(checked) == 2
        assert checked[0] == checked[1]
        seen.add(checked[0])
        checked.clear()
    assert seen == set(hashes)
    assert not Passwords({}).verify(b"alice", b"")
    assert len(checked) == 1


@pytest.mark.parametrize("raw", [b"alice:secret", b"alice:", b"alice:a:b", ":ä ".encode(), b"alice:" + b"x" * 2000])
def test_credentials(raw):
    token = base64.b64encode(raw)
    for value in (b"Basic " + token, b"bASIC  " + token, b"basic " + token + b" "):
        assert read_credentials(value) == tuple(raw.split(b":", 1))


@pytest.mark.parametrize(
    "value",
    [
        b"", b"Basic", b"Basic ", b"Bearer YTpi", b"Basic YTpi YTpi", b"Basic YTp", b"Basic Y*pi", b"BasicYTpi",
        b"Basic " + base64.b64encode(b"nocolon"), b"Basic " + base64.b64encode(b"a\0:b"),
        b"Basic " + base64.b64encode(b"a:b\n"), b"Basic " + base64.b64encode(b"a:\x7f"),
    ],
)  # fmt: skip
def test_no_credentials(value):
    assert read_credentials(value) is None
