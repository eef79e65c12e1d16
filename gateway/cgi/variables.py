"""The one builder of CGI variables (RFC 3875 section 4.1). Pure: values in, a mapping out.

The mapping is built from nothing, so none of the server's own variables reach a program. What is constant for a
mount or for a connection is made once and merged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from gateway.http.message import Request
from gateway.http.response import SERVER_SOFTWARE

Variables = dict[bytes, bytes]

# Where a program, and the env of its first line, finds commands; the same for everyone, whatever the server's is.
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CONSTANT: Variables = {
    b"GATEWAY_INTERFACE": b"CGI/1.1",
    b"SERVER_SOFTWARE": SERVER_SOFTWARE.encode(),
    # php-cgi runs only where a server says that it called it.
    b"REDIRECT_STATUS": b"200",
    b"PATH": DEFAULT_PATH,
}

# Not passed as HTTP_*: they have variables of their own, or were undone with the transfer coding, or would pose as
# the proxy of the programs' own HTTP client (CVE-2016-5385, "httpoxy").
_OWN_PLACE = frozenset((b"content-length", b"content-type", b"transfer-encoding", b"proxy", b"host", b"authorization"))
# X_Y would pose as X-Y; other bytes have no place in a variable's name.
_PLAIN_NAME = re.compile(rb"[a-z0-9-]+")

_OF_THE_START = re.compile(rb"PYTHON|PERL|LD_|LC_|LANG|LOCPATH|NLSPATH|HOME$|PATH$|TZ|MALLOC_|GLIBC_|OPENSSL_|SSL_")


@dataclass(slots=True)
class Script:
    """Where a program was found: SCRIPT_NAME, its file ('' for an application that has none), and what of the path is
    left for it. `notes` is where those who work something out of it keep that.
    """

    name: bytes
    filename: bytes
    path_info: bytes
    notes: dict[object, object] = field(default_factory=dict, compare=False, repr=False)


def concerns_start(name: bytes) -> bool:
    """Whether an interpreter, its libraries or its loader look at a variable at their start."""
    return _OF_THE_START.match(name) is not None


def mount_variables(document_root: bytes, env: tuple[tuple[str, str], ...]) -> Variables:
    """Return what is the same for every request to a mount; `env` is the administrator's and wins.

    An application that is not made of files has no document root.
    """
    own = {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in env}
    root = {b"DOCUMENT_ROOT": document_root} if document_root else {}
    return {**_CONSTANT, **root, **own}


def connection_variables(
    client: tuple[str, int] | None, local: tuple[str, int] | None, scheme: str, tls: bool
) -> Variables:
    """Return what is the same for every request of a connection.

    `client` and `local` are (address, port) of TCP. A connection over a Unix socket has neither: it comes from this
    machine, and the port asked for is known by the Host field alone. A proxy that tells the client need not tell its
    port: then that is 0.
    """
    variables: Variables = {b"REQUEST_SCHEME": scheme.encode()}
    variables[b"REMOTE_ADDR"] = client[0].encode() if client else b"127.0.0.1"
    variables[b"SERVER_ADDR"] = local[0].encode() if local else b"127.0.0.1"
    if client and client[1]:
        variables[b"REMOTE_PORT"] = b"%d" % client[1]
    if local:
        variables[b"SERVER_PORT"] = b"%d" % local[1]
    if tls:
        variables[b"HTTPS"] = b"on"
    return variables


def request_variables(
    request: Request,
    script: Script,
    mount: Variables,
    connection: Variables,
    body_length: int | None,
    pass_authorization: bool,
) -> Variables:
    """Return all variables of one request. `body_length` counts its body, if there is one, as the program reads it."""
    known = mount | connection
    return {
        **known,
        **authority_variables(request.authority, known),
        **script_variables(script, mount.get(b"DOCUMENT_ROOT")),
        **line_variables(request, body_length),
        **field_variables(request, pass_authorization),
    }


def line_variables(request: Request, body_length: int | None) -> Variables:
    """Return what the request line and the request's body say."""
    variables = {
        b"REQUEST_METHOD": request.method,
        b"QUERY_STRING": request.query,
        b"REQUEST_URI": request.target,
        b"SERVER_PROTOCOL": b"HTTP/1.1" if request.version >= (1, 1) else b"HTTP/1.0",
    }
    if body_length is not None:
        variables[b"CONTENT_LENGTH"] = b"%d" % body_length
    return variables


def script_variables(script: Script, document_root: bytes | None) -> Variables:
    """Return what the program that was found says."""
    variables = {b"SCRIPT_NAME": script.name}
    if script.filename:
        variables[b"SCRIPT_FILENAME"] = script.filename
    if script.path_info:
        variables[b"PATH_INFO"] = script.path_info
        if document_root is not None:
            variables[b"PATH_TRANSLATED"] = document_root + script.path_info
    return variables


def authority_variables(authority: bytes | None, connection: Variables) -> Variables:
    """Return what the host that is asked for says, and where it says nothing, what is known of the connection."""
    variables: Variables = {}
    host, _, port = (authority or b"").rpartition(b":") if authority and not authority.endswith(b"]") else (
        authority or b"",
        b"",
        b"",
    )
    if authority is not None:
        variables[b"HTTP_HOST"] = authority
    variables[b"SERVER_NAME"] = host or authority or _bracketed(connection[b"SERVER_ADDR"])
    if b"SERVER_PORT" not in connection:
        default = b"443" if b"HTTPS" in connection else b"80"
        variables[b"SERVER_PORT"] = port if host and port else default
    return variables


def _bracketed(address: bytes) -> bytes:
    return b"[" + address + b"]" if b":" in address else address


def field_variables(request: Request, pass_authorization: bool) -> Variables:
    """Return what the fields say: HTTP_* but for the host's, and CONTENT_TYPE."""
    variables: Variables = {}
    for name, value in request.fields:
        variable = http_variable(name)
        if variable is None:
            if name == b"content-type":
                variables[b"CONTENT_TYPE"] = value
            elif name == b"authorization" and pass_authorization:
                variables[b"HTTP_AUTHORIZATION"] = value
        elif variable in variables:
            separator = b"; " if name == b"cookie" else b", "
            variables[variable] += separator + value
        else:
            variables[variable] = value
    return variables


@lru_cache(maxsize=512)
def http_variable(name: bytes) -> bytes | None:
    """Return the variable for the field `name`, in lower case, or None if it has none (RFC 3875 section 4.1.18)."""
    if name in _OWN_PLACE or not _PLAIN_NAME.fullmatch(name):
        return None
    return b"HTTP_" + name.upper().replace(b"-", b"_")
