"""Faults under load: killed and stopped workers, managers and fronts, reloads, full and broken pools, random records.

Each test has a short form of a few seconds, and a long one: ``make faults``. The clients are real and count what they
get; nothing is decided by how long something took.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import statistics
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests import fuzz_fcgi
from tests.pool_load import (
    KINDS,
    Client,
    Held,
    Load,
    Outcome,
    Site,
    alive,
    build,
    command,
    family,
    front,
    hold_all,
    managers,
    site,
)
from tests.pool_support import RunningPool, ask, connect, start_pool, variables
from tests.support import PATIENCE, Server, children, links, need, state, wait_until

IS_LONG = os.environ.get("GATEWAY_FAULTS") == "long"
KILLS = 1000 if IS_LONG else 10
RELOADS = 100 if IS_LONG else 20
ROUNDS = 20 if IS_LONG else 2
RECORDS = 10**6 if IS_LONG else 20_000
REQUESTS = 100 if IS_LONG else 8
# Where php and C are seen alike, from without, one of them does for the short form.
FEW_KINDS = KINDS if IS_LONG else ("wsgi", "php")
# Between two kills, in seconds.
PAUSE = 0.2


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one program of each kind."""
    need("php-cgi", "gcc")
    directory = tmp_path_factory.mktemp("programs")
    build(directory)
    return directory


def explained(outcome: Outcome) -> bool:
    """Whether a request that was lost got a 502 that says so."""
    return outcome.status == 502 and b"gave no answer" in outcome.body


def refused(outcome: Outcome) -> bool:
    """Whether a request was turned away, and told when to come again."""
    return outcome.status == 503 and outcome.retry_after == "5"


# Workers.


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_loses_what_it_had_begun_and_nothing_else(programs: Path, kind: str) -> None:
    """A kill -9 five times a second: each loses one request at most, which gets an explanation."""
    with site(programs, kind, 4) as here:
        before = here.pool.wait_for_workers(4)
        rng = random.Random(1)
        killed = 0
        pause = threading.Event()
        with Load(here.server.port, here.path, 8, milliseconds=5) as load:
            load.wait_for(20)
            while killed < KILLS:
                pause.wait(PAUSE)
                # One that has served: a pool whose workers all end at their start says that it cannot start.
                served = {outcome.pid for outcome in load.outcomes[-200:] if outcome.is_right}
                if workers := sorted(served.intersection(children(here.pool.pid))):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    killed += 1
            load.wait_for(20)
        assert all(map(explained, load.wrong)), load.wrong
        sys.stdout.write(f"{kind}: {killed} kills, {len(load.wrong)} of {len(load.outcomes)} requests lost\n")
        assert len(load.wrong) <= killed
        here.check_whole()
        assert not set(before) & set(here.pool.workers()) or killed < 20


def test_a_post_that_was_begun_is_not_done_twice(programs: Path, tmp_path: Path) -> None:
    """Also where the program has not read the request to its end, as php-cgi does without a body."""
    with site(programs, "php", 2) as here:
        workers = here.pool.wait_for_workers(2)
        mark = tmp_path / "mark"
        held = Held(here.server, here.path, "POST", f"&mark={mark}").wait()
        os.kill(held.holder(workers), signal.SIGKILL)
        assert explained(held.result())
        assert len(mark.read_text().splitlines()) == 1
        here.check_whole()


@pytest.mark.parametrize("kind", KINDS)
def test_reloads_lose_nothing(programs: Path, kind: str) -> None:
    """The manager replaces all workers again and again; every request is answered, with a body or without."""
    with site(programs, kind, 3) as here:
        here.pool.wait_for_workers(3)
        with Load(here.server.port, here.path, 6, milliseconds=2) as load:
            for _ in range(RELOADS):
                start = len(here.pool.log.text)
                here.pool.process.send_signal(signal.SIGUSR2)
                here.pool.wait_for(r"\] reloaded", start)
                load.wait_for(1)
        assert not load.wrong, (len(load.wrong), len(load.outcomes), load.wrong[:5])
        here.check_whole()


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_a_stopped_worker_is_given_up_and_replaced(programs: Path, kind: str) -> None:
    """The front answers 504 at its timeout, the manager ends the worker at its own; the others go on."""
    limits = ("request_terminate_timeout=3",)
    with site(programs, kind, 2, *limits, options=("--script-timeout", "1")) as here:
        workers = here.pool.wait_for_workers(2)
        held = Held(here.server, here.path, "POST").wait()
        stopped = held.holder(workers)
        os.kill(stopped, signal.SIGSTOP)
        # One at a time: there is one worker less, and who has to wait for the other is not to wait in vain.
        with Load(here.server.port, here.path, 1, choose=lambda _: ("GET", b"")) as load:
            load.wait_for(20)
            outcome = held.result()
            assert outcome.status == 504, outcome
            here.server.wait_for_log(r"was silent for 1 s \(--script-timeout\)")
            here.pool.wait_for(f"worker {stopped} is terminated: its request took")
            wait_until(lambda: "still there" if stopped in here.pool.workers() else "")
            load.wait_for(20)
        assert not load.wrong, load.wrong[:5]
        here.check_whole()


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_a_stopped_worker_is_terminated_by_the_manager(programs: Path, kind: str) -> None:
    """What it had begun is lost with an explanation, or done anew by another if that is safe; the others go on."""
    # Longer than the front keeps a connection in use: of php and C only its age is seen.
    with site(programs, kind, 3, "request_terminate_timeout=2") as here:
        workers = here.pool.wait_for_workers(3)
        post, get = Held(here.server, here.path, "POST").wait(), Held(here.server, here.path).wait()
        stopped = {post.holder(workers), get.holder(workers)}
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with Load(here.server.port, here.path, 2) as load:
            load.wait_for(20)
            # TERM interrupts their wait: then some end in peace, and their answer counts.
            outcome = post.result()
            assert explained(outcome) or outcome.is_right, outcome
            wait_until(lambda: "" if get.outcome or _others_hold(here, get, stopped) else "nobody is at it")
            get.let_go()
            outcome = get.result()
            assert explained(outcome) or outcome.is_right, outcome
            load.wait_for(20)
        assert not load.wrong, load.wrong[:5]
        here.check_whole()


def _others_hold(here: Site, held: Held, stopped: set[int]) -> bool:
    return any(str(held.fifo) in links(pid) for pid in here.pool.workers() if pid not in stopped)


# Managers.


def test_a_manager_that_is_killed_and_started_again(programs: Path) -> None:
    """Its workers end, the front says 503, and serves as soon as there is a manager again."""
    with site(programs, "wsgi", 3) as here:
        pool = here.pool
        again: RunningPool | None = None
        try:
            with Load(here.server.port, here.path, 6, milliseconds=2) as load:
                for _ in range(ROUNDS):
                    load.wait_for(20)
                    workers = (again or pool).workers()
                    _kill(again or pool)
                    wait_until(lambda: f"alive: {left}" if (left := [p for p in workers if _lives(p)]) else "")  # noqa: B023
                    load.wait_for(3, refused)
                    again = _start_again(programs, pool)
                    load.wait_for(20)
            lost = [outcome for outcome in load.wrong if not refused(outcome)]
            assert all(map(explained, lost)), lost
            # At most one of each client: under way with a worker, or sent to a listener that died unread.
            assert len(lost) <= 6 * ROUNDS
            assert "nobody listens there" in here.server.errors.text
        finally:
            pool.expected_status = None
            if again:
                assert again.stop() == 0
                for thread in again.threads:
                    thread.join(PATIENCE)  # type: ignore[attr-defined]


def _kill(pool: RunningPool) -> None:
    pool.process.kill()
    pool.process.wait()
    for thread in pool.threads:
        thread.join(PATIENCE)  # type: ignore[attr-defined]


def _lives(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def _start_again(programs: Path, pool: RunningPool) -> RunningPool:
    more = ["--chdir", str(programs), "--app", "answer_wsgi:application"]
    return start_pool("--children", "3", *more, directory=pool.directory)


def test_a_manager_of_the_front_that_is_killed_comes_back(programs: Path) -> None:
    """The front starts another, and says 503 at the most until then."""
    mount = f"/app/={shlex.join(command(programs))}"
    with front("--pool", mount, "--children", "3", workers=2) as server, Client(server.port) as client:
        assert client.ask("/app/", 1).is_right
        with Load(server.port, "/app/", 6, milliseconds=2) as load:
            for _ in range(ROUNDS):
                load.wait_for(20)
                (manager,) = managers(server)
                workers = children(manager)
                os.kill(manager, signal.SIGKILL)
                server.wait_for_log(rf"pool app \(pid {manager}\) died: killed by SIGKILL")
                wait_until(lambda: f"alive: {left}" if (left := [p for p in workers if _lives(p)]) else "")  # noqa: B023
                wait_until(lambda: "" if managers(server) not in ([], [manager]) else "no other")  # noqa: B023
                load.wait_for(20)
        lost = [outcome for outcome in load.wrong if not refused(outcome)]
        assert all(map(explained, lost)), lost
        # What was under way with a worker, or came while the last of them died: at most one of each client.
        assert len(lost) <= 6 * ROUNDS
        wait_until(lambda: "" if len(children(managers(server)[0])) == 3 else "not all are back")
        assert len({held.release() for held in hold_all(server, "/app/", 3)}) == 3


# Full pools, broken pools, starvation.


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_a_full_pool_lets_wait_and_then_turns_away(programs: Path, kind: str) -> None:
    """Two are served, one waits in the pool's own queue where it is counted, the others in the front for a while."""
    limits = ("pm=dynamic", "min_spare_servers=1", "max_spare_servers=2", "status_listen=127.0.0.1:0")
    with site(programs, kind, 2, *limits, options=("--queue-timeout", "1"), connections=3) as here:
        held = hold_all(here.server, here.path, 2)
        third = Held(here.server, here.path)
        here.pool.wait_for("max_children is reached: 2; 1 wait")
        # Reached more than once where a look saw nobody wait in between.
        for line in ("max children reached: [1-9]", "listen queue:         1\n", "active processes:     2\n"):
            wait_until(lambda: "" if re.search(line, status := _status(here.pool)) else status)  # noqa: B023
        with Load(here.server.port, here.path, 4, each=2) as load:
            pass
        assert all(map(refused, load.outcomes)), load.outcomes
        assert b"1 s passed (--queue-timeout) and no connection to" in load.outcomes[0].body
        here.server.wait_for_access(r" 503 .* outcome=timeout")
        # Who waits for less than that is served.
        with Load(here.server.port, here.path, 4, each=2) as load:
            for one in held:
                one.release()
            third.release()
        assert not load.wrong, load.wrong


def _status(pool: RunningPool) -> str:
    inodes = {link[8:-1] for link in links(pool.pid)}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            address = ("127.0.0.1", int(fields[1].split(":")[1], 16))
            return ask(address, variables(uri="/status")).body.decode()
    raise AssertionError("no status")


def test_a_program_that_cannot_boot(programs: Path, tmp_path: Path) -> None:
    """Requests get 503 at once and the log says why; it is tried slower and slower, and serves once it is mended."""
    mended = tmp_path / "mended"
    text = f"[ -e {mended} ] && exec {shlex.join(command(programs))}; echo the library is missing >&2; exit 3"
    mount = f"/app/={shlex.join(['sh', '-c', text])}"
    with front("--pool", mount, "--children", "2", workers=2) as server:
        server.wait_for_log("status 3 before it served, after .* s: the library is missing; the next is started in")
        with Load(server.port, "/app/", 4, each=10) as load:
            pass
        assert all(map(refused, load.outcomes)), load.outcomes[:3]
        server.wait_for_log("the pool app cannot start: worker .* ended with status 3 .*: the library is missing")
        assert server.errors.text.count("; the next is started in") < 25
        mended.touch()
        server.wait_for_log("serves: the pool has recovered")
        with Load(server.port, "/app/", 4) as load:
            load.wait_for(20)
        # Who came while the one who turned away still listened.
        assert all(map(refused, load.wrong)), load.wrong[:3]
        assert all(outcome.is_right for outcome in load.outcomes[-10:])


def test_workers_killed_as_they_come_up(programs: Path, tmp_path: Path) -> None:
    """That is no reason to turn anybody away: who asks meanwhile is answered by the first that is let live."""
    spared = tmp_path / "spared"
    text = f"[ -e {spared} ] && exec {shlex.join(command(programs))}; exec sleep 1000"
    mount = f"/app/={shlex.join(['sh', '-c', text])}"
    with front("--pool", mount, "--children", "1") as server, Load(server.port, "/app/", 4, each=1) as load:
        (manager,) = managers(server)
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            wait_until(lambda: "" if len(children(manager)) == 1 else "not started again")
            (worker,) = children(manager)
            if number == signal.SIGHUP:
                spared.touch()
            os.kill(worker, number)
            server.wait_for_log(rf"worker {worker} was killed by {number.name} as it came up")
        load.wait_for(4)
        assert "cannot start" not in server.errors.text
        assert not load.wrong


@pytest.mark.parametrize("kind", KINDS)
def test_one_child_serves_two_front_workers(programs: Path, kind: str) -> None:
    """The one connection goes from front worker to front worker, and nobody waits for ever."""
    with site(programs, kind, 1, workers=2) as here:
        with Load(here.server.port, here.path, 16, milliseconds=1, each=REQUESTS * 2) as load:
            pass
        assert not load.wrong, load.wrong[:5]
        report(kind, load)


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_nobody_waits_for_idle_clients(programs: Path, kind: str) -> None:
    """Of 200 clients that keep their connections 100 say nothing more; each request of the others is answered."""
    with site(programs, kind, 4, workers=2) as here:
        idle = [Client(here.server.port) for _ in range(100)]
        try:
            for number, client in enumerate(idle):
                assert client.ask(here.path, number).is_right
            with Load(here.server.port, here.path, 100, milliseconds=1, each=REQUESTS) as load:
                pass
            assert not load.wrong, load.wrong[:5]
            report(kind, load)
            for number, client in enumerate(idle):
                assert client.ask(here.path, number).is_right
        finally:
            for client in idle:
                client.close()


def report(kind: str, load: Load) -> None:
    """Say how long requests took; nothing is decided by it."""
    times = [outcome.seconds * 1000 for outcome in load.outcomes]
    cuts = statistics.quantiles(times, n=100)
    words = f"{kind}: {len(times)} requests, {len(load.wrong)} wrong; mean {statistics.mean(times):.1f} ms"
    sys.stdout.write(f"{words}, p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, max {max(times):.1f} ms\n")


# The front.


def test_a_killed_front_worker_loses_its_own_requests(programs: Path) -> None:
    """Those of the other are answered, and all connections to the pool can be had again."""
    with site(programs, "wsgi", 4, workers=2) as here:
        for _ in range(ROUNDS):
            fronts = here.server.workers()
            assert len(fronts) == 2
            held = hold_all(here.server, here.path, 4)
            by = [_served_by(here.server, fronts, one) for one in held]
            with Load(here.server.port, here.path, 1, each=0) as load:
                os.kill(by[0], signal.SIGKILL)
                lost = [one for one, pid in zip(held, by, strict=True) if pid == by[0]]
                kept = [one for one, pid in zip(held, by, strict=True) if pid != by[0]]
                for one in lost:
                    outcome = one.result()
                    assert outcome.status == 0, outcome
                load.wait_for(5)
            for one in kept:
                one.release()
            assert len([outcome for outcome in load.wrong if outcome.status]) == 0, load.wrong
            assert len(load.wrong) <= 1
            wait_until(lambda: "" if len(here.server.workers()) == 2 else "not replaced")
        here.check_whole()


def _served_by(server: Server, fronts: list[int], held: Held) -> int:
    """Return the front worker that has accepted the client's connection."""
    ports = f":{server.port:04X}", f":{held.client.port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(ports[0]) and fields[2].endswith(ports[1]):
            link = f"socket:[{fields[9]}]"
            return next(pid for pid in fronts if link in links(pid))
    raise AssertionError("no such connection")


def test_killed_front_workers_under_load(programs: Path) -> None:
    """Each kill costs a client one request at the most; no answer is an error, and none is another's."""
    with site(programs, "wsgi", 4, workers=2) as here:
        rng = random.Random(2)
        with Load(here.server.port, here.path, 8, milliseconds=2) as load:
            for _ in range(ROUNDS):
                wait_until(lambda: "" if len(here.server.workers()) == 2 else "not replaced")
                load.wait_for(40)
                os.kill(rng.choice(here.server.workers()), signal.SIGKILL)
                load.wait_for(40)
        assert not [outcome for outcome in load.wrong if outcome.status], load.wrong
        assert len(load.wrong) <= 8 * ROUNDS
        wait_until(lambda: "" if len(here.server.workers()) == 2 else "not replaced")
        here.check_whole()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_no_process_survives_the_front(programs: Path, number: int) -> None:
    """Managers, their workers and spawners end with the master, at work, stopped or idle."""
    mounts = ["--pool", f"/app/={shlex.join(command(programs))}", "--php", f"/php/={programs / 'site'}"]
    with front(*mounts, "--cgi-dir", "cgi-bin", "--children", "3", workers=2) as server:
        for path in ("/app/", "/php/answer.php"):
            with Load(server.port, path, 4, each=3) as load:
                pass
            assert not load.wrong
        held = [Held(server, path).wait() for path in ("/app/", "/php/answer.php")]
        processes = family(server)
        assert len(processes) == 1 + 2 + 2 + 2 + 3 + 3
        if number == signal.SIGQUIT:
            server.process.send_signal(number)
            for one in held:
                one.release()
        else:
            if number == signal.SIGKILL:
                for one in held:
                    os.kill(one.holder(list(processes)), signal.SIGSTOP)
            server.process.send_signal(number)
            for one in held:
                assert one.result().status == 0
        assert server.process.wait(PATIENCE) == (-9 if number == signal.SIGKILL else 0)
        wait_until(lambda: f"alive: {left}" if (left := alive(processes)) else "")


# Records at random.


@pytest.mark.parametrize("kind", ["wsgi", "php"])
def test_mutated_records_harm_nobody_else(programs: Path, kind: str) -> None:
    """Whatever is sent to the pool's socket, the front's clients, served by the same workers, get their answers."""
    with site(programs, kind, 4) as here:
        before = here.pool.wait_for_workers(4)
        seeds = [random.randrange(1 << 32) for _ in range(2)]
        sys.stdout.write(f"seeds {seeds}\n")
        trouble: list[BaseException] = []
        sent: Counter[str] = Counter()
        with Load(here.server.port, here.path, 3) as load:
            load.wait_for(20)
            threads = [threading.Thread(target=_fuzz, args=(here, seed, sent, trouble)) for seed in seeds]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            load.wait_for(20)
        assert not trouble, trouble
        assert not load.wrong, (len(load.wrong), load.wrong[:5])
        sys.stdout.write(f"{kind}: {dict(sent)}; {len(load.outcomes)} requests beside them\n")
        assert here.pool.wait_for_workers(4) == before, here.pool.log.text
        here.check_whole()


def _fuzz(here: Site, seed: int, sent: Counter[str], trouble: list[BaseException]) -> None:
    """Send half of the records, a few in each connection."""
    rng = random.Random(seed)
    mutated = 0
    try:
        while mutated < RECORDS // 4:
            conversation, changed = fuzz_fcgi.mutated_request(rng)
            mutated += changed
            with connect(here.pool.socket) as client:
                sent[_converse(client, conversation)] += 1
    except BaseException as error:
        trouble.append(error)


def _converse(client: socket.socket, conversation: bytes) -> str:
    """Send all and read to the end; return what happened."""
    try:
        client.sendall(conversation)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(65536):
            answer += data
    except TimeoutError:
        raise
    except OSError:
        return "reset"
    return "answered" if answer else "closed"
