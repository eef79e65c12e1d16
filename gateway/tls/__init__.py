"""TLS: certificates and their keys, contexts, the transport between socket and connection, what programs are told."""
