"""Settings of the peers against each other: the defaults in servers.py are the fastest of these."""

from __future__ import annotations

from collections.abc import Sequence

from bench.servers import CPUS, Apache, Lighttpd, Nginx, Server

CANDIDATES: dict[str, Sequence[Server]] = {
    "nginx": [
        Nginx(children=2 * CPUS),
        Nginx(children=CPUS),
        Nginx(children=4 * CPUS),
        Nginx(children=8 * CPUS),
        Nginx(children=2 * CPUS, workers=1),
        Nginx(children=2 * CPUS, keep=True),
        Nginx(children=8 * CPUS, keep=True),
    ],
    "apache": [
        Apache(processes=1, threads=32),
        Apache(processes=2, threads=32),
        Apache(processes=2, threads=64),
        Apache(processes=1, threads=64),
        Apache(processes=1, threads=25),
    ],
    "lighttpd": [
        Lighttpd(workers=CPUS),
        Lighttpd(workers=0),
        Lighttpd(workers=2 * CPUS),
        Lighttpd(workers=4 * CPUS),
        Lighttpd(workers=CPUS, stream=1),
        Lighttpd(workers=CPUS, stream=2),
    ],
}
