"""HTTP/1.1 on the wire: reading requests, writing responses (RFC 9110, RFC 9112)."""
