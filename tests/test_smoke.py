"""The thin thread: a request, a program, an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support import Server, script


def test_a_program_answers(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A shell script is run and its output is the response."""
    script(tmp_path / "hello", "#!/bin/sh\necho 'Content-Type: text/plain'\necho\necho \"hello $QUERY_STRING\"\n")
    server = serve(cgi_dir=tmp_path)
    answer = server.get("/cgi-bin/hello?world")
    assert (answer.status, answer.body) == (200, b"hello world\n")
    assert answer.headers["Content-Type"] == "text/plain"
    server.wait_for_access(r'"GET /cgi-bin/hello\?world HTTP/1\.1" 200 12 .* exit=0 outcome=ok$')
