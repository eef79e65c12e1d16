"""WSGI (PEP 3333): one call of the application, and its response as a CGI document (RFC 3875 section 6).

A response ends for the web server as soon as its last byte is known to be there: at the end of a list, at the end of
the application's iterable, or when Content-Length is reached. `close` of the iterable is called after that, so nobody
waits for what an application tidies up.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from typing import TYPE_CHECKING, Any

from fcgi_pool.protocol.records import Role
from fcgi_pool.runtime.connection import Connection, WebServerGone
from fcgi_pool.runtime.streams import Errors, FileWrapper, Input

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS = re.compile(r"[1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEAD = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n)*")
# Of one connection: not an application's to say (PEP 3333, "Other HTTP Features"). They are left out.
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding")
)

_CONSTANT = {
    "wsgi.version": (1, 0),
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.file_wrapper": FileWrapper,
    # The body can be read to its end without its length (a widespread extension).
    "wsgi.input_terminated": True,
}
# What WSGI requires and web servers' configurations forget.
_DEFAULTS = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.0",
}
_REQUIRED = frozenset(_DEFAULTS)
# Content-Length and Content-Type come without HTTP_; and a header named Proxy must not become a variable that HTTP
# libraries take for their proxy's address (CVE-2016-5385).
_FORBIDDEN = ("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_PROXY")

_FAILED = b"The application failed; the reason is in the error log.\n"
_FAILED_HEAD = (
    b"Status: 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
)


def respond(application: Callable[..., Any], environ: dict[str, Any], connection: Connection) -> bool:
    """Call the application and send its response; afterwards no request runs on the connection.

    Whatever the application raises becomes words in the error log, and an error page if nothing was sent yet. Returns
    whether it may be called again, which it may. Raises WebServerGone if the connection is lost.
    """
    _complete(environ, connection)
    response = _Response(connection, environ["REQUEST_METHOD"] == "HEAD")
    blocks: Any = None
    try:
        blocks = application(environ, response.start)
        if type(blocks) in (list, tuple) and not response.has_begun:
            # All of it is there already: one write.
            response.send_all(blocks)
        else:
            for block in blocks:
                if block and not response.send(block):
                    break
            response.finish()
    except WebServerGone:
        connection.end(1)
    except BaseException as error:
        response.fail(error)
    finally:
        try:
            if hasattr(blocks, "close"):
                blocks.close()
        except BaseException as error:
            response.fail(error)
        finally:
            connection.end(0)
    return True


def _complete(environ: dict[str, Any], connection: Connection) -> None:
    """Add what WSGI requires to the variables of the request."""
    if not environ.keys() >= _REQUIRED:
        for name, value in _DEFAULTS.items():
            environ.setdefault(name, value)
    if environ["SCRIPT_NAME"] == "/":
        # The root has the empty name; its slash belongs to the path.
        environ["SCRIPT_NAME"] = ""
        environ["PATH_INFO"] = environ["PATH_INFO"] or "/"
    for name in _FORBIDDEN:
        environ.pop(name, None)
    environ.update(_CONSTANT)
    is_https = environ.get("HTTPS", "").lower() in ("on", "1", "https")
    environ["wsgi.url_scheme"] = "https" if is_https or environ.get("REQUEST_SCHEME") == "https" else "http"
    environ["wsgi.input"] = Input(connection)
    environ["wsgi.errors"] = Errors(connection)
    environ["FCGI_ROLE"] = "RESPONDER" if connection.role is Role.RESPONDER else connection.role.name


class _Response:
    """What one call of the application says, on its way out."""

    __slots__ = ("_connection", "_head", "_head_is_sent", "_is_head", "_left", "_skips_body")

    def __init__(self, connection: Connection, is_head: bool) -> None:
        self._connection = connection
        self._is_head = is_head
        self._head: bytes | None = None
        self._head_is_sent = False
        # Bytes that Content-Length promises and that were not sent yet; None without it.
        self._left: int | None = None
        self._skips_body = is_head

    @property
    def has_begun(self) -> bool:
        """Whether the application has used `write`."""
        return self._head_is_sent

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], None]:
        """Take status and headers: `start_response`."""
        if exc_info:
            try:
                if self._head_is_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._head is not None:
            raise RuntimeError("start_response was called twice, the second time without exc_info")
        if type(status) is not str or not _STATUS.fullmatch(status):
            raise ValueError(f"the status is {status!r}; write, say, '404 Not Found'")
        length: int | None = None
        lines = []
        for name, value in headers:
            if type(name) is not str or type(value) is not str:
                raise TypeError(f"the header {name!r}: {value!r} is not of two strings")
            lower = name.lower()
            if lower == "content-length":
                length = _length(value)
            elif lower in _HOP_BY_HOP:
                continue
            lines.append(f"{name}: {value}\r\n")
        text = "".join(lines)
        if not _HEAD.fullmatch(text) or text.count("\n") != len(lines):
            raise ValueError(f"a header has a name or value that HTTP does not allow: {headers!r}")
        self._head = f"Status: {status}\r\n{text}".encode("latin-1")
        self._left = length
        # Such have no body whatever they say (RFC 9110 section 6.4.1).
        self._skips_body = self._is_head or status[:3] in ("204", "304") or status[0] == "1"
        return self._write

    def send_all(self, blocks: list[bytes] | tuple[bytes, ...]) -> None:
        """Send the whole body and the end."""
        head = self._require_head()
        if not all(isinstance(block, bytes) for block in blocks):
            blocks = [_as_bytes(block) for block in blocks]
        length = sum(map(len, blocks))
        if self._skips_body:
            self._send((head, b"\r\n"), True)
            return
        if self._left is None:
            self._send((head, b"Content-Length: %d\r\n\r\n" % length, *blocks), True)
        elif self._left == length:
            self._send((head, b"\r\n", *blocks), True)
        else:
            for block in blocks:
                if block and not self.send(block):
                    break
            self.finish()

    def send(self, data: bytes) -> bool:
        """Send a block before the next one is asked for; return whether more may follow."""
        data = _as_bytes(data)
        head = self._require_head()
        left = self._left
        if self._head_is_sent:
            if left == 0:
                self._complain("more bytes than its Content-Length; they are left out")
                return False
            self._connection.check()
            pieces: tuple[bytes, ...] = ()
        else:
            pieces = (head, b"\r\n")
        if self._skips_body:
            if not self._head_is_sent:
                self._send(pieces, True)
            return False
        fits = left is None or len(data) <= left
        if left is not None:
            data = data[:left]
            self._left = left - len(data)
        if not fits:
            self._complain("more bytes than its Content-Length; they are left out")
        self._send((*pieces, data), self._left == 0)
        return fits

    def finish(self) -> None:
        """Send what is missing at the end of the application's iterable."""
        if not self._head_is_sent:
            head = self._require_head()
            if self._left or self._skips_body:
                self._send((head, b"\r\n"), not self._left or self._skips_body)
            else:
                length = b"" if self._left == 0 else b"Content-Length: 0\r\n"
                self._send((head, length, b"\r\n"), True)
        if self._left and not self._skips_body:
            self._complain(f"{self._left} bytes less than its Content-Length")
            self._connection.end(1)
        self._connection.end(0)

    def fail(self, error: BaseException) -> None:
        """Tell of an exception, with an error page if nothing was sent."""
        connection = self._connection
        words = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        connection.write_stderr(words.encode("utf-8", "backslashreplace"))
        with contextlib.suppress(WebServerGone):
            if not self._head_is_sent:
                self._head_is_sent = True
                page = b"" if self._is_head else _FAILED
                connection.send_stdout((_FAILED_HEAD % len(_FAILED), page), False)
            connection.end(1)

    def _write(self, data: bytes) -> None:
        """Send at once: the `write` that start_response returns."""
        if data:
            self.send(data)

    def _send(self, pieces: tuple[bytes, ...], ends: bool) -> None:
        self._head_is_sent = True
        self._connection.send_stdout(pieces, ends)

    def _require_head(self) -> bytes:
        if self._head is None:
            raise RuntimeError("the application returned a response without calling start_response")
        return self._head

    def _complain(self, words: str) -> None:
        self._connection.write_stderr(f"The application sent {words}.\n".encode())


def _as_bytes(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"the response has a block of {type(data).__name__}; WSGI wants bytes")


def _length(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise ValueError(f"Content-Length is {value!r}; write a number")
    return int(value)
