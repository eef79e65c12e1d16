"""Real proxies in front, with the PROXY protocol and with fields, and a real attacker."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests import misbehaviour, support
from tests.client_support import ask, client, directory, request, status, tls, told
from tests.web_servers import free_port, started

__all__ = ["directory"]

ENV = request("/cgi-bin/env", close=True)
STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"

NGINX = """\
load_module @STREAM@;
daemon off;
master_process off;
pid @WORK@/pid;
error_log stderr;
events {}
stream {
    server {
        listen 127.0.0.1:@PORT@;
        proxy_pass 127.0.0.1:@PROXIED@;
        proxy_protocol on;
    }
}
http {
    access_log off;
    client_body_temp_path @WORK@/body;
    fastcgi_temp_path @WORK@/fastcgi;
    proxy_temp_path @WORK@/proxy;
    scgi_temp_path @WORK@/scgi;
    uwsgi_temp_path @WORK@/uwsgi;
    server {
        listen 127.0.0.1:@HTTP@;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto https;
        location / { proxy_pass http://127.0.0.1:@PLAIN@; }
    }
}
"""
HAPROXY = """\
defaults
    mode tcp
    timeout connect 10s
    timeout client 30s
    timeout server 30s
listen one
    bind 127.0.0.1:@PORT@
    server gateway 127.0.0.1:@PROXIED@ send-proxy
listen two
    bind 127.0.0.1:@TWO@
    option httpchk GET /cgi-bin/fine?check
    server gateway 127.0.0.1:@PROXIED@ send-proxy-v2 check inter 100ms
listen three
    bind 127.0.0.1:@THREE@
    server gateway 127.0.0.1:@PROXIED@ send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id
listen fields
    mode http
    option forwardfor
    bind 127.0.0.1:@FIELDS@
    server gateway 127.0.0.1:@PLAIN@
"""


@pytest.fixture
def behind(serve, directory):
    """A server with one listener for the PROXY protocol and one for fields; gives it and its two ports."""

    def start(*options, **more):
        proxied, plain = free_port(), free_port()
        server = serve(
            "--listen", f"127.0.0.1:{plain}", "--proxy-protocol", f"127.0.0.1:{proxied}=127.0.0.1",
            "--real-ip", "127.0.0.1", *options, listen=f"127.0.0.1:{proxied}", cgi_dir=directory, **more,
        )  # fmt: skip
        return server, proxied, plain

    return start


def configured(text: str, work: Path, **values: object) -> str:
    """Write a configuration and return its path."""
    for key, value in {"WORK": work, "STREAM": STREAM, **values}.items():
        text = text.replace(f"@{key.upper()}@", str(value))
    path = work / "server.conf"
    path.write_text(text)
    return str(path)


class Port:
    """Where a client asks."""

    host = "127.0.0.1"

    def __init__(self, port: int) -> None:
        self.port = port


def test_nginx_in_front(behind, tmp_path):
    support.need("nginx")
    support.need_file(STREAM)
    server, proxied, plain = behind("--limit-connections", "2", workers=2)
    ports = {"port": free_port(), "http": free_port()}
    config = configured(NGINX, tmp_path, proxied=proxied, plain=plain, **ports)
    command = ["nginx", "-p", str(tmp_path), "-c", config, "-e", "stderr"]
    with started(command, ports["port"], tmp_path / "log"):
        # All of 127.0.0.0/8 are this machine; nginx connects from 127.0.0.1.
        env = told(ask(Port(ports["port"]), ENV, "127.0.0.5"))
        assert (env["REMOTE_ADDR"], env["SERVER_PORT"]) == ("127.0.0.5", str(ports["port"]))
        server.wait_for_access(r"^127\.0\.0\.5 ")
        forged = request("/cgi-bin/env", "X-Forwarded-For: 6.6.6.6", close=True)
        env = told(ask(Port(ports["http"]), forged, "127.0.0.6"))
        assert (env["REMOTE_ADDR"], env["REQUEST_SCHEME"], env["HTTPS"]) == ("127.0.0.6", "https", "on")
        assert env["HTTP_X_FORWARDED_FOR"] == "6.6.6.6, 127.0.0.6"
        # A limit holds for each of nginx's clients, not for nginx.
        with client(Port(ports["port"]), "127.0.0.5") as one, client(Port(ports["port"]), "127.0.0.5") as two:
            for sock in (one, two):
                sock.sendall(request())
                assert status(misbehaviour.read_response(sock)) == 200
            assert status(ask(Port(ports["port"]), ENV, "127.0.0.5")) == 429
            assert status(ask(Port(ports["port"]), ENV, "127.0.0.7")) == 200


def test_haproxy_in_front(behind, tmp_path):
    support.need("haproxy")
    server, proxied, plain = behind(workers=2)
    ports = {name: free_port() for name in ("port", "two", "three", "fields")}
    config = configured(HAPROXY, tmp_path, proxied=proxied, plain=plain, **ports)
    with started(["haproxy", "-db", "-f", config], ports["port"], tmp_path / "log"):
        for name, port in ports.items():
            env = told(ask(Port(port), ENV, "127.0.0.5"))
            assert env["REMOTE_ADDR"] == "127.0.0.5"
            if name != "fields":
                assert env["SERVER_PORT"] == str(port)
        # Its checks are connections of its own (LOCAL).
        server.wait_for_access(r'^127\.0\.0\.1 - - \[.*"GET /cgi-bin/fine\?check HTTP/1\.0" 200 ')
        assert "DOWN" not in (tmp_path / "log").read_text()
        assert not support.warnings_in(server.errors.text)


def test_haproxy_in_front_of_tls(behind, tmp_path, certificate):
    support.need("haproxy")
    cert, key = certificate
    _, proxied, plain = behind("--tls-cert", str(cert), "--tls-key", str(key))
    ports = {name: free_port() for name in ("port", "two", "three", "fields")}
    config = configured(HAPROXY, tmp_path, proxied=proxied, plain=plain, **ports)
    with started(["haproxy", "-db", "-f", config], ports["port"], tmp_path / "log"):
        for name in ("port", "three"):
            with client(Port(ports[name]), "127.0.0.5") as sock, tls(sock, cert) as secure:
                secure.sendall(ENV)
                env = told(support.receive_all(secure))
            assert (env["REMOTE_ADDR"], env["HTTPS"]) == ("127.0.0.5", "on")


def test_curl_speaks_the_proxy_protocol(behind):
    support.need("curl")
    _, proxied, plain = behind()
    command = ["curl", "-s", "--haproxy-protocol", "--interface", "127.0.0.5", f"http://127.0.0.1:{proxied}/cgi-bin/env"]
    refused = subprocess.run([*command, "--max-time", "30"], capture_output=True, text=True, check=False)
    # From an address that is no trusted proxy's.
    assert refused.stdout == ""
    del command[3:5]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "REMOTE_ADDR=127.0.0.1\n" in found.stdout
    del command[2]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""
    command[-1] = f"http://127.0.0.1:{plain}/cgi-bin/env"
    command += ["-H", "X-Forwarded-For: 192.0.2.1"]
    assert "REMOTE_ADDR=192.0.2.1\n" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


# An attacker of the trade: slowhttptest. It ends when all its connections have been closed, or after its time.
ATTACKS = {
    "slow heads (slowloris)": ["-H", "-i", "1", "-x", "24"],
    "slow bodies (R-U-Dead-Yet)": ["-B", "-i", "1", "-s", "100000", "-x", "10", "-t", "POST"],
    "slow reading": ["-X", "-w", "10", "-y", "20", "-n", "1", "-z", "5", "-k", "3"],
    "overlapping ranges (Apache killer)": ["-R", "-a", "5", "-b", "3000"],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_does_not_keep_others_from_being_served(serve, directory, tmp_path, options):
    support.need("slowhttptest")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/big").write_bytes(bytes(20_000_000))
    server = serve(
        "--header-timeout", "3", "--body-timeout", "5", "--send-timeout", "5", "--keepalive-timeout", "5",
        "--min-body-rate", "500", "--min-send-rate", "500", "--rate-window", "2",
        "--php", f"/files/={tmp_path / 'site'}", "--php-server", f"unix:{tmp_path / 'none'}",
        cgi_dir=directory, workers=2,
    )  # fmt: skip
    path = "cgi-bin/echo" if "-B" in options else "files/big"
    attack = subprocess.Popen(
        ["slowhttptest", *options, "-c", "300", "-r", "150", "-l", "8", "-p", "3",
         "-u", f"http://127.0.0.1:{server.port}/{path}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    served = 0
    try:
        while attack.poll() is None:
            # From another address, as from elsewhere.
            assert status(ask(server, request(close=True), "127.0.0.2")) == 200
            served += 1
        output = re.sub(r"\x1b\[[0-9;]*m", "", attack.communicate()[0])
    finally:
        if attack.poll() is None:
            attack.send_signal(signal.SIGKILL)
            attack.communicate()
    assert served > 3
    assert re.search(r"service available:\s+YES", output), output
    # What it left open is closed by the deadlines; the fixture checks that nothing of it is left.
    server.check_idle()
