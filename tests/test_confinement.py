"""Limits of programs: hostile ones are held to them, and what they met with is named with its key."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.confinement import landlock
from gateway.confinement.cgroup import Cgroups, NoCgroup, OomWatch, own_directory
from gateway.confinement.model import CgroupLimits, Confinement, Limits, PathRules
from gateway.confinement.words import limit_met
from gateway.privileges import Account, has_capability
from tests import misbehaviour, support
from tests.confined_support import ALICE, BOB, needs_root, place, reason, run, status_of, who

__all__ = ["place", "run"]

HEAD = "printf 'Content-Type: text/plain\\n\\n'\n"
SHOW = f"#!/bin/sh\n{HEAD}cat /proc/self/limits\n"
# Some are set when it runs already; of CPU time the hard one.
UNTIL_SET = "while grep -q 'Max cpu time .*unlimited' /proc/$$/limits; do :; done\n"
SHOW_SET = f"#!/bin/sh\n{UNTIL_SET}{HEAD}cat /proc/$$/limits\n"
NAMES = {
    "cpu": "Max cpu time", "memory": "Max address space", "processes": "Max processes", "files": "Max open files",
    "file_size": "Max file size", "core": "Max core file size",
}  # fmt: skip


def limits_in(text):
    """Return soft and hard limit of each kind, as /proc tells them."""
    found = {}
    for name, title in NAMES.items():
        soft, hard = re.search(rf"^{title}\s+(\S+)\s+(\S+)", text, re.MULTILINE).groups()
        found[name] = soft, hard
    return found


@pytest.mark.parametrize("warm", ["", 'warm = "require"'])
def test_a_limit_that_is_too_low_for_the_spawner_reaches_its_programs(run, place, warm):
    support.need_file("/usr/bin/python3")
    shows = (
        "#!/usr/bin/python3\nimport resource\nprint('X: y\\n')\n"
        "while resource.getrlimit(resource.RLIMIT_NOFILE)[1] != 20: pass\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), *resource.getrlimit(resource.RLIMIT_AS))\n"
    )
    place.route("a", f'limits = {{ files = 20, memory = "60M" }}\n{warm}', shows=shows)
    server = run()
    for _ in range(10):
        assert server.get("/a/shows").text == f"20 20 {60 * 1024**2} {60 * 1024**2}\n"


def test_each_limit_reaches_the_program_and_no_other_route(run, place):
    limits = 'limits = { cpu = 10, memory = "512M", processes = 2000, files = 64, file_size = "1G", core = 0 }'
    place.route("a", limits, show=SHOW_SET)
    place.route("b", show=SHOW)
    server = run()
    usual = limits_in(Path(f"/proc/{server.pid}/limits").read_text())
    mega = str(512 * 1024**2)
    assert limits_in(server.get("/a/show").text) == {
        "cpu": ("10", "12"), "memory": (mega, mega), "processes": ("2000", "2000"), "files": ("64", "64"),
        "file_size": (str(1024**3), str(1024**3)), "core": ("0", "0"),
    }  # fmt: skip
    # The server's own.
    assert limits_in(server.get("/b/show").text) == usual


def test_a_route_overrides_the_servers_limits_one_by_one(run, place):
    place.server = 'limits = { cpu = 10, files = 64, core = 0 }\nno_new_privileges = true'
    place.route("a", show=SHOW)
    place.route("b", 'limits = { cpu = 20, core = "unlimited" }\nno_new_privileges = false', show=SHOW)
    server = run()
    a, b = (limits_in(server.get(f"/{name}/show").text) for name in "ab")
    assert (a["cpu"][0], a["files"][0], a["core"][0]) == ("10", "64", "0")
    assert (b["cpu"][0], b["files"][0]) == ("20", "64")
    assert b["core"] == limits_in(Path(f"/proc/{server.pid}/limits").read_text())["core"]
    privileges = [status_of(pid)["NoNewPrivs"] for pid in sorted(server.spawners())]
    assert sorted(privileges) == ["0", "1"]


@pytest.mark.parametrize("warm", ["", 'warm = "require"'])
def test_a_loop_ends_and_the_log_names_its_limit(run, place, warm):
    if warm:
        support.need_file("/usr/bin/python3")
    loop = "#!/usr/bin/python3\nwhile True: pass\n" if warm else "#!/bin/sh\nwhile :; do :; done\n"
    place.route("a", f"limits = {{ cpu = 1 }}\n{warm}", loop=loop)
    said = reason(run(), "/a/loop", 502)
    assert re.search(r"was killed by SIGXCPU .*; it used more than its 1 s of CPU \(limits\.cpu\)", said)


def test_who_ignores_the_signal_is_killed(run, place):
    deaf = "#!/bin/sh\ntrap '' XCPU\nwhile :; do :; done\n"
    place.route("a", "limits = { cpu = 1 }", loop=deaf)
    said = reason(run(), "/a/loop", 502)
    assert re.search(r"was killed by SIGKILL .*; it used more than its 1 s of CPU \(limits\.cpu\)", said)


def test_the_limit_of_cpu_time_is_not_that_of_the_spawner(run, place):
    """It uses more itself than each of its programs may."""
    place.route("a", "limits = { cpu = 1 }", loop="#!/bin/sh\nwhile :; do :; done\n", exits=f"#!/bin/sh\n{HEAD}")
    server = run()
    (spawner,) = server.spawners()
    with server.socket() as client:
        while cpu_of(spawner) < 1.1:
            client.sendall(b"GET /a/exits HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            got = b""
            while got.count(b"HTTP/1.1 200 OK\r\n") < 50:
                got += (more := client.recv(65536))
                assert more
    assert "SIGXCPU" in reason(server, "/a/loop", 502)
    assert server.spawners() == [spawner]
    assert limits_in(Path(f"/proc/{spawner}/limits").read_text())["cpu"][0] == "unlimited"


def cpu_of(pid):
    """Return the seconds of CPU time that a process has used itself."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kind", ["python", "warm", "perl"])
def test_who_wants_too_much_memory_is_told_so(run, place, kind):
    support.need_file("/usr/bin/python3")
    support.need("perl")
    hog = {
        "perl": "#!/usr/bin/perl\nmy $x = 'x' x 1_000_000_000; print \"X: y\\n\\n\";\n",
    }.get(kind, "#!/usr/bin/python3\nx = b'x' * 1_000_000_000\nprint('X: y\\n')\n")
    warm = 'warm = "require"' if kind == "warm" else ""
    place.route("a", f'limits = {{ memory = "200M" }}\n{warm}', hog=hog)
    said = reason(run(), "/a/hog", 502)
    assert "that may be for limits.memory = 200M" in said


def test_so_little_memory_that_nothing_starts(run, place):
    place.route("a", 'limits = { memory = "1M" }', other="#!/bin/sh\nread line\nexec id\n")
    said = reason(run(), "/a/other", 502)
    assert "that may be for limits.memory = 1M" in said


def test_who_opens_too_many_files_is_told_so(run, place):
    support.need_file("/usr/bin/python3")
    hog = "#!/usr/bin/python3\nopened = [open('/dev/null') for _ in range(100)]\nprint('X: y\\n')\n"
    place.route("a", "limits = { files = 64 }", hog=hog)
    assert "that may be for limits.files = 64" in reason(run(), "/a/hog", 502)


@pytest.mark.parametrize("kind", ["signal", "error"])
def test_who_writes_too_large_a_file_is_told_so(run, place, kind):
    support.need_file("/usr/bin/python3")
    target = place.root / "spool" / "large"
    big = {
        # A shell's own writes: SIGXFSZ ends it. Python ignores that signal, and is told by an error.
        "signal": f"#!/bin/sh\nexec dd if=/dev/zero of={target} bs=64k count=100 2>/dev/null\n",
        "error": f"#!/usr/bin/python3\nwith open('{target}', 'wb') as file: file.write(bytes(6_000_000))\n",
    }[kind]
    place.route("a", 'limits = { file_size = "1M" }', big=big)
    said = reason(run(), "/a/big", 502)
    assert "limits.file_size = 1M" in said
    assert ("SIGXFSZ" in said) == (kind == "signal")
    assert target.stat().st_size == 1024**2
    target.unlink()


@needs_root
def test_a_fork_bomb_is_bounded_and_told_so(run, place):
    """It starts processes that wait until it may start no more; the user's spawner then has none, either."""
    bomb = "#!/bin/sh\nn=0\nwhile :; do sleep 600 >/dev/null 2>&1 & n=$((n+1)); done\n"
    place.route("a", f'user = "{ALICE}"\nlimits = {{ processes = 20 }}\nkill_group = true', bomb=bomb)
    place.route("b", f'user = "{BOB}"\nlimits = {{ processes = 20 }}')
    server = run()
    said = reason(server, "/a/bomb", 502)
    assert re.search(rf"that may be for limits\.processes = 20 of user {ALICE}", said), said
    # The kernel counts those that have been killed until somebody has reaped them.
    misbehaviour.wait_for(lambda: server.get("/a/who").status == 200)
    assert who(server, "a")[0] == ALICE


@needs_root
@pytest.mark.parametrize("more", ["", ", files = 100"])
def test_no_process_to_be_had_names_the_limit(run, place, more):
    keys = f'user = "{ALICE}"\nlimits = {{ processes = 3{more} }}'
    place.route("a", keys)
    place.route("b", f'user = "{BOB}"\nlimits = {{ processes = 3 }}', simple=f"#!/bin/sh\n{HEAD}")
    server = run()
    become = ["setpriv", "--reuid", str(ALICE), "--regid", str(ALICE), "--clear-groups"]
    taken = [subprocess.Popen([*become, "sleep", "600"]) for _ in range(3)]
    try:
        misbehaviour.wait_for(lambda: all(Path(f"/proc/{one.pid}").stat().st_uid == ALICE for one in taken))
        said = reason(server, "/a/who", 503)
        assert f"Resource temporarily unavailable; that may be for limits.processes = 3 of user {ALICE}" in said
        assert server.get("/b/simple").status == 200
    finally:
        for one in taken:
            one.kill()
            one.wait()
    misbehaviour.wait_for(lambda: server.get("/a/who").status in {200, 502})


@needs_root
def test_root_is_not_counted_and_that_is_said(run, place):
    place.route("a", "limits = { processes = 20 }")
    server = run()
    server.wait_for_log(r"warning limits\.processes is NOT in force for root")
    assert "warning  limits.processes is NOT in force for root" in place.check()[1]


@needs_root
def test_a_set_user_id_program_gains_nothing(run, place):
    copy = place.root / "setuid-id"
    shutil.copy("/usr/bin/id", copy)
    copy.chmod(0o4755)
    if os.statvfs(copy).f_flag & os.ST_NOSUID:
        pytest.skip("its file system is mounted nosuid")
    program = f"#!/bin/sh\n{HEAD}{copy} -u\n"
    place.route("a", f'user = "{ALICE}"\nno_new_privileges = true', up=program)
    place.route("b", f'user = "{ALICE}"', up=program)
    server = run()
    assert server.get("/a/up").text == f"{ALICE}\n"
    assert server.get("/b/up").text == "0\n"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("limits = { cpus = 3 }", r"routes\[1\]\.limits\.cpus: there is no such key; did you mean cpu\?"),
        ('limits = { cpu = "long" }', r"routes\[1\]\.limits\.cpu: 'long' is not a time.*, or \"unlimited\""),
        ("limits = { cpu = 0 }", r"routes\[1\]\.limits\.cpu: 0: with that nothing runs"),
        ("limits = { files = 2.5 }", r"routes\[1\]\.limits\.files: a number where"),
        ('limits = { files = "many" }', r"routes\[1\]\.limits\.files: 'many' is not a whole number, or \"unlimited\""),
        ('limits = { memory = "1 pound" }', r"routes\[1\]\.limits\.memory: '1 pound' is not a size"),
        ('landlock = { read = ["nowhere"] }', r"routes\[1\]\.landlock\.read\[1\]: .*/nowhere does not exist"),
        ("cgroup = { cpu = -1 }", r"routes\[1\]\.cgroup\.cpu: -1(\.0)? is not a number of CPUs"),
        ("no_new_privileges = 1", r"routes\[1\]\.no_new_privileges: a whole number where true or false"),
    ],
)
def test_mistakes(place, keys, words):
    place.route("a", keys)
    status, said = place.check()
    assert status == 2
    assert re.search(words, said), said


def test_more_than_the_server_itself_has(place):
    if has_capability(24):
        pytest.skip("this process may have as much as it wants")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    place.route("a", f"limits = {{ files = {hard + 1} }}")
    status, said = place.check()
    assert status == 2
    assert f"routes[1].limits.files: {hard + 1}: more than the server itself may have, {hard}" in said


@needs_root
def test_check_and_print_config_show_it(place):
    place.route("a", f'user = "{ALICE}"\nlimits = {{ cpu = 10, memory = "1536K" }}\ncgroup = {{ cpu = 0.5 }}\n'
                     'landlock = { read = ["/usr"], write = ["spool"] }')
    _, words = place.check()
    for line in (
        f"as user {ALICE} (uid {ALICE}, gid {ALICE}, groups {ALICE})", "no_new_privileges",
        "limits cpu = 10, memory = 1536K", "cgroup cpu = 0.5", "landlock.read /usr",
        f"landlock.write {place.root}/spool",
    ):  # fmt: skip
        assert f"           {line}\n" in words
    _, shown = place.check("--print-config")
    assert f"routes[1].mount.confinement.account.uid = {ALICE}\n" in shown
    assert "routes[1].mount.confinement.limits.cpu = 10\n" in shown
    assert f'routes[1].mount.confinement.landlock.write = ["{place.root}/spool"]\n' in shown


# The line of those who wait is one for all.


@needs_root
def test_places_are_the_workers_over_all_its_spawners(run, place, tmp_path):
    gate = misbehaviour.Gate(place.root / "gate")
    gate.path.chmod(0o666)
    waits = f"#!/bin/sh\necho \"begun $$\" >&2\nread line <{gate.path}\n{HEAD}"
    place.server = "max_programs = 2"
    for name, user in (("a", ALICE), ("b", BOB)):
        place.route(name, f'user = "{user}"', waits=waits)
    server = run()
    clients = []
    for name in "abab":
        client = server.socket()
        client.sendall(f"GET /{name}/waits HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        clients.append(client)
        if len(clients) <= 2:
            misbehaviour.wait_for(lambda: server.errors.text.count("begun") == len(clients))
    for number, client in enumerate(clients):
        # Two run, never a third; the next begins when one has ended.
        misbehaviour.wait_for(lambda number=number: server.errors.text.count("begun") == min(number + 2, 4))
        gate.open()
        misbehaviour.wait_for(lambda number=number: server.accesses.text.count("outcome=ok") == number + 1)
        del client
    for client in clients:
        assert b"200" in support.receive_all(client)
        client.close()
    gate.wait_until_passed()
    gate.close()


# Landlock.


READS = f"#!/bin/sh\n{HEAD}cat $QUERY_STRING 2>&1\n"
WRITES = f"#!/bin/sh\n{HEAD}echo x 2>&1 >$QUERY_STRING && echo written\n"


@pytest.mark.parametrize("user", [pytest.param(True, marks=needs_root), False])
def test_what_a_program_reaches_of_the_file_system(run, place, user):
    (place.root / "secret").write_text("secret")
    (place.root / "open").mkdir()
    (place.root / "open" / "file").write_text("public")
    (place.root / "drop").mkdir()
    (place.root / "drop").chmod(0o777)
    keys = f'user = "{ALICE}"\n' if user else ""
    rules = 'landlock = { read = ["/usr", "/bin", "/lib", "open"], write = ["drop"] }'
    place.route("a", keys + rules, reads=READS, writes=WRITES)
    place.route("b", keys, reads=READS)
    server = run()
    root = place.root
    if landlock.missing():
        server.wait_for_log(r"warning the rules of landlock are NOT in force.*: .*Landlock")
        assert "warning  the rules of landlock are NOT in force" in place.check()[1]
        assert server.get(f"/a/reads?{root}/secret").text == "secret"
    else:
        assert "Permission denied" in server.get(f"/a/reads?{root}/secret").text
        assert "Permission denied" in server.get("/a/reads?/etc/passwd").text
        server.get(f"/a/writes?{root}/spool/x")
        assert not (root / "spool" / "x").exists()
        assert "NOT in force" not in server.errors.text
    assert server.get(f"/a/reads?{root}/open/file").text == "public"
    assert server.get(f"/a/writes?{root}/drop/x").text == "written\n"
    assert server.get("/a/writes?/dev/null").text == "written\n"
    assert server.get(f"/b/reads?{root}/secret").text == "secret"
    spawners = {status_of(pid)["NoNewPrivs"] for pid in server.spawners()}
    assert spawners == {"0", "1"}


@pytest.mark.parametrize("warm", ["", 'warm = "require"'])
@pytest.mark.parametrize("language", ["python", "perl", "sh"])
def test_scripts_run_with_the_default_rules(run, place, warm, language):
    support.need_file("/usr/bin/python3")
    support.need("perl")
    if language == "sh" and warm:
        pytest.skip("a shell is never warm")
    script = {
        "python": "#!/usr/bin/python3\nimport json, random, tempfile\nprint('X: y\\n\\n' + json.dumps('fine'))\n",
        "perl": "#!/usr/bin/perl\nuse strict; use POSIX; print \"X: y\\n\\n\\\"fine\\\"\\n\";\n",
        "sh": f"#!/bin/sh\n{HEAD}date >/dev/null && echo '\"fine\"' | cat\n",
    }[language]
    place.route("a", f"landlock = true\n{warm}", script=script)
    answer = run().get("/a/script")
    assert (answer.status, answer.text) == (200, '"fine"\n')


@pytest.mark.skipif(bool(landlock.missing()), reason="this kernel has no Landlock")
def test_a_program_that_the_rules_do_not_let_start(run, place):
    place.route("a", 'landlock = { read = ["/etc"] }')
    assert "landlock.read has not all that it is made of" in reason(run(), "/a/who", 500)


@pytest.mark.skipif(bool(landlock.missing()), reason="this kernel has no Landlock")
def test_a_spawner_that_cannot_be_confined_starts_nothing_and_says_so(run, place):
    (place.root / "open").mkdir()
    place.route("a", 'landlock = { read = ["/usr", "/bin", "/lib", "open"] }')
    place.route("b")
    server = run()
    spawner = int(server.get("/a/parent").text.split()[0])
    (place.root / "open").rmdir()
    os.kill(spawner, signal.SIGKILL)
    server.wait_for_log(
        r"error spawner 1\.1 does not start any program: it could not make the rules for the file system "
        rf"\(landlock\): {place.root}/open: No such file or directory"
    )
    # Those of the other route run, whoever waits.
    with server.socket() as client:
        client.sendall(b"GET /a/parent HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert server.get("/b/parent").status == 200
        (place.root / "open").mkdir()
        assert b"200" in support.receive_all(client)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSYS, "this kernel has no Landlock: it needs Linux 5.13"),
        (errno.EOPNOTSUPP, "Landlock is switched off in this kernel: boot it with lsm=landlock"),
        (errno.EPERM, "Landlock cannot be used: Operation not permitted"),
    ],
)
def test_why_there_is_no_landlock(number, words):
    def call(*_):
        raise OSError(number, os.strerror(number))

    assert words in landlock.missing(call)


@pytest.mark.parametrize(("version", "handled"), [(1, 13), (2, 14), (3, 15), (4, 15), (5, 16), (9, 16)])
def test_only_rights_that_the_kernel_knows_are_asked_for(tmp_path, version, handled):
    calls = []

    def call(number, *arguments):
        calls.append((number, arguments))
        if number == 444 and arguments[0] is None:
            return version
        return 99

    landlock.ruleset(PathRules((str(tmp_path),), ()), (), call)
    (attributes,) = [arguments[0] for number, arguments in calls if number == 444 and arguments[0]]
    assert int.from_bytes(attributes, "little") == (1 << handled) - 1
    for number, arguments in calls:
        if number == 445:
            assert not int.from_bytes(arguments[2][:8], "little") >> handled


# Control groups.


def test_where_we_are():
    mounts = (
        "22 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
        "30 22 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    assert own_directory(mounts, "4:memory:/x\n0::/a/b\n") == "/sys/fs/cgroup/unified/a/b"
    within = "30 22 0:27 /docker/7 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert own_directory(within, "0::/docker/7/x\n") == "/sys/fs/cgroup/x"
    for mount, own in (("", "0::/\n"), (mounts, "4:memory:/x\n")):
        with pytest.raises(NoCgroup, match="there is no cgroup v2"):
            own_directory(mount, own)


@pytest.fixture
def tree(tmp_path):
    """A stand-in for a delegated group, of plain files."""
    for name, text in {
        "cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "", "cgroup.procs": "",
        "cgroup.type": "domain",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    return tmp_path


CONFINED = Confinement(cgroup=CgroupLimits(memory=1024, processes=5, cpu=0.5))


def test_a_group_has_its_limits(tree):
    cgroups = Cgroups(str(tree))
    cgroups.prepare([CONFINED], [])
    assert (tree / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (tree / "server").is_dir()
    directory = Path(cgroups.directory(CONFINED))
    directory.mkdir()
    for name in ("memory.max", "pids.max", "cpu.max"):
        (directory / name).touch()
    assert cgroups.make(CONFINED) == str(directory)
    found = [(directory / name).read_text() for name in ("memory.max", "pids.max", "cpu.max")]
    assert found == ["1024", "5", "50000 100000"]
    assert cgroups.directory(CONFINED) != cgroups.directory(Confinement(cgroup=CgroupLimits(memory=1024)))
    many = Confinement(cgroup=CgroupLimits(processes=10_000_000))
    Path(cgroups.directory(many)).mkdir()
    (limit := Path(cgroups.directory(many), "pids.max")).touch()
    cgroups.make(many)
    assert limit.read_text() == "4194304"
    events = directory / "memory.events"
    events.write_text("low 0\noom_kill 2\n")
    watch = OomWatch(str(directory))
    assert not watch.has_killed()
    events.write_text("low 0\noom_kill 3\n")
    assert watch.has_killed()
    assert not watch.has_killed()
    assert not OomWatch("").has_killed()


def test_an_unused_group_goes_and_a_used_one_stays(tree):
    for name in ("programs-1", "programs-2", "other"):
        (tree / name).mkdir()
    (tree / "programs-2" / "somebody").touch()
    Cgroups(str(tree)).remove_unused()
    assert {path.name for path in tree.iterdir() if path.is_dir()} == {"programs-2", "other"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cgroup.controllers", "cpu\n", "has no controller for memory, pids .*Delegate=yes"),
        ("cgroup.procs", "1\n", "other processes are in .*Delegate=yes"),
        ("cgroup.controllers", None, "cgroup.controllers: No such file"),
    ],
)
def test_why_there_are_no_groups(tree, name, text, words):
    if text is None:
        (tree / name).unlink()
    else:
        (tree / name).write_text(text)
    with pytest.raises(NoCgroup, match=words):
        Cgroups(str(tree)).prepare([CONFINED], [])


MOVES = """
import os, sys
from gateway.confinement.cgroup import Cgroups, NoCgroup, join
from gateway.confinement.model import Confinement

base = sys.argv[1]
join(base)
cgroups = Cgroups.found()
assert cgroups.base == base
try:
    cgroups.prepare([], [])
except NoCgroup as error:
    print("refused" if "other processes" in str(error) else error)
cgroups.prepare([], [os.getpid()])
assert Cgroups.found().base == base
directory = cgroups.make(Confinement())
reading, writing = os.pipe()
told, telling = os.pipe()
if not (child := os.fork()):
    os.close(writing)
    join(directory)
    os.write(telling, b"!")
    os.read(reading, 1)
    os._exit(0)
os.read(told, 1)
print(open(base + "/cgroup.procs").read() == "", open(base + "/server/cgroup.procs").read() == f"{os.getpid()}\\n")
print(open(directory + "/cgroup.procs").read() == f"{child}\\n")
cgroups.remove_unused()
print(os.path.exists(directory), flush=True)
os.close(writing)
os.waitpid(child, 0)
cgroups.undo()
print(sorted(name for name in os.listdir(base) if os.path.isdir(base + "/" + name)))
"""


@pytest.fixture
def group():
    """A real group below the one of the tests."""
    try:
        base = Cgroups.found().base
        os.mkdir(made := f"{base}/gateway-test-{os.getpid()}")
    except (NoCgroup, OSError) as error:
        pytest.skip(f"no cgroup of version 2 can be made here: {error}")
    yield made
    os.rmdir(made)


def test_processes_move_into_groups_and_leave_none_behind(group):
    """The kernel's part, without limits: those take controllers."""
    command = [sys.executable, "-c", MOVES, group]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=support.ROOT, timeout=support.PATIENCE, check=False
    )
    assert ended.stdout.split("\n") == ["refused", "True True", "True", "True", "[]", ""], ended.stderr


def delegated():
    """Whether this process could have groups for its programs."""
    try:
        Cgroups.found().prepare([CONFINED], [os.getpid()], tries=True)
    except NoCgroup:
        return False
    return True


def test_where_there_are_no_groups_it_is_said_aloud_and_served(run, place):
    if delegated():
        pytest.skip("here there are")
    place.route("a", 'cgroup = { memory = "100M", processes = 20 }')
    server = run()
    server.wait_for_log(r"warning the limits of cgroup are NOT in force: .*(Delegate=yes|cgroup v2)")
    assert server.get("/a/who").status == 200
    assert re.search(r"warning  the limits of cgroup are NOT in force: .*where this check runs", place.check()[1])


# Words.


@pytest.mark.parametrize(
    ("confinement", "status", "cpu", "stderr", "oom", "words"),
    [
        (Confinement(limits=Limits(cpu=3)), signal.SIGXCPU, 3.0, "", False, r"its 3 s of CPU \(limits\.cpu\)"),
        (Confinement(), signal.SIGXCPU, 3.0, "", False, r"more than its share of CPU"),
        (Confinement(limits=Limits(cpu=3)), signal.SIGKILL, 1.0, "", False, r"^$"),
        (CONFINED, signal.SIGKILL, 0.0, "", True, r"out of memory \(cgroup\.memory = 1K\)"),
        (CONFINED, signal.SIGKILL, 0.0, "", False, r"^$"),
        (CONFINED, 1 << 8, 0.0, "sh: 0: Cannot fork", False, r"that may be for cgroup\.processes = 5"),
        (Confinement(limits=Limits(memory=2048)), signal.SIGSEGV, 0.0, "", False, r"may be for limits\.memory = 2K"),
        (Confinement(limits=Limits(files=9)), 1 << 8, 0.0, "MemoryError", False, r"^$"),
        (
            Confinement(limits=Limits(files=1)), 127 << 8, 0.0,
            "libc.so.6: cannot open shared object file: Error 24", False, r"limits\.files = 1",
        ),
        (
            Confinement(Account("alice", 1, 1, ()), limits=Limits(processes=9)), 1 << 8, 0.0, "can't start new thread",
            False, r"limits\.processes = 9 of user alice",
        ),
    ],
)  # fmt: skip
def test_which_limit_was_met(confinement, status, cpu, stderr, oom, words):
    assert re.search(words, limit_met(confinement, int(status), cpu, stderr, oom))


def test_the_numbers_of_the_system_calls():
    """They are the same on every machine since 5.1; this kernel's own answer is no surprise to us."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    assert (version > 0) == (not landlock.missing())
