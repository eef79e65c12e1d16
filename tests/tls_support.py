"""Certificates that are made for a test, and clients that speak TLS."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.client_support import request
from tests.support import PATIENCE, Server, missing, need, receive_all

_CA = """
[ca]
default_ca = ours
[ours]
database = {directory}/index
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
email_in_dn = yes
[any]
commonName = optional
organizationName = optional
"""
_KEYS = {"ec": "ec -pkeyopt ec_paramgen_curve:prime256v1", "rsa": "rsa:2048"}


def openssl(*arguments: str | Path, text: str = "") -> str:
    """Run the openssl command; return what it prints."""
    need("openssl")
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """How the server is told."""
        return ["--tls-cert", str(self.certificate), "--tls-key", str(self.key)]

    def replace(self, other: Pair) -> None:
        """Have another certificate in these files, each of them whole at any moment."""
        put(self.certificate, other.certificate)
        put(self.key, other.key)


def put(path: Path, other: Path) -> None:
    """Have another file in the place of one."""
    fresh = path.with_suffix(".new")
    shutil.copy(other, fresh)
    os.rename(fresh, path)


class Authority:
    """Who signs certificates."""

    def __init__(self, directory: Path, name: str = "Authority") -> None:
        directory.mkdir()
        self._directory = directory
        self._count = 0
        self.certificate, self.key = directory / "ca.pem", directory / "ca.key"
        self_signed(self.certificate, self.key, f"/CN={name}")
        (directory / "index").touch()
        (directory / "ca.cnf").write_text(_CA.format(directory=directory))

    def issue(
        self,
        *names: str,
        subject: str = "/CN=somebody",
        key: str = "ec",
        begins: str = "20200101000000Z",
        ends: str = "20991231235959Z",
    ) -> Pair:
        """Return a certificate for `names`, from and until a moment."""
        self._count += 1
        stem = self._directory / f"{self._count}-{names[0].replace('*', 'any') if names else 'client'}"
        pair = Pair(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        wish, extensions = stem.with_suffix(".csr"), stem.with_suffix(".ext")
        words = [*f"req -newkey {_KEYS[key]} -nodes -utf8 -multivalue-rdn".split(), "-subj", subject]
        openssl(*words, "-keyout", pair.key, "-out", wish)
        extensions.write_text("subjectAltName = " + ",".join(f"DNS:{name}" for name in names) if names else "")
        openssl(
            "ca", "-batch", "-notext", "-preserveDN", "-config", self._directory / "ca.cnf", "-policy", "any",
            "-cert", self.certificate, "-keyfile", self.key, "-in", wish, "-out", pair.certificate,
            "-outdir", self._directory, "-extfile", extensions, "-startdate", begins, "-enddate", ends, "-noemailDN",
        )  # fmt: skip
        return pair


def self_signed(certificate: Path, key: Path, subject: str, *more: str) -> None:
    """Make a certificate that is signed by its own key."""
    words = f"req -x509 -newkey {_KEYS['ec']} -nodes -days 300 -utf8 -multivalue-rdn".split()
    openssl(*words, "-subj", subject, *more, "-keyout", key, "-out", certificate)


def client_context(
    *trusted: Path, own: Pair | None = None, version: ssl.TLSVersion | None = None, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """Return a client's context; who trusts nobody looks at no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not trusted:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in trusted:
        context.load_verify_locations(path)
    if own:
        context.load_cert_chain(own.certificate, own.key)
    if version:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class KeyUpdates:
    """A client that asks for new keys, which Python's library cannot; by OpenSSL itself."""

    def __init__(self, plain: socket.socket) -> None:
        found = ctypes.util.find_library("ssl")
        if not found:
            missing("libssl")
        self._ssl = library = ctypes.CDLL(found)
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new", "BIO_s_mem", "BIO_new"):
            getattr(library, name).restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(library.SSL_CTX_new(ctypes.c_void_p(library.TLS_client_method())))
        self._connection = ctypes.c_void_p(library.SSL_new(self._context))
        incoming, self._outgoing = (
            ctypes.c_void_p(library.BIO_new(ctypes.c_void_p(library.BIO_s_mem()))) for _ in range(2)
        )
        self._buffer = ctypes.create_string_buffer(65536)
        library.SSL_set_bio(self._connection, incoming, self._outgoing)
        while library.SSL_connect(self._connection) != 1:
            plain.sendall(self._made())
            data = plain.recv(65536)
            assert data
            library.BIO_write(incoming, data, len(data))
        plain.sendall(self._made())

    def close(self) -> None:
        """Give back what OpenSSL holds."""
        self._ssl.SSL_free(self._connection)
        self._ssl.SSL_CTX_free(self._context)

    def records(self, data: bytes) -> bytes:
        """Return the records that carry `data`."""
        assert self._ssl.SSL_write(self._connection, data, len(data)) == len(data)
        return self._made()

    def request(self) -> bytes:
        """Return a record that asks for new keys, as it tells of its own."""
        assert self._ssl.SSL_key_update(self._connection, 1) == 1  # SSL_KEY_UPDATE_REQUESTED
        assert self._ssl.SSL_do_handshake(self._connection) == 1
        return self._made()

    def _made(self) -> bytes:
        made = b""
        while (size := self._ssl.BIO_read(self._outgoing, self._buffer, len(self._buffer))) > 0:
            made += self._buffer[:size]
        return made


@contextlib.contextmanager
def connected(
    server: Server, context: ssl.SSLContext | None = None, name: str = "localhost", port: int = 0,
    session: ssl.SSLSession | None = None,
) -> Iterator[ssl.SSLSocket]:  # fmt: skip
    """A TLS connection."""
    with socket.create_connection((server.host, port or server.port), PATIENCE) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made = (context or client_context()).wrap_socket(plain, server_hostname=name, session=session)
        with made:
            yield made


def asked(
    server: Server, path: str = "/cgi-bin/fine", *fields: str, context: ssl.SSLContext | None = None,
    name: str = "localhost", port: int = 0,
) -> bytes:  # fmt: skip
    """What is answered on a connection of its own."""
    with connected(server, context, name, port) as client:
        client.sendall(request(path, *fields, close=True))
        return receive_all(client)


def shown(server: Server, name: str | None, *options: str, port: int = 0) -> str:
    """Return the serial number of the certificate that is shown to who asks for `name`."""
    sni = ["-servername", name] if name else ["-noservername"]
    said = openssl("s_client", "-connect", f"127.0.0.1:{port or server.port}", *sni, *options)
    return serial_of(said)


def serial_of(pem: str | Path) -> str:
    """Return the serial number of a certificate."""
    text = pem.read_text() if isinstance(pem, Path) else pem
    return openssl("x509", "-noout", "-serial", text=text).strip().removeprefix("serial=")


def ports(server: Server) -> dict[str, int]:
    """Return the port of each scheme, where there is one each."""
    found = re.findall(r"^gateway: listening on (https?)://[^ ]*:(\d+)/$", server.errors.text, re.MULTILINE)
    return {scheme: int(port) for scheme, port in found}
