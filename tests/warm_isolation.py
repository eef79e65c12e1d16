"""Requests that change all they can, one after the other and many at once; each must find nothing of another.

``make isolation`` sends 10,000; `run` is what the test sends some hundred with.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests import support

SCRIPTS = Path(__file__).with_name("warm")
EXPECTED = {
    "builtins": [], "os": [], "environment": [], "cwd": True, "json": False, "path": [], "modules": [],
    "signal": "<Handlers.SIG_DFL: 0>", "umask": 0o022, "filters": [], "argv": [], "limit": 1000, "files": [],
    "main": [], "hook": True, "locale": "C",
}  # fmt: skip


def ask(server: support.Server, number: int) -> list[object]:
    """Ask once; return what is to be unique to the request. Raises AssertionError."""
    body = f"body {number}".encode()
    answer = server.get(f"/cgi-bin/mutate.py?n={number}", method="POST", body=body)
    assert answer.status == 200, server.errors.text[-2000:]
    seen, unique = json.loads(answer.body)
    assert seen == {**EXPECTED, "query": f"n={number}", "stdin": body.decode()}, seen
    return unique  # type: ignore[no-any-return]


def run(server: support.Server, requests: int, clients: int) -> None:
    """Ask so often, so many at once. Raises AssertionError."""
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda number: ask(server, number), range(requests)))
    for values in zip(*answers, strict=True):
        assert len(set(map(str, values))) == requests, "two requests have had the same random value"


def main() -> None:
    """Run the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as spool:
        shutil.copy(SCRIPTS / "mutate.py", place)
        (Path(place) / "mutate.py").chmod(0o755)
        server = support.start_server("--warm", "require", cgi_dir=place, temp_dir=Path(spool))
        try:
            run(server, options.requests, options.clients)
            server.finish()
        finally:
            server.process.kill()
            server.process.wait()
    sys.stdout.write(f"{options.requests} requests, none has found anything of another\n")


if __name__ == "__main__":
    main()
