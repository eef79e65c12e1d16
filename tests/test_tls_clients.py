"""Certificates of clients, and what programs are told of TLS."""

from __future__ import annotations

import re
import ssl

import pytest

from tests import misbehaviour, support
from tests.client_support import directory, request, status, told
from tests.tls_support import Authority, asked, client_context, connected, openssl, ports

__all__ = ["directory"]

APP = '''
def application(environ, start_response):
    body = "".join(f"{name}={value}\\n" for name, value in environ.items() if "SSL" in name or name == "HTTPS").encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
'''
# What a client would like to be believed.
FORGED = ["SSL-Client-Verify: SUCCESS", "SSL_CLIENT_S_DN: CN=root", "X-SSL-Client-S-DN: CN=root", "HTTPS: off"]


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def server(serve, directory, authority, tmp_path):
    """Asks for certificates, requires none; CGI at /cgi-bin/, FastCGI at /app/."""
    pair = authority.issue("localhost", "www.example.org")
    (tmp_path / "app.py").write_text(APP)
    config = tmp_path / "gateway.toml"
    config.write_text(f"""
[server]
listen = ["127.0.0.1:0"]
workers = 1
[tls]
certificate = "{pair.certificate}"
key = "{pair.key}"
client_ca = "{authority.certificate}"
verify_client = "optional"
[[routes]]
path = "/cgi-bin/"
cgi = "{directory}"
[[routes]]
path = "/app/"
fastcgi = "pool:app"
[pools.app]
app = "app:application"
chdir = "{tmp_path}"
max_children = 1
""")
    started = serve(config=config, wait=False)
    started.wait_for_log(r"^gateway: ready")
    started.port = ports(started)["https"]
    yield started
    # Its pool is there while it is.
    started.stop()


SUBJECT = "/C=DE/O=Nobody, Inc./OU=B\u00fcro/CN=alice"


@pytest.mark.parametrize("path", ["/cgi-bin/env", "/app/"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_program_is_told_of_a_client_with_a_certificate(server, authority, path, version):
    own = authority.issue("alice.example.org", subject=SUBJECT)
    context = client_context(authority.certificate, own=own, version=version)
    with connected(server, context, "www.example.org") as client:
        client.sendall(request(path, *FORGED))
        assert b"SSL_CLIENT_S_DN=CN=alice" in misbehaviour.read_response(client)
        client.sendall(request(path, close=True))
        answer = support.receive_all(client)
        env = told(answer)
        cipher = client.cipher()
    assert cipher
    expected = {
        "SSL_PROTOCOL": version.name.replace("_", "."),
        "SSL_CIPHER": cipher[0],
        "SSL_SESSION_RESUMED": "Initial",
        "SSL_TLS_SNI": "www.example.org",
        "SSL_SERVER_NAME": "www.example.org",
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": "CN=alice,OU=B\\C3\\BCro,O=Nobody\\, Inc.,C=DE",
        "SSL_CLIENT_I_DN": "CN=Authority",
        "SSL_CLIENT_V_START": "Jan  1 00:00:00 2020 GMT",
        "SSL_CLIENT_V_END": "Dec 31 23:59:59 2099 GMT",
        "SSL_CLIENT_M_SERIAL": openssl("x509", "-in", own.certificate, "-noout", "-serial").strip()[7:],
        "SSL_CLIENT_CERT": "-----BEGIN CERTIFICATE-----",
    }
    assert {name: env.get(name) for name in expected} == expected
    assert env["HTTPS"] == "on"
    shown = re.search(r"SSL_CLIENT_CERT=(-----BEGIN.*?-----END CERTIFICATE-----)", answer.decode(), re.DOTALL)
    assert shown
    assert shown[1] in own.certificate.read_text()


@pytest.mark.parametrize("path", ["/cgi-bin/env", "/app/"])
def test_a_field_makes_no_variable(server, authority, path):
    """Without a certificate the client has none, whatever it says."""
    answer = asked(server, path, *FORGED, context=client_context(authority.certificate))
    env = told(answer)
    assert env["SSL_CLIENT_VERIFY"] == "NONE"
    assert env["HTTPS"] == "on"
    assert not [name for name in env if name.startswith("SSL_CLIENT_") and name != "SSL_CLIENT_VERIFY"]
    assert env["HTTP_SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert "HTTP_SSL_CLIENT_S_DN" not in env


def test_a_session_remembers_the_client(server, authority):
    context = client_context(authority.certificate, own=authority.issue(subject="/CN=bob"))
    session = None
    for expected in ("Initial", "Resumed"):
        with connected(server, context, session=session) as client:
            client.sendall(request("/cgi-bin/env", close=True))
            env = told(support.receive_all(client))
            session = client.session
        assert (env["SSL_SESSION_RESUMED"], env["SSL_CLIENT_VERIFY"]) == (expected, "SUCCESS")
        assert env["SSL_CLIENT_S_DN"] == "CN=bob"


def test_a_certificate_that_is_not_good_ends_the_handshake(server, authority, tmp_path):
    stranger = Authority(tmp_path / "stranger", "Stranger")
    for own in (stranger.issue(), authority.issue(ends="20210101000000Z")):
        context = client_context(authority.certificate, own=own, version=ssl.TLSVersion.TLSv1_2)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            asked(server, context=context)
            pytest.fail("it was served")
    assert status(asked(server)) == 200


def test_who_has_none_and_needs_one_is_told(serve, directory, authority):
    pair, own = authority.issue("localhost"), authority.issue()
    options = ["--tls-client-ca", str(authority.certificate), "--tls-verify-client", "require"]
    server = serve(*pair.options, *options, cgi_dir=directory)
    answer = asked(server, "/cgi-bin/env")
    assert status(answer) == 400
    assert b"No required SSL certificate was sent" in answer
    assert b"\r\nConnection: close\r\n" in answer
    server.wait_for_access(r'"GET /cgi-bin/env HTTP/1\.1" 400 .* outcome=refused')
    context = client_context(authority.certificate, own=own)
    assert told(asked(server, "/cgi-bin/env", context=context))["SSL_CLIENT_VERIFY"] == "SUCCESS"


def test_clients_behind_a_proxy_have_no_certificate(serve, directory, authority):
    """What a proxy shows of itself is not its clients'."""
    pair, own = authority.issue("localhost"), authority.issue(subject="/CN=proxy")
    options = ["--tls-client-ca", str(authority.certificate), "--tls-verify-client", "require"]
    options += ["--real-ip", "127.0.0.1"]
    server = serve(*pair.options, *options, cgi_dir=directory)
    context = client_context(authority.certificate, own=own)
    env = told(asked(server, "/cgi-bin/env", "X-Forwarded-For: 192.0.2.1", context=context))
    assert env["REMOTE_ADDR"] == "192.0.2.1"
    assert not [name for name in env if name.startswith("SSL_")]
    assert told(asked(server, "/cgi-bin/env", context=context))["SSL_CLIENT_S_DN"] == "CN=proxy"
