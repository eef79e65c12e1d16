"""Configuration of pools: php-fpm's directives, and a line that helps for every mistake."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_pool.config import ConfigError, PoolConfig, read_manager, read_pool, read_pools, seconds, size
from fcgi_pool.listener import Address
from fcgi_pool.lookup import launch_for
from tests.support import PATIENCE, ROOT


def pool(text: str) -> PoolConfig:
    """Return the pool that a table of TOML means."""
    return read_pool("blog", tomllib.loads(text))


def test_a_pool_file_of_php_fpm_copied_line_by_line() -> None:
    """Directives keep their names, dotted in quotes, as tables, with underscores or short."""
    config = pool(
        """
        command = ["php-cgi", "-d", "memory_limit=64M"]
        listen = "/run/blog.sock"
        "listen.owner" = "www-data"
        "listen.mode" = "0600"
        listen_backlog = 128
        user = "www-data"
        max_children = 8
        "pm.start_servers" = 2
        pm_min_spare_servers = 2
        max_spare_servers = 4
        "pm.process_idle_timeout" = "5m"
        "pm.max_requests" = 500
        request_terminate_timeout = "30s"
        request_slowlog_timeout = "5s"
        slowlog = "/var/log/slow.log"
        max_memory = "128M"
        catch_workers_output = "yes"
        clear_env = false
        "process.priority" = -5
        rlimit_core = "unlimited"
        env = { A = "1", B = 2 }
        status_listen = "127.0.0.1:9001"
        "pm.status_path" = "/fpm-status"
        [ping]
        path = "/alive"
        """
    )
    assert config.listen == Address(path="/run/blog.sock")
    assert config.status_listen == Address(host="127.0.0.1", port=9001)
    assert (config.listen_owner, config.listen_mode, config.listen_backlog) == ("www-data", 0o600, 128)
    assert (config.max_children, config.first, config.spare) == (8, 2, (2, 4))
    assert (config.process_idle_timeout, config.max_requests, config.max_memory) == (300.0, 500, 128 * 1024**2)
    assert (config.request_terminate_timeout, config.request_slowlog_timeout) == (30.0, 5.0)
    assert (config.catch_workers_output, config.clear_env) == (True, False)
    assert (config.process_priority, config.rlimit_core, config.env) == (-5, -1, {"A": "1", "B": "2"})
    assert (config.status_path, config.ping_path) == ("/fpm-status", "/alive")


def test_tables_and_defaults() -> None:
    """`[pools.NAME.pm]` and `[pools.NAME.listen]` are read, too; a default that differs from php-fpm's is told."""
    config = pool(
        'app = "wiki.app:application"\n[listen]\naddress = "tcp:127.0.0.1:9000"\nallowed_clients = "127.0.0.1, ::1"\n'
        '[pm]\nmode = "ondemand"\nmax_children = 3'
    )
    assert config.listen == Address(host="127.0.0.1", port=9000)
    assert config.listen_allowed_clients == ("127.0.0.1", "::1")
    assert (config.pm, config.max_children, config.first) == ("ondemand", 3, 0)
    assert config.process_control_timeout == 30.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "pools.blog: command is missing, or app"),
        ('command = ["a"]\napp = "a:b"', "both command and app are given"),
        ('command = "php-cgi -d x=1"', "not a list; write ['php-cgi', '-d', 'x=1']"),
        ("command = []", "not a program and its arguments"),
        ('app = "wiki"', "pools.blog.app = 'wiki': not MODULE:CALLABLE"),
        ('command = ["a"]\npython = "p"', "python and runner go with app"),
        ('app = "a:b"\nrunner = "gunicorn"', "runner = 'gunicorn': not one of own, flup-threaded, flup-forked"),
        ('command = ["a"]\nmax_childern = 3', "max_childern: there is no such key; did you mean max_children?"),
        ('command = ["a"]\n"access.log" = "x"', "this directive of php-fpm has no meaning here"),
        ('command = ["a"]\n"php_admin_value[x]" = "x"', "give PHP its settings by arguments"),
        ('command = ["a"]\nmax_children = 0', "max_children = 0: not a whole number from 1 to 100000"),
        ('command = ["a"]\nmax_children = true', "not a whole number"),
        ('command = ["a"]\nmax_children = 2\n"pm.max_children" = 3', "given twice, under two names"),
        ('command = ["a"]\npm = "fast"', "pm = 'fast': not one of static, dynamic, ondemand"),
        ('command = ["a"]\nlisten = "9000"', "not an address"),
        ('command = ["a"]\nlisten_mode = 666', 'not the mode of a file; write "0660"'),
        ('command = ["a"]\nrequest_terminate_timeout = "30 secs"', 'not a time, as 30, "30s", "5m"'),
        ('command = ["a"]\nmax_memory = "lots"', 'not a size, as "512K"'),
        ('command = ["a"]\nclear_env = 2', "not yes or no"),
        ('command = ["a"]\nenv = { "A-B" = "1" }', "look at 'A-B'"),
        ('command = ["a"]\nchdir = "srv"', "not an absolute path"),
        ('command = ["a"]\nrequest_slowlog_timeout = 5', "slowlog: missing"),
        ('command = ["a"]\nstatus_path = "/s"', "status_listen: missing"),
        ('command = ["a"]\nlisten = "unix:/s"\nlisten_allowed_clients = ["::1"]', "for TCP"),
        ('command = ["a"]\nmax_children = 2\nmin_spare_servers = 3', "3: more than max_children, 2"),
        ('command = ["a"]\nmax_children = 4\nmax_spare_servers = 5', "5: more than max_children, 4"),
        ('command = ["a"]\nmin_spare_servers = 2\nmax_spare_servers = 1', "more than max_spare_servers"),
        ('command = ["a"]\nstart_servers = 5', "start_servers = 5: not from 1 to 3"),
    ],
)
def test_mistakes(text: str, words: str) -> None:
    """One line with the key, the value and what would be right."""
    with pytest.raises(ConfigError) as caught:
        pool(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("pools.blog")


def test_several_pools() -> None:
    """Two pools may not have one address; keys of [global] hold for all; a web server's tables are passed over."""
    tables = {name: {"command": ["a"], "listen": "unix:/s"} for name in ("a", "b")}
    with pytest.raises(ConfigError, match=r"pools\.b\.listen = unix:/s: pools\.a\.listen listens there"):
        read_pools(tables)
    tables["b"]["listen"] = "unix:/t"
    document = {"global": {"process_control_timeout": "5s", "log_level": "debug"}, "pools": tables, "server": {}}
    config = read_manager(document)
    assert config.log_level == "debug"
    assert [entry.process_control_timeout for entry in config.pools] == [5.0, 5.0]
    for wrong, words in (({"pool": {}}, "no such table"), ({}, "there is none"), ({"global": {"x": 1}}, "x: there")):
        with pytest.raises(ConfigError, match=words):
            read_manager({"pools": tables, **wrong} if wrong else {})
    with pytest.raises(ConfigError, match="no name for a pool"):
        read_pools({"a b": {}})


@given(st.integers(0, 10**6), st.sampled_from([("", 1), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_units_of_time(number: int, unit: tuple[str, int]) -> None:
    """php-fpm's units; a plain number is seconds."""
    assert seconds(f"{number}{unit[0]}") == number * unit[1]
    assert seconds(number) == number


@given(st.integers(0, 10**6), st.sampled_from([("", 1), ("K", 1024), ("m", 1024**2), ("GB", 1024**3)]))
def test_units_of_size(number: int, unit: tuple[str, int]) -> None:
    """K, M and G are powers of 1,024."""
    assert size(f"{number}{unit[0]}") == number * unit[1]


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_VALUES = st.recursive(_SCALARS, lambda values: st.lists(values) | st.dictionaries(st.text(), values))


@given(_VALUES, st.sampled_from(sorted(PoolConfig.__slots__)))
def test_any_value_is_read_or_refused(value: object, key: str) -> None:
    """Whatever stands there, the answer is a configuration or a ConfigError."""
    try:
        read_pool("a", {"command": ["a"], key: value})
    except ConfigError as error:
        assert str(error).startswith("pools.a")


def test_what_a_worker_is_started_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With clear_env nothing of ours but PATH; php-cgi is told max_requests; the program has a path."""
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("FCGI_POOL_X", "1")
    launch = launch_for(PoolConfig("a", command=("sh", "-c", "x"), env={"A": "1"}, max_requests=7))
    assert launch.arguments == (launch.arguments[0], "-c", "x")
    assert os.access(launch.arguments[0], os.X_OK)
    assert launch.environment == {"PATH": os.environ["PATH"], "A": "1", "PHP_FCGI_MAX_REQUESTS": "7"}
    open_env = launch_for(PoolConfig("a", command=("sh",), clear_env=False)).environment
    assert open_env["SECRET"] == "1"
    assert "FCGI_POOL_X" not in open_env
    app = launch_for(PoolConfig("a", app="m:a", python=sys.executable, max_requests=7))
    assert app.arguments == (sys.executable, str(ROOT / "fcgi_pool/runtime/__main__.py"), "m:a")
    assert app.environment["FCGI_POOL_MAX_REQUESTS"] == "7"
    assert launch_for(PoolConfig("a", command=app.arguments, max_requests=7)) == app
    (tmp_path / "plain").touch()
    for command, words in (
        ("no-such-program", "no such program in"),
        (str(tmp_path / "missing"), "no such file"),
        (str(tmp_path), "a directory"),
        (str(tmp_path / "plain"), "not executable; chmod"),
    ):
        with pytest.raises(ConfigError, match=words):
            launch_for(PoolConfig("a", command=(command,)))
    with pytest.raises(ConfigError, match="no such user"):
        launch_for(PoolConfig("a", command=("sh",), user="nobody-of-that-name"))
    with pytest.raises(ConfigError, match="no such directory"):
        launch_for(PoolConfig("a", command=("sh",), chdir="/no/such/directory"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--listen is missing"),
        (("--listen", "unix:/tmp/s"), "the program is missing"),
        (("--listen", "unix:/no/such/dir/s", "--", "sh"), "the directory must exist and be writable"),
        (("--listen", "unix:/tmp/s", "--children", "x", "--", "sh"), "--children x: no whole number"),
        (("--listen", "unix:/tmp/s", "--set", "max_memory=x", "--", "sh"), "max_memory = 'x': not a size"),
        (("--listen", "unix:/tmp/s", "--no-such"), "unrecognized arguments: --no-such; see"),
        (("--config", "/no/such/file"), "--config /no/such/file: No such file"),
        (("--config", "/no/such/file", "--pm", "static"), "--pm: stands for a pool, and so does --config"),
        (("--ready-fd", "77", "--listen", "unix:/tmp/s", "--", "sh"), "--ready-fd 77: no open descriptor"),
    ],
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], words: str) -> None:
    """Exit status 2 and one line."""
    done = subprocess.run(
        [sys.executable, "-m", "fcgi_pool", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fcgi_pool: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_check_says_what_would_be_run(tmp_path: Path) -> None:
    """--check opens nothing and starts nothing."""
    words = [sys.executable, "-m", "fcgi_pool", "--check", "--listen", f"unix:{tmp_path}/s", "--", "sh", "-c", "x"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.startswith(f"pool www: static, 5 workers at most, on unix:{tmp_path}/s\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        (["--", "php-cgi"], True),
        (["--app", "wsgiref.simple_server:demo_app", "--runner", "flup-threaded"], True),
        (["--app", "wsgiref.simple_server:demo_app"], False),
    ],
)
def test_a_limit_that_nobody_can_see_passed_is_refused(more, refused):
    """Below a second the age of a connection says nothing about its request; our own runtime tells of each."""
    options = ["--check", "--listen", "unix:/tmp/none", "--set", "request_terminate_timeout=500ms", *more]
    ended = subprocess.run(
        [sys.executable, "-m", "fcgi_pool", *options], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ("request_terminate_timeout = 0.5: less than 1 s" in ended.stderr) == refused, ended.stderr
    if refused:
        assert ended.returncode == 2
