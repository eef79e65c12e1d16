"""Answers by the files of a tree: those of certain extensions are run by a FastCGI server, the others are sent."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.cgi.locate import path_info
from gateway.cgi.variables import Script, mount_variables
from gateway.exchange import Exchange
from gateway.fastcgi.params import Params
from gateway.fault import Fault
from gateway.handlers.fastcgi import FastCgiRun
from gateway.handlers.files import add_slash, is_private, send_file
from gateway.settings import SiteMount

if TYPE_CHECKING:
    from gateway.worker import Worker


class Site:
    """A mounted tree of files.

    The file is found before anything is passed on: a FastCGI server that looks for it itself, in a path that a client
    made up, is how CVE-2019-11043 and "No input file specified" come about.
    """

    def __init__(self, worker: Worker, mount: SiteMount) -> None:
        self._worker = worker
        self._mount = mount
        self._backend = worker.backend(mount.server)
        self._directory = os.fsencode(os.path.abspath(mount.directory))
        self._prefix = mount.prefix.encode()
        self._extensions = tuple(extension.lower().encode() for extension in mount.extensions)
        self._index = tuple(name.encode() for name in mount.index)
        # What a path means is constant; whether the file is there is asked each time.
        self._whole_path = lru_cache(maxsize=256)(self._guess)
        self._stat = os.stat if mount.follow_links else os.lstat
        self._params = Params(mount_variables(self._directory, mount.env), mount.pass_authorization)

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Answer by the first regular file on the way that `segments` lead below the root."""
        script = self._whole_path(segments, is_directory)
        if script and self._is_file(script.filename):
            self._run(exchange, script, redirects)
        else:
            self._walk(exchange, segments, is_directory, redirects)

    def _run(self, exchange: Exchange, script: Script, redirects: int) -> None:
        FastCgiRun(self._backend, exchange, script, self._params, redirects, self._mount.stream_body).begin()

    def _guess(self, segments: tuple[bytes, ...], is_directory: bool) -> Script | None:
        """Return the script that all of `segments` may lead to, if that is what their last looks like."""
        if is_directory or not segments or not segments[-1].endswith(self._extensions) or not self._mount.follow_links:
            return None
        if any(is_private(segment) for segment in segments):
            return None
        path = b"/".join(segments)
        return Script(self._prefix + path, self._directory + b"/" + path, b"")

    def _is_file(self, path: bytes) -> bool:
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            return False

    def _walk(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        path = self._directory
        for position, segment in enumerate(segments):
            if is_private(segment):
                break
            path = path + b"/" + segment
            try:
                mode = self._stat(path).st_mode
            except OSError:
                break
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                break
            name = self._prefix + b"/".join(segments[: position + 1])
            self._answer_by(exchange, path, name, path_info(segments[position + 1 :], is_directory), redirects)
            return
        else:
            self._answer_by_index(exchange, path, segments, is_directory, redirects)
            return
        exchange.fail(Fault(404, f"there is no file {os.fsdecode(path)}"))

    def _answer_by(self, exchange: Exchange, path: bytes, name: bytes, rest: bytes, redirects: int) -> None:
        # In capitals, too: its source is not for the public, whatever the server makes of it.
        if path.lower().endswith(self._extensions):
            self._run(exchange, Script(name, path, rest), redirects)
        elif rest:
            exchange.fail(Fault(404, f"{os.fsdecode(path)} is a file, with nothing below it"))
        else:
            send_file(self._worker, exchange, path)

    def _answer_by_index(
        self, exchange: Exchange, path: bytes, segments: tuple[bytes, ...], is_directory: bool, redirects: int
    ) -> None:
        if not is_directory:
            add_slash(exchange, self._prefix, segments)
            return
        for index in self._index:
            file = path + b"/" + index
            try:
                mode = self._stat(file).st_mode
            except OSError:
                continue
            if stat.S_ISREG(mode):
                name = self._prefix + b"".join(segment + b"/" for segment in segments) + index
                self._answer_by(exchange, file, name, b"", redirects)
                return
        words = f"{os.fsdecode(path)} is a directory, and none of {', '.join(self._mount.index)} is there"
        exchange.fail(Fault(404, words))
