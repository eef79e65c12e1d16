"""The same application on flup's server: `flup_server.py threaded|forked SOCKET PROCESSES`."""

from __future__ import annotations

import sys
from importlib import import_module

from flup.server import fcgi, fcgi_fork

application = import_module("bench_app").application
kind, address, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "threaded":
    fcgi.WSGIServer(application, bindAddress=address, umask=0).run()
else:
    fixed = {"minSpare": processes, "maxSpare": processes, "maxChildren": processes}
    fcgi_fork.WSGIServer(application, bindAddress=address, umask=0, **fixed).run()
