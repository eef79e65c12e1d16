"""Requests to FastCGI servers: connections, who may have one, and what comes back."""
