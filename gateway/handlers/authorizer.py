"""Asks a FastCGI Authorizer whether a request may be served (FastCGI 1.0 section 6.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcgi_pool.protocol.params import encode_params
from fcgi_pool.protocol.records import Role
from fcgi_pool.protocol.web_server import End, encode_request
from gateway.cgi.output import BadOutput, Header, HeaderReader
from gateway.cgi.variables import Script, mount_variables, request_variables
from gateway.exchange import Exchange
from gateway.fastcgi.link import Link
from gateway.fastcgi.params import Params
from gateway.handlers.fastcgi import FastCgiRun
from gateway.settings import FastCgiMount

if TYPE_CHECKING:
    from gateway.worker import Worker

# Fields of the verdict that become variables of the program (section 6.3).
_VARIABLE = b"variable-"
# An Authorizer is not asked about a file, and gets no body (section 6.3).
_NOT_ASKED = (b"CONTENT_LENGTH", b"PATH_INFO", b"PATH_TRANSLATED", b"SCRIPT_NAME")


class Authorizer:
    """Stands before all that is below a prefix."""

    def __init__(self, worker: Worker, mount: FastCgiMount) -> None:
        self.worker = worker
        self.backend = worker.backend(mount.server)
        self.variables = mount_variables(b"", mount.env)
        self.params = Params(self.variables, mount.pass_authorization)

    def ask(self, exchange: Exchange, redirects: int) -> None:
        """Have `exchange` served if the Authorizer grants it, else answer what it says."""
        _Question(self, exchange, redirects).begin()


class _Question(FastCgiRun):
    """One request's verdict: status 200 grants it, all else is the response."""

    __slots__ = ("_authorizer", "_gathered", "_granted", "_reader")

    def __init__(self, authorizer: Authorizer, exchange: Exchange, redirects: int) -> None:
        super().__init__(authorizer.backend, exchange, Script(b"", b"", b""), authorizer.params, redirects)
        self._authorizer = authorizer
        self._reader = HeaderReader()
        self._gathered = b""
        self._granted: Header | None = None

    @property
    def _subject(self) -> str:
        server = self._backend.server
        return f"the authorizer {server.name} ({server.address})"

    def begin(self) -> None:
        """Ask. The request's body stays with the client, for whoever serves it."""
        self._exchange.responder = self
        self._submit()

    def _encode(self, link: Link) -> bytes:
        exchange = self._exchange
        granted = exchange.granted
        hides = granted is not None and granted.hides_authorization
        variables = request_variables(
            exchange.request, self._script, self._authorizer.variables, exchange.variables, None, not hides
        )
        if granted:
            variables |= granted.variables
        for name in _NOT_ASKED:
            variables.pop(name, None)
        return encode_request(encode_params(variables.items()), role=Role.AUTHORIZER, keep=link.keeps, ends=True)

    def take(self, data: bytes, end: End | None) -> None:
        """Take what may be a verdict; once it is known to be a response, pass it on."""
        if self._relay or (end and end.protocol_status):
            super().take(data, end)
            return
        if not self._granted:
            self._gathered += data
            try:
                found = self._reader.feed(data)
            except BadOutput:
                found = None  # the same words come from whoever passes it on
            else:
                if not found and not end:
                    return
            if found and found[0].status == 200:
                self._granted = found[0]
            else:
                super().take(self._gathered, end)
                return
        if end:
            self._link = None
            self._over()
            self._serve(self._granted)

    def _serve(self, verdict: Header) -> None:
        exchange = self._exchange
        if exchange.is_ended or exchange.responder is not self:
            return
        variables = {
            name[len(_VARIABLE) :]: value
            for name, value in verdict.fields
            if name[: len(_VARIABLE)].lower() == _VARIABLE
        }
        exchange.grant(self._authorizer, variables)
        exchange.record.exit = ""
        if exchange.granted:
            user = exchange.granted.variables.get(b"REMOTE_USER", b"")
            exchange.record.user = user.decode("utf-8", "surrogateescape")
        exchange.responder = None
        self._worker.route(exchange, self._redirects)
