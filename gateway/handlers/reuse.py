"""Answers by a CGI script that is run again and again in the processes of a pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.cgi.variables import Script, Variables
from gateway.cgi.warm.reuse import reuse_recipe
from gateway.cgi.warm.shebang import Recipe
from gateway.exchange import Exchange
from gateway.fastcgi.backend import Backend
from gateway.fastcgi.params import Params
from gateway.handlers.fastcgi import FastCgiRun
from gateway.settings import CgiMount

if TYPE_CHECKING:
    from gateway.worker import Worker

# Scripts of which it is remembered what runs them.
_VERDICTS = 4096

_Identity = tuple[int, int, int, int]


class ReusedScripts:
    """The scripts of a mount whose interpreters have pools."""

    def __init__(self, worker: Worker, mount: CgiMount, variables: Variables) -> None:
        self._search = variables.get(b"PATH", b"")
        self._params = Params(variables, mount.pass_authorization)
        self._backends = {recipe: worker.backend(server) for recipe, server in mount.reuse}
        self._verdicts: dict[bytes, tuple[_Identity, Recipe | None]] = {}

    def take(self, exchange: Exchange, script: Script, redirects: int) -> bool:
        """Answer `exchange` by `script`, if there is a pool for it; return whether there is."""
        backend = self._backend(script.filename)
        if backend:
            FastCgiRun(backend, exchange, script, self._params, redirects).begin()
        return backend is not None

    def _backend(self, path: bytes) -> Backend | None:
        try:
            found = os.stat(path)
        except OSError:
            return None
        identity = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
        known = self._verdicts.get(path)
        if not known or known[0] != identity:
            if len(self._verdicts) >= _VERDICTS:
                self._verdicts.clear()
            known = self._verdicts[path] = identity, reuse_recipe(path, self._search)
        return self._backends.get(known[1]) if known[1] else None
