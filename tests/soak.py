"""The hour of trouble: a mixed load while one thing after the other goes wrong: ``python -m tests.soak [SECONDS]``.

After each fault everything must be answered again; while it lasts, a request may fail only in the ways that the fault
explains. At the end the server has the processes, descriptors and memory that it had at the start.

``tests.soak_site`` has the site and its clients, ``tests.soak_faults`` what goes wrong.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests import support
from tests.misbehaviour import wait_for
from tests.soak_faults import FAULTS, Fault
from tests.soak_site import LATE, Clients, Site
from tests.support import descriptors, resident, wait_until

# Of memory, what may differ between two looks at a process of the same role: a share of it, and bytes.
_GROWTH, _MORE = 1.25, 6 << 20


def most(site: Site, measure: Callable[[int], int]) -> dict[str, int]:
    """Return the largest of what is measured at the processes of each role."""
    return {role: max(map(measure, pids)) for role, pids in site.roles.items()}


def settle(site: Site, held: dict[str, int]) -> None:
    """Wait until nothing runs but the server itself, and no role holds more descriptors than it `held`."""

    def trouble() -> str:
        if not site.is_whole():
            return f"processes: {site.roles}"
        now = most(site, descriptors)
        if any(now[role] > held[role] for role in held):
            return f"descriptors: {held} at first, now {now}"
        wanted = {pid for pids in site.roles.values() for pid in pids}
        more = [pid for pid in [site.server.pid, *site.server.processes()] if pid not in wanted]
        return f"left: {[(pid, support.command(pid)) for pid in more]}" if more else ""

    wait_until(trouble, LATE)


def run(seconds: float, seed: int = 1) -> tuple[str, list[str]]:
    """Let things go wrong for so long, each thing once at least; return a report, and what was not as it must be."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    directory.chmod(0o755)
    site = Site(directory)
    try:
        wait_for(site.is_whole, "it did not come up")
        held = most(site, descriptors)
        clients = Clients(site.server.port)
        # So often that what grows only once has grown.
        clients.wait_for_all(5)
        clients.wait_for(300, *clients.KINDS)
        clients.end()
        settle(site, held)
        before = most(site, resident)
        counts, wrong = trouble(site, seconds, random.Random(seed))
        settle(site, held)
        report, more = compare(before, most(site, resident))
    except BaseException:
        sys.stderr.write(site.server.errors.text[-8000:])
        raise
    finally:
        try:
            site.close()
        finally:
            shutil.rmtree(directory)
    return "\n".join([f"{name}: {count} times" for name, count in sorted(counts.items())] + report), wrong + more


def trouble(site: Site, seconds: float, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Strike a loaded site by one fault after the other; return how often by each, and what they do not explain."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    clients = Clients(site.server.port)
    end = time.monotonic() + seconds
    order = list(FAULTS)
    while not counts or time.monotonic() < end:
        rng.shuffle(order)
        for fault in order:
            print(f"{time.strftime('%H:%M:%S')} {fault.name}", flush=True)
            fault.strike(site, clients)
            wait_for(site.is_whole, f"not whole after: {fault.name}; {site.roles}")
            clients.wait_for_all(2)
            counts[fault.name] += 1
            wrong += judge(clients, fault)
    clients.end()
    return counts, wrong


def compare(before: dict[str, int], after: dict[str, int]) -> tuple[list[str], list[str]]:
    """Return lines that tell the memory of each role, and those of the roles that have grown."""
    report, wrong = [], []
    for role, now in after.items():
        line = f"{role}: {before[role] / 2**20:.1f} → {now / 2**20:.1f} MiB"
        report.append(line)
        if now > before[role] * _GROWTH + _MORE:
            wrong.append(f"it has grown: {line}")
    return report, wrong


def judge(clients: Clients, fault: Fault) -> list[str]:
    """Return what of the outcomes since it was asked last the fault does not explain."""
    wrong = []
    outcomes, clients.outcomes = clients.outcomes, []
    for outcome in outcomes:
        statuses = fault.allowed.get(re.split("[ ,]", outcome.kind)[0], set()) | fault.allowed.get("all", set())
        if outcome.why and not outcome.was_idle and outcome.status not in statuses:
            wrong.append(f"{fault.name}: {outcome.kind}: {outcome.why}, after {outcome.seconds:.1f} s")
    return wrong


def main() -> int:
    """Run from the command line."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    report, wrong = run(seconds)
    print(report)
    for what in wrong[:50]:
        print(f"WRONG: {what}")
    print("1 passed, 0 failed" if not wrong else f"0 passed, 1 failed ({len(wrong)} things wrong)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
