"""The CGI variables of a request as FastCGI sends them. What stays the same from request to request is encoded once."""

from __future__ import annotations

from fcgi_pool.protocol.params import encode_params
from gateway.cgi.variables import (
    Script,
    Variables,
    authority_variables,
    field_variables,
    line_variables,
    request_variables,
    script_variables,
)
from gateway.exchange import Exchange

# Hosts that one connection asks for, kept encoded.
_HOSTS = 16
_FIXED = frozenset(
    b"REQUEST_SCHEME REMOTE_ADDR SERVER_ADDR REMOTE_PORT SERVER_PORT HTTPS SERVER_NAME REQUEST_METHOD QUERY_STRING "
    b"REQUEST_URI SERVER_PROTOCOL SCRIPT_NAME SCRIPT_FILENAME PATH_INFO PATH_TRANSLATED CONTENT_LENGTH "
    b"CONTENT_TYPE".split()
)


class Params:
    """The variables of one mount, `variables`, and of its requests."""

    def __init__(self, variables: Variables, pass_authorization: bool) -> None:
        self._variables = variables
        self._document_root = variables.get(b"DOCUMENT_ROOT")
        self._pass_authorization = pass_authorization
        self._encoded = encode_params(variables.items())
        # A variable given twice would be one or the other, as the server likes; so these are sorted out each time.
        self._is_plain = not any(name in _FIXED or name.startswith((b"HTTP_", b"SSL_")) for name in variables)

    def encode(self, exchange: Exchange, script: Script, body_length: int | None) -> bytes:
        """Return all variables of the request of `exchange`, encoded; for `body_length` see `request_variables`."""
        request = exchange.request
        if not self._is_plain or exchange.granted:
            granted = exchange.granted
            passes = self._pass_authorization and not (granted and granted.hides_authorization)
            variables = request_variables(request, script, self._variables, exchange.variables, body_length, passes)
            if granted:
                variables |= granted.variables
            return encode_params(variables.items())
        by_host = exchange.connection_notes
        connection = by_host.get(request.authority)
        if connection is None:
            if len(by_host) >= _HOSTS:
                by_host.clear()
            own = exchange.variables
            connection = encode_params({**own, **authority_variables(request.authority, own)}.items())
            by_host[request.authority] = connection
        fields = request.notes.get(self._pass_authorization)
        if fields is None:
            fields = encode_params(field_variables(request, self._pass_authorization).items())
            request.notes[self._pass_authorization] = fields
        assert isinstance(fields, bytes)
        found = script.notes.get(self)
        if found is None:
            found = script.notes[self] = encode_params(script_variables(script, self._document_root).items())
        assert isinstance(found, bytes)
        line = encode_params(line_variables(request, body_length).items())
        return b"".join((self._encoded, connection, fields, found, line))
