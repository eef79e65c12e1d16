"""Large bodies through php-fpm, down and up, one at a time."""

from __future__ import annotations

import http.client
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from bench.fastcgi_servers import Front, Gateway, Nginx, PhpFpm
from bench.processes import StartFailed, wait_for_quiet
from bench.servers import HOST, OURS, Running
from bench.table import Target, table

MIB = 2**20
BLOCK = 2**16  # bytes that down.php writes at once
PIECE = MIB  # bytes that are read or sent at once here
TIMEOUT = 60.0  # seconds without progress
LEAST = 0.8  # × nginx
WAYS = ("down", "up")


@dataclass
class Result:
    """MB/s (10^6 bytes) of each transfer of one server."""

    name: str
    label: str
    is_like_ours: bool  # it collects a request's body before it passes it on, as ours does
    down: list[float] = field(default_factory=list)
    up: list[float] = field(default_factory=list)

    def speed(self, way: str) -> float:
        return median(self.down if way == "down" else self.up)

    def row(self) -> list[str]:
        cells = [self.label]
        for way, speeds in (("down", self.down), ("up", self.up)):
            cells += [f"{self.speed(way):,.0f}", f"{min(speeds):,.0f}–{max(speeds):,.0f}"]
        return cells


HEAD = ["server", "down MB/s", "least–most", "up MB/s", "least–most"]


def fronts(options: str) -> list[Front]:
    return [Gateway(PhpFpm(), options=options), Nginx(PhpFpm()), Nginx(PhpFpm(), is_streaming=True)]


def expected(mib: int) -> Iterator[bytes]:
    """What down.php writes."""
    rest = (b"0123456789abcde\n") * (BLOCK // 16 - 1)
    for block in range(mib * MIB // BLOCK):
        yield b"%015d\n" % block + rest


def download(server: Running, mib: int, is_checked: bool = False) -> float:
    """Seconds from the request to the last byte; raises StartFailed when it is not what it should be."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=TIMEOUT)
    piece = bytearray(PIECE)
    crc = size = 0
    try:
        begin = time.perf_counter()
        connection.request("GET", f"/down.php?mib={mib}")
        answer = connection.getresponse()
        while count := answer.readinto(piece):
            size += count
            if is_checked:
                crc = zlib.crc32(memoryview(piece)[:count], crc)
        took = time.perf_counter() - begin
    finally:
        connection.close()
    if answer.status != 200 or size != mib * MIB:
        raise StartFailed(f"{server.label}: {size} bytes of {mib} MiB came down, status {answer.status}")
    if is_checked:
        right = 0
        for block in expected(mib):
            right = zlib.crc32(block, right)
        if crc != right:
            raise StartFailed(f"{server.label}: what came down has another CRC-32 than what was sent")
    return took


def upload(server: Running, mib: int, is_checked: bool = False) -> float:
    """Seconds from the first byte to the answer, which the program gives once it has read the last one."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=TIMEOUT)
    piece = b"".join(expected(1))
    try:
        begin = time.perf_counter()
        connection.putrequest("POST", "/up.php" + ("?check=1" if is_checked else ""))
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(mib * MIB))
        connection.endheaders()
        for _ in range(mib):
            connection.send(piece)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace").split()
        took = time.perf_counter() - begin
    finally:
        connection.close()
    right = [str(mib * MIB)]
    if is_checked:
        crc = 0
        for _ in range(mib):
            crc = zlib.crc32(piece, crc)
        right.append(f"{crc:08x}")
    if answer.status != 200 or said != right:
        raise StartFailed(f"{server.label}: up.php said {said[:4]}, not {right}, status {answer.status}")
    return took


def measure(servers: Sequence[Running], *, mib: int, rounds: int, patience: float) -> list[Result]:
    """Check each server's transfers once, then time them in turns."""
    results = [Result(server.name, server.label, "not buffering" not in server.label) for server in servers]
    for server in servers:
        download(server, mib, is_checked=True)
        upload(server, mib, is_checked=True)
    for _ in range(rounds):
        for server, result in zip(servers, results, strict=True):
            wait_for_quiet(patience)
            result.down.append(mib * MIB / 1e6 / download(server, mib))
            result.up.append(mib * MIB / 1e6 / upload(server, mib))
    return results


def report(results: Sequence[Result], mib: int) -> tuple[str, list[Target]]:
    """The target is to nginx that collects a request's body, as we do; one that does not is shown."""
    targets: list[Target] = []
    notes: list[str] = []
    ours = next((result for result in results if result.name == OURS), None)
    for way in WAYS:
        for peer in results:
            if ours and peer.name != OURS:
                what, ratio = f"{mib} MiB {way}: MB/s, ours / {peer.label}", ours.speed(way) / peer.speed(way)
                if peer.is_like_ours:
                    targets.append(Target(what, ratio, LEAST, True, " ×"))
                    notes.append(str(targets[-1]))
                else:
                    notes.append(f"{what}: {ratio:.2f} × (no target)")
    rounds = len(results[0].down) if results else 0
    title = f"{mib} MiB through php-fpm, one connection, medians of {rounds} transfers"
    return table(title, HEAD, [result.row() for result in results], notes), targets


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    return [{**asdict(result), **{f"{way} median": result.speed(way) for way in WAYS}} for result in results]
