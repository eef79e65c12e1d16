"""Who runs as whom: workers, programs, warm interpreters and pools; and that nobody of them survives."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fcgi_pool.listener import set_access
from gateway.cgi.roll import Roll
from gateway.control_words import LEFT, left_in
from gateway.privileges import Account, account_of
from tests import misbehaviour, support
from tests.confined_support import ALICE, BOB, hold, needs_root, place, reason, run, status_of, uid_of, who

__all__ = ["place", "run"]

PYTHON = "#!/usr/bin/python3\nimport os\nprint('X: y\\n\\n%d %d %d' % (os.getuid(), os.getppid(), os.getpid()))\n"


def two(place, server=""):
    place.server = server
    place.route("a", f'user = "{ALICE}"')
    place.route("b", f'user = "{BOB}"')
    place.route("c")


# Who is who.


@needs_root
def test_each_route_has_its_user_and_the_worker_the_servers(run, place):
    two(place, 'user = "www-data"')
    server = run()
    www = pwd.getpwnam("www-data")
    assert who(server, "a") == [ALICE, ALICE, ALICE]
    assert who(server, "b") == [BOB, BOB, BOB]
    assert who(server, "c") == [www.pw_uid, www.pw_gid, www.pw_gid]
    (worker,) = server.workers()
    assert uid_of(worker) == www.pw_uid
    assert sorted(uid_of(pid) for pid in server.spawners()) == sorted([ALICE, BOB, www.pw_uid])
    for pid in [worker, *server.spawners()]:
        # All that there is of a user: real, effective, saved and for files; and no capability is left.
        assert len(set(status_of(pid)["Uid"].split())) == 1
        assert len(set(status_of(pid)["Gid"].split())) == 1
        assert int(status_of(pid)["CapEff"], 16) == int(status_of(pid)["CapPrm"], 16) == 0
        assert int(status_of(pid)["CapAmb"], 16) == 0


@needs_root
def test_routes_that_may_do_the_same_share_a_spawner(run, place):
    place.route("a", f'user = "{ALICE}"')
    place.route("b", f'user = "{ALICE}"\ngroup = "{ALICE}"')
    place.route("c", f'user = "{ALICE}"\ngroup = "{BOB}"')
    server = run()
    parents = {name: server.get(f"/{name}/parent").text.split()[0] for name in "abc"}
    assert parents["a"] == parents["b"] != parents["c"]
    assert len(server.spawners()) == 2
    assert who(server, "c") == [ALICE, BOB, BOB]


def test_a_server_without_confinements_has_one_spawner(run, place):
    for name in "abc":
        place.route(name)
    assert len(run().spawners()) == 1


@needs_root
@pytest.mark.parametrize("name", [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid][-8:])
def test_the_groups_are_those_of_the_user(name):
    account = account_of(name, "")
    said = subprocess.run(["id", "-G", name], capture_output=True, text=True, check=True).stdout
    assert sorted(account.groups) == sorted(map(int, said.split()))
    more = account_of(name, "daemon")
    assert more.gid == grp.getgrnam("daemon").gr_gid
    assert set(more.groups) <= {*account.groups, more.gid}


@needs_root
def test_the_servers_group_is_not_that_of_a_routes_user(run, place):
    place.server = 'user = "www-data"\ngroup = "daemon"'
    place.route("a", f'user = "{ALICE}"')
    place.route("b", 'group = "games"')
    place.route("c")
    server = run()
    www, daemon, games = pwd.getpwnam("www-data").pw_uid, grp.getgrnam("daemon").gr_gid, grp.getgrnam("games").gr_gid
    assert who(server, "a") == [ALICE, ALICE, ALICE]
    assert who(server, "b")[:2] == [www, games]
    assert who(server, "c")[:2] == [www, daemon]


@needs_root
def test_the_environment_stays_as_it_is(run, place):
    place.route("a", f'user = "{ALICE}"', variables="#!/bin/sh\nprintf 'X: y\\n\\n'\nenv\n")
    found = run().get("/a/variables").text
    assert not re.search(r"^(HOME|USER|LOGNAME|SHELL|MAIL)=", found, re.MULTILINE)
    assert "SCRIPT_NAME=/a/variables" in found


@needs_root
@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_body_reaches_a_program_of_another_user(run, place, size):
    place.server = 'user = "www-data"'
    place.route("a", f'user = "{ALICE}"', echo="#!/bin/sh\nprintf 'X: y\\n\\n'\nexec cat\n")
    body = os.urandom(size)
    assert run().get("/a/echo", method="POST", body=body).body == body


# Warm, and pools.


def need_open_checkout():
    """Skip where the tests were checked out into a directory that others may not enter: nor can warm interpreters."""
    if Account("", ALICE, ALICE, (ALICE,)).closed_directory(str(support.ROOT / "gateway" / "x")):
        pytest.skip("the code is where other users may not enter")
    support.need_file("/usr/bin/python3")


def pooled(start, *options, **more):
    """Start a server with pools, whose processes are there while it is; it is the caller's to stop."""
    server = start(*options, **more, wait=False)
    server.wait_for_log(r"^gateway: ready")
    server.port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", server.errors.text)[1])
    return server


@needs_root
def test_an_interpreter_is_never_shared_by_two_users(run, place):
    need_open_checkout()
    for name, user in (("a", ALICE), ("b", BOB)):
        place.route(name, f'user = "{user}"\nwarm = "require"', script=PYTHON)
    server = run()
    seen = {}
    for name, user in [("a", ALICE), ("b", BOB)] * 3:
        uid, parent, _ = map(int, server.get(f"/{name}/script").text.split())
        assert uid == user
        seen.setdefault(name, set()).add(parent)
    assert not seen["a"] & seen["b"]
    for spawner in server.spawners():
        found = support.warm_interpreters(spawner)
        assert found
        assert {uid_of(pid) for pid in found} == {uid_of(spawner)}


@needs_root
def test_reused_scripts_run_as_the_routes_user(run, place):
    need_open_checkout()
    place.server = 'user = "www-data"\nno_new_privileges = true'
    for name, user in (("a", ALICE), ("b", BOB)):
        keys = f'user = "{user}"\nwarm = "reuse"\nlimits = {{ files = 99, core = 0 }}'
        place.route(name, keys, script=PYTHON, limit="#!/usr/bin/python3\nimport resource\nprint('X: y\\n')\n"
                    "print(*resource.getrlimit(resource.RLIMIT_NOFILE), *resource.getrlimit(resource.RLIMIT_CORE))\n")
    server = pooled(run)
    for name, user in [("a", ALICE), ("b", BOB)]:
        uid, _, pid = map(int, server.get(f"/{name}/script").text.split())
        assert uid == user
        assert status_of(pid)["NoNewPrivs"] == "1"
        assert server.get(f"/{name}/limit").text.split() == ["99", "99", "0", "0"]
    server.stop()


@needs_root
@pytest.mark.parametrize("own", [False, True])
def test_a_pool_runs_as_the_servers_user_or_its_own(run, place, own):
    need_open_checkout()
    (place.root / "app.py").write_text(
        "import os\n\n\ndef application(environ, start_response):\n    start_response('200 OK', [])\n"
        "    return [b'%d %d' % (os.getuid(), os.getgid())]\n"
    )
    place.server = f'user = "www-data"\ngroup = "{ALICE}"'
    place.route("c")
    place.more = (
        f'[pools.app]\napp = "app:application"\npython = "/usr/bin/python3"\nchdir = "{place.root}"\nmax_children = 1\n'
        + (f'user = "{BOB}"\n' if own else "")
        + '[[routes]]\npath = "/app/"\nfastcgi = "pool:app"'
    )
    server = pooled(run)
    www = pwd.getpwnam("www-data").pw_uid
    assert server.get("/app/").text == (f"{BOB} {BOB}" if own else f"{www} {ALICE}")
    server.stop()


@needs_root
def test_a_reload_to_another_user_that_is_refused_leaves_the_pools_within_reach(run, place):
    need_open_checkout()
    (place.root / "app.py").write_text(
        "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'here']\n"
    )
    place.server = f'user = "{ALICE}"'
    place.more = (
        f'[pools.app]\napp = "app:application"\npython = "/usr/bin/python3"\nchdir = "{place.root}"\nmax_children = 1\n'
        'user = "www-data"\n[[routes]]\npath = "/app/"\nfastcgi = "pool:app"'
    )
    server = pooled(run)
    place.server = f'user = "{BOB}"\npid_file = "no/such/directory/pid"'
    place.write()
    os.kill(server.pid, signal.SIGHUP)
    server.wait_for_log("not reloaded, all stays as it was: .*pid_file")
    assert server.get("/app/").text == "here"
    server.stop()


# What is not allowed is said in words.


@needs_root
@pytest.mark.parametrize("warm", ["", "warm = true"])
def test_who_may_not_enter_or_execute_is_told_so(run, place, warm):
    if warm:
        need_open_checkout()
    place.route("a", f'user = "{ALICE}"\n{warm}', hidden="#!/bin/sh\n", closed="#!/bin/sh\n", script=PYTHON)
    (place.root / "a" / "inner").mkdir(mode=0o700)
    shutil.copy(place.root / "a" / "who", place.root / "a" / "inner" / "who")
    (place.root / "a" / "closed").chmod(0o700)
    (place.root / "a" / "script").chmod(0o711)
    os.mkdir(place.root / "private", 0o700)
    shutil.copy("/bin/sh", place.root / "private" / "sh")
    misbehaviour.program(place.root / "a" / "far", f"#!{place.root}/private/sh\n")
    server = run()
    assert f"user {ALICE} may not enter {place.root}/a/inner: chmod +x" in reason(server, "/a/inner/who", 500)
    assert f"is not executable for user {ALICE}: chmod +x {place.root}/a/closed" in reason(server, "/a/closed", 403)
    assert f"is where user {ALICE} may not enter: {place.root}/private" in reason(server, "/a/far", 500)
    assert "Permission denied" in reason(server, "/a/script", 502)
    status, words = place.check()
    assert status == 1
    assert re.search(rf"FAILS  /a/inner/who: user {ALICE} may not enter {place.root}/a/inner", words)
    assert re.search(rf"FAILS  /a/closed: it is not executable for user {ALICE}", words)
    assert re.search(rf"FAILS  /a/script: its interpreter may not read it as user {ALICE}: chmod \+r", words)
    assert re.search(rf"FAILS  /a/far: the interpreter .*/sh named .* may not enter: {place.root}/private", words)
    assert re.search(rf"as user {ALICE} \(uid {ALICE}, gid {ALICE}, groups {ALICE}\)", words)
    assert re.search(r"ok     /a/who", words)
    assert "warning  it runs as root, and so do its workers" in words


@needs_root
def test_a_directory_of_programs_that_is_closed(run, place):
    place.route("a", f'user = "{ALICE}"')
    (place.root / "a").chmod(0o700)
    server = run()
    assert f"user {ALICE} may not enter {place.root}/a: chmod +x {place.root}/a" in reason(server, "/a/who", 500)
    status, words = place.check()
    assert status == 1
    assert f"FAILS  /a/: user {ALICE} may not enter {place.root}/a" in words


@needs_root
def test_where_the_workers_user_does_not_find_a_program(run, place):
    place.server = 'user = "www-data"'
    place.route("a", f'user = "{ALICE}"')
    os.chown(place.root / "a", ALICE, ALICE)
    (place.root / "a").chmod(0o700)
    assert "the server's user may not search its directory" in reason(run(), "/a/who", 403)
    status, words = place.check()
    assert status == 1
    assert f"FAILS  /a/: user www-data may not enter {place.root}/a: chmod +x {place.root}/a" in words


@needs_root
def test_a_trial_runs_each_program_as_its_user(place):
    only = "#!/bin/sh\n[ $(id -u) = {} ] || exit 7\nprintf 'X: y\\n\\n'\n"
    two(place, 'user = "www-data"')
    for name, user in (("a", ALICE), ("b", BOB)):
        shutil.rmtree(place.root / name)
        (place.root / name).mkdir()
        misbehaviour.program(place.root / name / "only", only.format(user))
    misbehaviour.program(place.root / "b" / "wrong", only.format(ALICE))
    shutil.rmtree(place.root / "c")
    (place.root / "c").mkdir()
    status, words = place.check("--run")
    assert status == 1
    for path in ("a/only", "b/only"):
        assert re.search(rf"ran    /{path}: 200 in", words)
    assert re.search(r"FAILS  /b/wrong: .* ended with exit status 7", words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('user = "nobody-of-that-name"', r"routes\[1\]\.user: there is no user 'nobody-of-that-name'"),
        ('group = "nobody-of-that-name"', r"routes\[1\]\.group: there is no group 'nobody-of-that-name'"),
        # The first of these means "stay root" to the kernel.
        ('user = "4294967295"', r"routes\[1\]\.user: there is no user '4294967295'"),
        ('group = "4294967295"', r"routes\[1\]\.group: there is no group '4294967295'"),
        ('user = "99999999999"', r"routes\[1\]\.user: there is no user '99999999999'"),
        ('user = "²"', r"routes\[1\]\.user: there is no user '²'"),
        ('warm = "reuse"\nlandlock = true', r"routes\[1\]\.warm: reuse does not go with landlock: pools have user, gr"),
        ('warm = "reuse"\nlimits = { cpu = 3 }', r"routes\[1\]\.warm: reuse does not go with limits\.cpu"),
    ],
)
def test_mistakes(place, keys, words):
    support.need_file("/usr/bin/python3")
    place.route("a", keys, script=PYTHON)
    status, said = place.check()
    assert status == 2
    assert re.search(words, said), said


@needs_root
def test_programs_that_are_root_are_told_of(place):
    place.server = 'user = "www-data"'
    place.route("a", 'user = "root"')
    place.route("b")
    assert "warning  it runs as root, and so do some programs" in place.check()[1]
    place.route("a", 'group = "root"')
    assert "it runs as root" not in place.check()[1]


def test_a_user_is_for_programs_alone(place):
    place.route("a")
    place.more = '[[routes]]\npath = "/"\nroot = "."\nuser = "www-data"'
    assert re.search(r"routes\[1\]\.user: goes with cgi, and has no effect here", place.check()[1])


@needs_root
def test_only_root_can_become_another(place):
    place.route("a", f'user = "{BOB}"')
    place.write()
    code = (
        f"import os; os.setgroups([]); os.setgid({ALICE}); os.setuid({ALICE});"
        "from gateway.privileges import account_of\n"
        f"try: account_of('{BOB}', '')\nexcept ValueError as error: print(error)\n"
        f"print(account_of('{ALICE}', ''))"
    )
    command = [shutil.which("python3", path="/usr/bin"), "-c", code]
    need_open_checkout()
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=support.ROOT).stdout
    assert said == f"'{BOB}': only root can become another; leave it out\nNone\n"


# Logs and keys.


@needs_root
def test_logs_are_the_users_after_a_rotation_too(run, place):
    place.route("a", f'user = "{ALICE}"')
    logs = place.root / "logs"
    logs.mkdir()
    place.server = f'user = "{BOB}"\naccess_log = "logs/access"\nerror_log = "logs/error"'
    server = run(wait=False)
    misbehaviour.wait_for(lambda: (logs / "error").exists() and "ready" in (logs / "error").read_text())
    server.port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", (logs / "error").read_text())[1])
    assert who(server, "a")[0] == ALICE
    misbehaviour.wait_for(lambda: "/a/who" in (logs / "access").read_text())
    for name in ("access", "error"):
        assert (logs / name).stat().st_uid == BOB
        (logs / name).rename(logs / f"{name}.1")
    os.kill(server.pid, signal.SIGUSR1)
    misbehaviour.wait_for(lambda: not [pid for pid in [server.pid, *server.workers()] if rotated(pid)])
    assert who(server, "a")[0] == ALICE
    misbehaviour.wait_for(lambda: "/a/who" in (logs / "access").read_text())
    for name in ("access", "error"):
        assert (logs / name).stat().st_uid == BOB


def rotated(pid):
    return [link for link in support.links(pid) if link.endswith(".1")]


@needs_root
@pytest.mark.parametrize("key", ["access_log", "error_log", "pid_file"])
def test_root_does_not_follow_links_of_others(place, key):
    """Who may write to the directory, a worker's user say, leads it to a file of root's."""
    place.route("a")
    logs = place.root / "logs"
    logs.mkdir()
    os.chown(logs, BOB, BOB)
    roots = place.root / "roots"
    roots.write_text("as it was")
    (logs / "file").symlink_to(roots)
    os.chown(logs / "file", BOB, BOB, follow_symlinks=False)
    place.server = f'user = "{BOB}"\n{key} = "logs/file"'
    command = [sys.executable, "-m", "gateway", "--config", str(place.write())]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=support.ROOT, timeout=support.PATIENCE, check=False
    )
    assert ended.returncode == 2
    assert "root does not follow a symbolic link that is not root's" in ended.stderr
    assert (roots.read_text(), roots.stat().st_uid) == ("as it was", 0)
    assert re.search(r"FAILS  .*logs/file: root does not follow a symbolic link", place.check()[1])
    os.chown(logs / "file", 0, 0, follow_symlinks=False)
    assert "FAILS" not in place.check()[1]


@needs_root
@pytest.mark.parametrize("target", ["aim", "{root}/aim", "/dev/stdout"])
def test_root_follows_links_of_its_own(run, place, target):
    place.route("a", f'user = "{ALICE}"')
    (place.root / "link").symlink_to(target.format(root=place.root))
    place.server = 'user = "www-data"\nerror_log = "link"'
    command = [sys.executable, "-m", "gateway", "--config", str(place.write())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=support.ROOT) as server:
        if target == "/dev/stdout":
            said = iter(server.stdout.readline, "")
            assert any("ready" in line for line in said)
        else:
            aim = place.root / "aim"
            misbehaviour.wait_for(lambda: aim.exists() and "ready" in aim.read_text())
            assert aim.stat().st_uid == pwd.getpwnam("www-data").pw_uid
        server.terminate()
        server.communicate()
        assert server.returncode == 0


@needs_root
@pytest.mark.parametrize("trap", ["link", "fifo", "other name"])
def test_a_rotation_gives_nobody_a_file_of_roots(run, place, trap):
    place.route("a", f'user = "{ALICE}"')
    logs = place.root / "logs"
    logs.mkdir()
    os.chown(logs, BOB, BOB)
    roots = place.root / "roots"
    roots.write_text("as it was")
    place.server = f'user = "{BOB}"\naccess_log = "logs/access"'
    server = run()
    (logs / "access").unlink()
    if trap == "link":
        (logs / "access").symlink_to(roots)
        os.chown(logs / "access", BOB, BOB, follow_symlinks=False)
    elif trap == "fifo":
        os.mkfifo(logs / "access")
    else:
        os.link(roots, logs / "access")
    os.kill(server.pid, signal.SIGUSR1)
    # That one is taken after this one.
    os.kill(server.pid, signal.SIGHUP)
    server.wait_for_log(r"^gateway: reloaded|not reloaded")
    assert (roots.read_text(), roots.stat().st_uid) == ("as it was", 0) or trap == "other name"
    assert roots.stat().st_uid == 0
    assert who(server, "a")[0] == ALICE


@needs_root
def test_the_key_is_read_before_and_not_by_the_worker(run, place, certificate):
    cert, key = certificate
    for file in (cert, key):
        shutil.copy(file, place.root / file.name)
        (place.root / file.name).chmod(0o400)
    place.route("a", f'user = "{ALICE}"', key=f"#!/bin/sh\nprintf 'X: y\\n\\n'\ncat {place.root}/key.pem 2>&1\n")
    place.server = 'user = "www-data"'
    place.more = '[tls]\ncertificate = "cert.pem"\nkey = "key.pem"'
    server = run()
    url = f"https://localhost:{server.port}/a"
    support.need("curl")
    curl = ["curl", "-s", "--cacert", str(cert), "--resolve", f"localhost:{server.port}:127.0.0.1"]
    for program, words in (("who", f"{ALICE} {ALICE}"), ("key", "Permission denied")):
        said = subprocess.run([*curl, f"{url}/{program}"], capture_output=True, text=True, check=True).stdout
        assert words in said
    with Account("", *[pwd.getpwnam("www-data").pw_uid] * 2, ()).acting(), pytest.raises(PermissionError):
        (place.root / "key.pem").read_bytes()
    # Nor does what has it in memory let itself be looked at by the programs' user: what forked has been another user.
    for pid in server.spawners():
        with Account("", ALICE, ALICE, ()).acting(), pytest.raises(PermissionError):
            os.listdir(f"/proc/{pid}/fd")


# Reload and upgrade.


@needs_root
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_users_change_with_a_reload_and_an_upgrade(run, place, number):
    place.server = f'user = "{BOB}"\npid_file = "pid"'
    place.route("a", f'user = "{ALICE}"')
    place.route("b")
    server = run()
    assert (who(server, "a")[0], who(server, "b")[0]) == (ALICE, BOB)
    place.server = f'user = "{ALICE}"\npid_file = "pid"'
    place.route("a", f'user = "{BOB}"\nlimits = {{ files = 77 }}')
    place.write()
    old = server.spawners()
    os.kill(server.pid, number)
    server.wait_for_log(r"^gateway: reloaded" if number == signal.SIGHUP else r"upgrade: pid \d+ serves")
    # Until then an old worker may still accept.
    for pid in old:
        misbehaviour.wait_until_gone(pid)
    assert (who(server, "a")[0], who(server, "b")[0]) == (BOB, ALICE)
    if number == signal.SIGUSR2:
        successor = int((place.root / "pid").read_text())
        misbehaviour.wait_until_gone(server.pid)
        assert uid_of(successor) == 0
        os.kill(successor, signal.SIGTERM)
        misbehaviour.wait_until_gone(successor)


# Nobody survives.


@needs_root
@pytest.mark.parametrize("victim", ["spawner", "worker", "master"])
def test_nobody_survives_who_is_another_user(run, place, victim):
    two(place, 'user = "www-data"\nkill_timeout = 1')
    server = run()
    held = {name: hold(server, name) for name in "abc"}
    pids = {name: pid for name, (pid, _) in held.items()}
    assert [uid_of(pids[name]) for name in "ab"] == [ALICE, BOB]
    (worker,) = server.workers()
    if victim == "spawner":
        os.kill(misbehaviour.parent_of(pids["a"]), signal.SIGKILL)
        assert b"502" in held["a"][1].recv(65536)
        misbehaviour.wait_until_gone(pids["a"])
        # The others' programs are in nobody's way.
        assert who(server, "b")[0] == BOB
        assert not misbehaviour.has_ended(pids["b"])
        assert who(server, "a")[0] == ALICE
        assert server.workers() == [worker]
        os.kill(server.pid, signal.SIGTERM)
    elif victim == "worker":
        spawners = server.spawners()
        os.kill(worker, signal.SIGKILL)
        for pid in [*pids.values(), *spawners]:
            misbehaviour.wait_until_gone(pid)
        assert who(server, "a")[0] == ALICE
    else:
        processes = server.processes()
        server.expected_status = -signal.SIGKILL
        os.kill(server.pid, signal.SIGKILL)
        for pid in processes:
            misbehaviour.wait_until_gone(pid)
    server.stop()
    for pid, client in held.values():
        misbehaviour.wait_until_gone(pid)
        client.close()


@needs_root
def test_who_kills_its_spawner_at_once_does_not_outlive_it(run, place):
    """As another user than the worker, who may not end it."""
    usurper = f"#!/bin/sh\necho $$ >{place.root}/spool/pid\nkill -KILL $PPID\nexec sleep 600\n"
    place.server = 'user = "www-data"'
    place.route("a", f'user = "{ALICE}"', usurper=usurper)
    server = run()
    raw = server.exchange(b"GET /a/usurper HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 50[023] |$", raw)
    pid = int((place.root / "spool" / "pid").read_text())
    (place.root / "spool" / "pid").unlink()
    try:
        misbehaviour.wait_until_gone(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert who(server, "a")[0] == ALICE


@needs_root
@pytest.mark.parametrize("warm", ["", 'warm = "require"'])
def test_who_stops_its_spawner_keeps_no_place_from_others(run, place, warm):
    if warm:
        need_open_checkout()
    stops = (
        "#!/usr/bin/python3\nimport os, signal\nspawner = int(os.environ['QUERY_STRING'])\n"
        "os.kill(spawner, signal.SIGSTOP)\nsignal.pause()\n"
    )
    place.server = 'user = "www-data"\nmax_programs = 2\nscript_timeout = "600s"'
    place.route("a", f'user = "{ALICE}"\n{warm}', stops=stops, parent_of=PYTHON)
    place.route("b", f'user = "{BOB}"')
    server = run()
    for _ in range(2):
        (spawner,) = [pid for pid in server.spawners() if uid_of(pid) == ALICE]
        raw = server.exchange(f"GET /a/stops?{spawner} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert re.match(rb"HTTP/1\.1 50[023] ", raw)
        server.wait_for_log(rf"spawner 1\.1 of user {ALICE} \(pid {spawner}\) was stopped by a signal; it is killed")
        assert who(server, "b")[0] == BOB
        assert server.get("/a/parent-of").status == 200


@needs_root
def test_who_stops_all_that_is_its_users_does_not_stop_the_master(run, place):
    """What ends a dead spawner's programs as their user is in nobody's hands."""
    place.server = 'user = "www-data"'
    place.route("a", f'user = "{ALICE}"')
    place.route("b", f'user = "{BOB}"')
    server = run()
    pid, client = hold(server, "a")
    spawner = misbehaviour.parent_of(pid)
    stops = (
        f"import os, signal\nos.setgroups([])\nos.setresgid({ALICE}, {ALICE}, {ALICE})\n"
        f"os.setresuid({ALICE}, {ALICE}, {ALICE})\nprint(flush=True)\n"
        "while True:\n try: os.kill(-1, signal.SIGSTOP)\n except ProcessLookupError: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", stops], stdout=subprocess.PIPE, text=True) as stopper:
        assert stopper.stdout.readline() == "\n"
        misbehaviour.wait_until_gone(spawner)
        misbehaviour.wait_until_gone(pid)
        (others,) = [pid for pid in server.spawners() if uid_of(pid) == BOB]
        os.kill(others, signal.SIGKILL)
        misbehaviour.wait_until_gone(others)
        assert who(server, "b")[0] == BOB
        stopper.kill()
    client.close()
    misbehaviour.wait_for(lambda: server.get("/a/who").status == 200)


@needs_root
def test_a_second_term_kills_programs_of_other_users_and_ends_well(run, place):
    two(place, 'user = "www-data"\nkill_timeout = 600')
    server = run()
    held = [hold(server, name) for name in "ab"]
    os.kill(server.pid, signal.SIGTERM)
    for _, client in held:
        assert client.recv(65536) == b""
    # They do not listen: the first TERM waits for them.
    assert not any(misbehaviour.has_ended(pid) for pid, _ in held)
    os.kill(server.pid, signal.SIGTERM)
    assert server.process.wait(support.PATIENCE) == 0
    for pid, client in held:
        misbehaviour.wait_until_gone(pid)
        client.close()


def test_any_number_of_terms_is_a_good_end(serve):
    """Whatever moment of the end they come in, the last ones of the program included."""
    for _ in range(5):
        server = serve(cgi_dir=support.ROOT / "cgi-bin")
        while server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
        assert server.process.returncode == 0


@needs_root
def test_what_a_user_has_written_into_the_roll_is_not_done_with_the_masters_rights(run, place):
    """The memory that spawner and master share is the user's to write; whom it names is signalled as that user."""
    place.route("a", f'user = "{ALICE}"')
    server = run()
    (spawner,) = server.spawners()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as roots:
        maps = Path(f"/proc/{spawner}/maps").read_text()
        places = [
            tuple(int(end, 16) for end in line.split()[0].split("-"))
            for line in maps.splitlines()
            if " rw-s " in line and "/dev/zero" in line
        ]
        assert places
        with open(f"/proc/{spawner}/mem", "r+b", buffering=0) as memory:
            for start, _ in places:
                memory.seek(start)
                memory.write(roots.pid.to_bytes(4, "little"))
        os.kill(spawner, signal.SIGKILL)
        misbehaviour.wait_until_gone(spawner)
        assert who(server, "a")[0] == ALICE
        assert not misbehaviour.has_ended(roots.pid)
        roots.kill()


def test_a_workers_word_may_be_anything():
    spawner, pipes = left_in(LEFT + struct.pack("=3Q", 1, 2, 3))
    assert (spawner, pipes) == (1, {2, 3})
    assert left_in(LEFT + bytes(8)) == (0, set())
    for junk in (b"", b"1234567", bytes(9)):
        with pytest.raises(ValueError, match="no word"):
            left_in(LEFT + junk)


def test_a_roll_may_hold_anything():
    roll = Roll(4)
    roll.add(77)
    for number, pid in enumerate((-1, 0, 1)):
        struct.pack_into("=i", roll._memory, number * 4, pid)
    assert roll.clear() == [77]
    assert not roll.clear()


def test_the_directory_of_a_killed_server_goes_with_the_next_start(serve, place, tmp_path):
    support.need("php-cgi")
    (tmp_path / "tmp").mkdir()
    options = {"env": {"TMPDIR": str(tmp_path / "tmp")}, "temp_dir": place.root / "spool"}
    site = ["--php", str(tmp_path), "--children", "1"]
    killed = pooled(serve, *site, **options)
    killed.expected_status = -signal.SIGKILL
    left = set((tmp_path / "tmp").iterdir())
    assert len(left) == 1
    processes = killed.processes()
    assert processes
    os.kill(killed.pid, signal.SIGKILL)
    for pid in processes:
        misbehaviour.wait_until_gone(pid)
    lives = pooled(serve, *site, **options)
    own = set((tmp_path / "tmp").iterdir())
    assert len(own) == 1
    assert not own & left
    # A server that lives is left alone.
    other = pooled(serve, *site, **options)
    assert own < set((tmp_path / "tmp").iterdir())
    other.stop()
    lives.stop()
    assert not list((tmp_path / "tmp").iterdir())


@needs_root
def test_who_replaces_a_socket_by_a_link_has_no_file_given(place):
    """Between its making and the moment in which owner and mode are set."""
    roots = place.root / "roots"
    roots.write_text("")
    roots.chmod(0o600)
    (place.root / "socket").symlink_to(roots)
    with pytest.raises(FileNotFoundError, match="has been replaced"):
        set_access(str(place.root / "socket"), 0o666, ALICE, ALICE)
    assert (roots.stat().st_uid, roots.stat().st_mode & 0o777) == (0, 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path := str(place.root / "real"))
        set_access(path, 0o666, ALICE, BOB)
        found = os.stat(path)
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (ALICE, BOB, 0o666)
