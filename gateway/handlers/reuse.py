"""Answers by a CGI script that is run again and again in the processes of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cgi.variables import Script, Variables
from gateway.cgi.warm.reuse import reuse_recipe
from gateway.cgi.warm.verdicts import Verdicts
from gateway.exchange import Exchange
from gateway.fastcgi.backend import Backend
from gateway.fastcgi.params import Params
from gateway.handlers.fastcgi import FastCgiRun
from gateway.settings import CgiMount

if TYPE_CHECKING:
    from gateway.worker import Worker


class ReusedScripts:
    """The scripts of a mount whose interpreters have pools."""

    def __init__(self, worker: Worker, mount: CgiMount, variables: Variables) -> None:
        self._params = Params(variables, mount.pass_authorization)
        self._backends = {recipe: worker.backend(server) for recipe, server in mount.reuse}
        search = variables.get(b"PATH", b"")
        self._recipes = Verdicts(lambda path: reuse_recipe(path, search))

    def take(self, exchange: Exchange, script: Script, redirects: int) -> bool:
        """Answer `exchange` by `script`, if there is a pool for it; return whether there is."""
        backend = self._backend(script.filename)
        if backend:
            FastCgiRun(backend, exchange, script, self._params, redirects).begin()
        return backend is not None

    def _backend(self, path: bytes) -> Backend | None:
        try:
            recipe = self._recipes.of(path)
        except OSError:
            return None
        return self._backends.get(recipe) if recipe else None
