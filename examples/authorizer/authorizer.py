"""A FastCGI Authorizer: asks for a name and a password (HTTP Basic) before anything below a prefix is served.

    python examples/authorizer/authorizer.py ada >> users
    python -m fcgi_pool --listen unix:/tmp/authorizer.sock --children 2 \
        --chdir "$PWD/examples/authorizer" --env USERS="$PWD/users" --app authorizer:application
    python -m gateway --cgi-dir cgi-bin --authorizer /cgi-bin/=unix:/tmp/authorizer.sock --connections 2

The first line asks for a password and writes a line for the file of users. What the Authorizer answers with status
200 grants the request, and its Variable-REMOTE_USER becomes the program's REMOTE_USER and stands in the access log;
any other answer is the client's (FastCGI 1.0, section 6.3). Passwords are sent as they are: use it with --tls-cert.
"""

import base64
import binascii
import functools
import getpass
import hashlib
import hmac
import os
import sys

REFUSED = b"""\
<!DOCTYPE html>
<html lang="en">
<title>Who are you?</title>
<p>A name and a password are needed here.
"""


def application(environ, start_response):
    """Grant or refuse: a WSGI application in the role of an Authorizer; our runtime takes that role, too."""
    name, password = credentials(environ.get("HTTP_AUTHORIZATION", ""))
    if name and is_right(stored(name), password):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Variable-REMOTE_USER", name),
                                  ("Variable-AUTH_TYPE", "Basic")])  # fmt: skip
        return []
    start_response("401 Unauthorized", [("Content-Type", "text/html; charset=utf-8"),
                                        ("WWW-Authenticate", 'Basic realm="Members", charset="UTF-8"'),
                                        ("Content-Length", str(len(REFUSED)))])  # fmt: skip
    return [REFUSED]


def credentials(field):
    """Return name and password of an Authorization field (RFC 7617), empty where it is none."""
    scheme, _, encoded = field.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    # The name becomes a header field and stands in the log.
    return (name, password) if colon and name.isascii() and name.isprintable() else ("", "")


def stored(name):
    """Return what the file of users has for a name, '' for nobody. Read each time: a change counts at once."""
    with open(os.environ["USERS"], encoding="utf-8") as file:
        for line in file:
            known, _, rest = line.strip().partition(":")
            if known == name:
                return rest
    return ""


@functools.lru_cache(maxsize=256)
def is_right(salted, password):
    """Whether a password is the stored one. Finding out is slow on purpose, so the answer is remembered."""
    salt, _, expected = salted.partition(":")
    return hmac.compare_digest(digest(password, salt), expected) and bool(expected)


def digest(password, salt):
    """Return the scrypt digest of a password (RFC 7914)."""
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()


if __name__ == "__main__":
    if len(sys.argv) != 2 or ":" in sys.argv[1]:
        sys.exit("usage: authorizer.py NAME >> users")
    fresh = os.urandom(16).hex()
    print(f"{sys.argv[1]}:{fresh}:{digest(getpass.getpass(), fresh)}")
