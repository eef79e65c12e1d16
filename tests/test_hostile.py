"""Programs that misbehave: each gets its exact status, and leaves nothing behind.

The programs are in `hostile/`, one for each way to go wrong; what git cannot keep (a missing bit, a FIFO, carriage
returns) is made here. `serve` looks at the end of each test for zombies, processes, descriptors and temporary files.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests import misbehaviour, support

HOSTILE = Path(__file__).with_name("hostile")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A directory of programs with all the hostile ones in it."""
    directory = tmp_path_factory.mktemp("programs") / "cgi"
    shutil.copytree(HOSTILE, directory)
    misbehaviour.program(directory / "not-executable", "#!/bin/sh\necho\n").chmod(0o644)
    misbehaviour.program(directory / "no-interpreter", "#!/usr/bin/no-such-interpreter -w\necho\n")
    misbehaviour.program(directory / "cr-lf", "#!/bin/sh\r\necho\r\n")
    misbehaviour.program(directory / "no-shebang", "Content-Type: text/plain\n\nnot a program\n")
    misbehaviour.program(directory / "empty", "")
    misbehaviour.program(directory / "interpreter-is-a-directory", "#!/usr\necho\n")
    misbehaviour.program(directory / "interpreter-is-no-program", "#!/etc/passwd\necho\n")
    misbehaviour.program(directory / "runs-itself", f"#!{directory / 'runs-itself'}\necho\n")
    (directory / "folder").mkdir()
    os.mkfifo(directory / "fifo", 0o755)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(directory / "socket"))
    os.chmod(directory / "socket", 0o755)
    (directory / "nowhere").symlink_to("/nowhere/at/all")
    (directory / "round").symlink_to("round")
    (directory / "device").symlink_to("/dev/zero")
    (directory / "linked").symlink_to("hello")
    return directory


# Two seconds, since a machine may be busy with more than this.
HASTE = ("--script-timeout", "2", "--kill-timeout", "1")


@pytest.fixture(scope="module")
def shared(programs, tmp_path_factory):
    with misbehaviour.shared_server(programs, tmp_path_factory.mktemp("spool"), *HASTE) as server:
        yield server


@pytest.fixture
def server(shared):
    """A server that loses its patience soon."""
    yield from misbehaviour.lent(shared)


@pytest.fixture
def quick(serve, programs):
    """Start such a server of one's own, with more options."""

    def start(*options, **more):
        return serve(*HASTE, *options, cgi_dir=programs, **more)

    return start


def fine(server):
    """The server still serves."""
    answer = server.get("/cgi-bin/hello?again")
    assert (answer.status, answer.body) == (200, b"hello again\n")


# What there is no program to start for.


@pytest.mark.parametrize(
    "path",
    [
        "nothing-there",
        "nothing-there/info",
        "folder",
        "folder/",
        "",
        "fifo",
        "socket",
        "nowhere",
        "round",
        "device",
        "hello%00",
        "folder/nothing",
    ],
)
def test_what_is_no_program_is_404(server, path):
    assert server.get(f"/cgi-bin/{path}").status == (400 if "%00" in path else 404)
    fine(server)


def test_a_program_behind_a_link_is_run(server):
    assert server.get("/cgi-bin/linked?x").body == b"hello x\n"


def test_no_follow_links(quick, programs):
    server = quick("--no-follow-links")
    (programs / "outside").symlink_to("/bin/sh")
    (programs / "folder2").symlink_to("folder")
    misbehaviour.program(programs / "folder" / "inner", "#!/bin/sh\nprintf 'X: y\\n\\ninner'\n")
    assert server.get("/cgi-bin/folder/inner").status == 200
    assert server.get("/cgi-bin/linked").status == 404
    assert server.get("/cgi-bin/outside").status == 404
    assert server.get("/cgi-bin/folder2/inner").status == 404
    fine(server)


def test_a_program_that_is_not_executable_is_403_and_the_bit_is_named(server):
    answer = server.get("/cgi-bin/not-executable")
    assert answer.status == 403
    assert b"echo" not in answer.body
    server.wait_for_log(r"not-executable.*not executable.*chmod \+x|not executable: chmod \+x.*not-executable")
    fine(server)


# What the kernel will not start. (The words of the log are in test_explain.)


@pytest.mark.parametrize(
    "program",
    [
        "no-interpreter",
        "cr-lf",
        "no-shebang",
        "empty",
        "interpreter-is-a-directory",
        "interpreter-is-no-program",
        "runs-itself",
    ],
)
def test_what_cannot_be_started_is_500(server, program):
    answer = server.get(f"/cgi-bin/{program}", method="POST", body=b"x" * 100_000)
    assert answer.status == 500
    assert answer.headers["x-request-id"].encode() in answer.body
    server.wait_for_access(
        rf'"POST /cgi-bin/{program} HTTP/1\.1" 500 .*id={answer.headers["x-request-id"]} .*outcome=failed'
    )
    fine(server)


def test_a_busy_program_is_500(server, programs):
    busy = misbehaviour.program(programs / "busy", "#!/bin/sh\nprintf 'X: y\\n\\nbody'\n")
    with open(busy, "ab"):
        try:
            subprocess.run([busy], check=True, capture_output=True)
        except OSError:
            assert server.get("/cgi-bin/busy").status == 500
        else:
            pytest.skip("this kernel starts programs that are being written")
    assert server.get("/cgi-bin/busy").status == 200


# What ends too early, or says nonsense.


@pytest.mark.parametrize(
    "program",
    [
        "exits-silently",
        "exits-with-3",
        "half-header",
        "garbage",
        "no-colon",
        "no-header",
        "huge-header",
        "endless-header",
        "endless-zeros",
        "killed",
        "killed-in-header",
        "kills-its-group",
        "closes-all",
        "injects-cr",
        "injects-nul",
        "bad-status",
        "loops",
    ],
)
def test_a_bad_program_is_502(server, program):
    for body in (b"", b"x" * 100_000):
        answer = server.get(f"/cgi-bin/{program}", method="POST", body=body)
        assert (answer.status, answer.reason) == (502, "Bad Gateway")
        assert answer.headers["x-request-id"].encode() in answer.body
        server.wait_for_access(
            rf'/cgi-bin/{program} HTTP/1\.1" 502 .*id={answer.headers["x-request-id"]} .*outcome=failed'
        )
    fine(server)


def test_the_connection_goes_on_after_a_bad_program(server):
    raw = server.exchange(
        b"GET /cgi-bin/garbage HTTP/1.1\r\nHost: x\r\n\r\n"
        b"GET /cgi-bin/killed HTTP/1.1\r\nHost: x\r\n\r\n"
        b"GET /cgi-bin/hello?on HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"502", b"502", b"200"]


# What keeps silent.


@pytest.mark.parametrize("program", ["silent", "stopped", "ignores-term", "family", "tells-term"])
def test_a_silent_program_is_504_and_ended(server, program):
    answer = server.get(f"/cgi-bin/{program}", method="POST", body=b"x" * 100_000)
    assert (answer.status, answer.reason) == (504, "Gateway Timeout")
    server.wait_for_access(rf'/cgi-bin/{program} HTTP/1\.1" 504 .*outcome=timeout')
    fine(server)
    server.check_idle()


def test_a_program_is_asked_before_it_is_killed(quick):
    server = quick("--kill-timeout", "30")
    assert server.get("/cgi-bin/tells-term").status == 504
    # The shell says so only when its child got the signal too.
    server.wait_for_log(r"tells-term\[\d+\]: asked to end")
    server.wait_for_access(r"/cgi-bin/tells-term .*exit=1 .*outcome=timeout")


def test_a_program_that_ignores_term_is_killed(server):
    assert server.get("/cgi-bin/ignores-term").status == 504
    server.wait_for_access(r"/cgi-bin/ignores-term .*exit=SIGKILL .*outcome=timeout")


@pytest.mark.parametrize("program", ["stops-in-body", "stops-in-length", "killed-in-body"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_body_that_stops_is_truncated(server, program, version):
    request = f"GET /cgi-bin/{program} HTTP/{version}\r\nHost: x\r\n\r\n".encode()
    raw = server.exchange(request + request)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"so far\n" in body
    assert not body.endswith(b"0\r\n\r\n")
    assert raw.count(b"HTTP/1.1") == 1
    server.wait_for_access(rf'/cgi-bin/{program} HTTP/{version}" 200 .*outcome=(truncated|timeout)')
    ident = server.wait_for_access(rf"/cgi-bin/{program} .* id=(\S+)")[1]
    server.wait_for_log(rf"\[{ident}\] .*{program}")
    fine(server)
    server.check_idle()


def test_output_that_goes_on_resets_the_silence(server, programs):
    # Each line ends one silence; together they last longer than the longest allowed.
    misbehaviour.program(
        programs / "ticks", "#!/bin/sh\nprintf 'X: y\\n\\n'\nfor n in 1 2 3 4 5 6 7 8; do sleep 0.3; echo $n; done\n"
    )
    assert server.get("/cgi-bin/ticks").body == b"1\n2\n3\n4\n5\n6\n7\n8\n"


# Input that nobody reads, output that nobody waits for.


@pytest.mark.parametrize("program", ["never-reads", "closes-stdin"])
@pytest.mark.parametrize("size", [1, 100_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_input_that_is_not_read_is_no_error(server, program, size, chunked):
    head = f"POST /cgi-bin/{program} HTTP/1.1\r\nHost: x\r\n"
    if chunked:
        request = f"{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode() + bytes(size) + b"\r\n0\r\n\r\n"
    else:
        request = f"{head}Content-Length: {size}\r\n\r\n".encode() + bytes(size)
    last = b"GET /cgi-bin/hello?last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    raw = server.exchange(request + request + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"200"] * 3
    assert raw.count(b"not read\n") == 2
    assert b"hello last\n" in raw


@pytest.mark.parametrize("size", [0, 100_000, 5_000_000])
def test_writing_before_reading_does_not_deadlock(server, size):
    body = bytes(range(256)) * (size // 256)
    answer = server.get("/cgi-bin/writes-first", method="POST", body=body)
    assert answer.status == 200
    assert answer.body[:10_485_760].count(0) == 10_485_760
    assert answer.body[10_485_760:] == body


# stderr.


@pytest.mark.parametrize("program", ["floods-stderr", "one-long-line"])
def test_a_flood_on_stderr_is_drained_and_its_log_capped(server, program):
    answer = server.get(f"/cgi-bin/{program}")
    assert (answer.status, answer.body) == (200, b"all the same\n")
    server.wait_for_log(r"dropped")
    server.wait_for_access(rf"/cgi-bin/{program} .*outcome=ok")
    assert len(server.errors.text) < 1_000_000
    fine(server)


def test_stderr_is_logged_line_by_line_with_its_control_characters_escaped(server, programs):
    misbehaviour.program(
        programs / "mutters",
        "#!/bin/sh\nprintf 'one\\ntwo\\033[31m\\rthree\\000\\377\\n\\nlast without newline' >&2\nprintf 'X: y\\n\\n'\n",
    )
    answer = server.get("/cgi-bin/mutters")
    ident = answer.headers["x-request-id"]
    pid = server.wait_for_log(rf"\[{ident}\] mutters\[(\d+)\]: one$")[1]
    server.wait_for_log(rf"\[{ident}\] mutters\[{pid}\]: two\S+31m")
    server.wait_for_log(rf"\[{ident}\] mutters\[{pid}\]: last without newline$")
    server.wait_for_access(rf"/cgi-bin/mutters .*pid={pid} .*outcome=ok")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", server.errors.text)


# What a program leaves running.


@pytest.mark.parametrize("program", ["daemon", "quiet-daemon"])
def test_a_daemon_lives_on_and_holds_nobody(server, program):
    request = f"GET /cgi-bin/{program}?600 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    last = b"GET /cgi-bin/hello?last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    raw = server.exchange(request + last)
    daemon = int(re.search(rb"^(\d{2,})\r?$", raw.replace(b"\r\n\r\n", b"\n"), re.M)[1])
    try:
        assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"200", b"200"]
        assert b"hello last" in raw
        server.wait_for_access(rf"/cgi-bin/{program}\S* .*exit=0 outcome=ok")
        assert Path(f"/proc/{daemon}/stat").read_text().split()[2] in "SR"
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_daemon_survives_the_servers_end(serve, programs):
    server = serve(cgi_dir=programs)
    daemon = int(server.get("/cgi-bin/quiet-daemon?600").body)
    try:
        server.stop()
        assert Path(f"/proc/{daemon}/stat").read_text().split()[2] in "SR"
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_kill_group_ends_what_a_program_left_in_its_group(quick):
    server = quick("--kill-group")
    answer = server.get("/cgi-bin/daemon?600")
    daemon = int(answer.body)
    misbehaviour.wait_until_gone(daemon)
    fine(server)


def test_a_program_that_kills_its_spawner(quick):
    # Its parent is the spawner, and it has the same user: nothing keeps a program from doing this.
    server = quick()
    for _ in range(3):
        raw = server.exchange(b"GET /cgi-bin/kills-its-parent HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert re.match(rb"HTTP/1\.1 (200|50[023]) |$", raw)
    for _ in range(10):
        fine(server)


def test_a_program_that_kills_its_spawner_does_not_outlive_it(quick, programs):
    misbehaviour.program(programs / "usurper", "#!/bin/sh\necho $$ >usurper.pid\nkill -KILL $PPID\nexec sleep 600\n")
    server = quick()
    raw = server.exchange(b"GET /cgi-bin/usurper HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 50[023] |$", raw)
    fine(server)
    pid = int((programs / "usurper.pid").read_text())
    try:
        misbehaviour.wait_until_gone(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# Content-Length that lies (the bytes of it are in test_cgi_output).


@pytest.mark.parametrize(("program", "outcome"), [("lies-long", "truncated"), ("lies-short", "ok")])
def test_a_length_that_lies(server, program, outcome):
    raw = server.exchange(f"GET /cgi-bin/{program} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert raw.endswith(b"\r\n\r\nhello")
    server.wait_for_access(rf"/cgi-bin/{program} .*outcome={outcome}")
    fine(server)


# No processes, no descriptors, no disk.


def spawner_of(server):
    """The parent of a program is the spawner."""
    return int(server.get("/cgi-bin/parent").body)


def refuses(server, path="/cgi-bin/hello", **more):
    answer = server.get(path, **more)
    assert (answer.status, answer.reason) == (503, "Service Unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-request-id"].encode() in answer.body


@pytest.fixture
def open_place():
    """A directory where a user without rights may be."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "spool").mkdir()
        (place / "spool").chmod(0o777)
        yield place


def test_no_process_to_be_had_is_503(open_place, serve):
    """Others of the same user take the processes there may be, and give them back."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user, whom nobody else's processes count against")
    support.need("prlimit", "setpriv")
    user = str(100_000 + os.getpid())
    become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
    # It may still read every file, wherever the tests were checked out.
    become += ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    misbehaviour.program(open_place / "cgi" / "hello", (HOSTILE / "hello").read_text())
    with contextlib.ExitStack() as others:
        # Three processes, two threads that store bodies, and one program.
        server = serve(
            cgi_dir=open_place / "cgi", temp_dir=open_place / "spool", prefix=["prlimit", "--nproc=6:6", *become]
        )
        fine(server)
        taken = [others.enter_context(subprocess.Popen([*become, "sleep", "600"])) for _ in range(3)]
        others.callback(lambda: [other.kill() for other in taken])
        misbehaviour.wait_for(lambda: all(Path(f"/proc/{other.pid}").stat().st_uid == int(user) for other in taken))
        for size in (0, 1000):
            refuses(server, method="POST", body=bytes(size))
        server.wait_for_log(r"hello could not be started: Resource temporarily unavailable")
        assert server.get("/cgi-bin/hello", method="POST", body=bytes(1_000_000)).status in {500, 503, 507}
        for other in taken:
            other.kill()
            other.wait()
        fine(server)
        answer = server.get("/cgi-bin/hello?large", method="POST", body=bytes(1_000_000))
        assert (answer.status, answer.body) == (200, b"hello large\n")


@pytest.mark.parametrize("room", range(3, 12))
def test_no_descriptor_to_be_had_in_the_spawner_is_503(quick, programs, room):
    misbehaviour.program(programs / "parent", "#!/bin/sh\nprintf 'X: y\\n\\n%s' $PPID\n")
    server = quick()
    spawner = spawner_of(server)
    restore = misbehaviour.limit([spawner], resource.RLIMIT_NOFILE, room)
    for _ in range(3):
        answer = server.get(
            "/cgi-bin/hello?x", method="POST", body=b"Content-Type: of/the-body\n\nnot for the client\n"
        )
        # Never anything in between: an answer of its own, or none for now.
        if answer.status == 200:
            assert answer.body == b"hello x\n"
        elif answer.status == 502:
            # The limit is the program's too: the shell wants descriptor 10 for its script.
            server.wait_for_log(r"error \[\S+\] 502 .* ended with exit status 2")
        else:
            assert answer.status == 503, answer.body
            assert int(answer.headers["retry-after"]) > 0
    restore()
    for _ in range(3):
        fine(server)
    server.check_idle()


@pytest.mark.parametrize("size", [3, 300_000])
def test_no_descriptor_to_be_had_in_the_worker_is_503(quick, programs, size):
    misbehaviour.program(programs / "parent", "#!/bin/sh\nprintf 'X: y\\n\\n%s' $PPID\n")
    server = quick()
    spawner = spawner_of(server)
    (worker,) = server.workers()
    assert worker != spawner
    with server.socket() as sock:
        # Accepted and known before the descriptors are used up.
        sock.sendall(b"GET /cgi-bin/hello?1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello 1" in misbehaviour.read_response(sock)
        used = misbehaviour.highest_descriptor(worker) + 1
        for room in range(5):
            restore = misbehaviour.limit([worker], resource.RLIMIT_NOFILE, used + room)
            sock.sendall(b"POST /cgi-bin/hello?2 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            sock.sendall(bytes(size))
            got = misbehaviour.read_response(sock)
            assert re.match(rb"HTTP/1\.1 (503 |200 )", got), got
            assert (b"hello 2\n" in got) == got.startswith(b"HTTP/1.1 200")
            restore()
        sock.sendall(b"GET /cgi-bin/hello?3 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello 3" in misbehaviour.read_response(sock)
    fine(server)
    assert "Traceback" not in server.errors.text


def test_more_clients_than_descriptors_wait_and_are_served(serve, programs):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    support.need("prlimit")
    server = serve(cgi_dir=programs, prefix=["prlimit", "--nofile=80:80"])
    fine(server)
    socks = [server.socket() for _ in range(200)]
    try:
        # The first are served while the others hold what is left, or wait outside.
        socks[0].sendall(b"GET /cgi-bin/hello?first HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello first\n" in misbehaviour.read_response(socks[0])
        for sock in socks:
            sock.sendall(b"GET /cgi-bin/hello?each HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for sock in socks:
            got = b""
            while more := sock.recv(65536):
                got += more
            assert got.startswith(b"HTTP/1.1 200 ")
            assert b"hello each\n" in got
    finally:
        for sock in socks:
            sock.close()
    fine(server)
    assert server.errors.text.count("Too many open files") <= 3
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_accept_without_descriptors_is_tried_again(quick):
    server = quick()
    fine(server)
    (worker,) = server.workers()
    used = misbehaviour.highest_descriptor(worker) + 1
    restore = misbehaviour.limit([worker], resource.RLIMIT_NOFILE, used)
    socks = [server.socket() for _ in range(20)]
    for sock in socks:
        sock.sendall(b"GET /cgi-bin/hello?each HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    server.wait_for_log(r"Too many open files")
    restore()
    for sock in socks:
        got = b""
        while more := sock.recv(65536):
            got += more
        assert re.match(rb"HTTP/1\.1 (200|503) ", got)
        sock.close()
    fine(server)
    assert server.errors.text.count("wait to be accepted: Too many open files") == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a quarter of a megabyte."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)], check=False, capture_output=True
    )
    if mounted.returncode:
        support.missing("the right to mount")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_no_space_for_a_body_is_507_or_500_and_no_file_stays(quick, small_disk, framing):
    server = quick(temp_dir=small_disk)
    size = 3_000_000
    head = b"POST /cgi-bin/hello?x HTTP/1.1\r\nHost: x\r\n"
    if framing == "length":
        request = head + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"
    for _ in range(3):
        raw = server.exchange(request)
        assert re.match(rb"HTTP/1\.1 50[07] ", raw)
        assert raw.endswith(b"</html>\n")
    server.wait_for_log(r"could not be stored: No space left on device")
    free = os.statvfs(small_disk)
    misbehaviour.wait_for(lambda: os.statvfs(small_disk).f_bfree == os.statvfs(small_disk).f_blocks)
    assert list(small_disk.iterdir()) == []
    del free
    answer = server.get("/cgi-bin/hello?small", method="POST", body=bytes(100_000))
    assert (answer.status, answer.body) == (200, b"hello small\n")


def test_no_space_for_what_a_slow_client_has_not_taken(quick, programs, small_disk):
    blob = os.urandom(12_000_000)
    (programs / "blob").write_bytes(blob)
    misbehaviour.program(programs / "send", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n'\ncat blob\necho sent >&2\n")
    server = quick("--script-timeout", "30", temp_dir=small_disk)
    with server.socket() as sock:
        sock.sendall(b"GET /cgi-bin/send HTTP/1.0\r\n\r\n")
        assert sock.recv(1)
        fine(server)
        got = b""
        while more := sock.recv(65536):
            got += more
    assert got.endswith(blob)
    fine(server)


def test_a_file_size_limit_is_no_end_of_the_worker(quick):
    server = quick()
    fine(server)
    workers = server.workers()
    restore = misbehaviour.limit(workers, resource.RLIMIT_FSIZE, 1_000_000)
    answer = server.get("/cgi-bin/hello", method="POST", body=bytes(3_000_000))
    assert answer.status in {500, 507}
    server.wait_for_log(r"could not be stored: File too large")
    restore()
    fine(server)
    assert server.workers() == workers


def test_a_temporary_directory_that_vanishes(quick, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    server = quick(temp_dir=spool)
    spool.rmdir()
    assert server.get("/cgi-bin/hello", method="POST", body=bytes(3_000_000)).status in {500, 507}
    fine(server)
    spool.mkdir()
    assert server.get("/cgi-bin/hello", method="POST", body=bytes(3_000_000)).status == 200


def test_a_program_that_vanishes_or_appears(quick, programs):
    server = quick()
    fine(server)
    (programs / "hello").rename(programs / "moved")
    assert server.get("/cgi-bin/hello").status == 404
    assert server.get("/cgi-bin/moved?x").body == b"hello x\n"
    (programs / "moved").rename(programs / "hello")
    fine(server)


def test_hostile_programs_all_at_once_and_a_fine_one_among_them(quick):
    """Together, on one worker: none takes from the fine one what is its own."""
    server = quick()
    names = sorted(path.name for path in HOSTILE.iterdir() if path.name not in LEAVES_SOMETHING)
    with contextlib.ExitStack() as stack:
        socks = []
        for name in names:
            sock = stack.enter_context(server.socket())
            sock.sendall(f"GET /cgi-bin/{name}?1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            socks.append(sock)
        for n in range(20):
            assert server.get(f"/cgi-bin/hello?{n}").body == b"hello %d\n" % n
        for name, sock in zip(names, socks, strict=True):
            if name in ENDLESS:
                assert sock.recv(65536)
                continue
            got = b""
            while more := sock.recv(65536):
                got += more
            assert got, name
    fine(server)
    server.check_idle()


# Their output has no end; whoever asks leaves.
ENDLESS = {"endless-body"}
# Daemons by design, and the one that takes the spawner with it.
LEAVES_SOMETHING = {"daemon", "quiet-daemon", "kills-its-parent"}
