"""Bad options: one line with the option, what is wrong and what would be right; exit status 2; nothing started."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from tests import misbehaviour, support


def refused(*options, **more):
    """The one line that the server says before it ends; checks all that holds for any bad option."""
    command = [sys.executable, "-m", "gateway", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("gateway: ")
    assert "Traceback" not in lines[0]
    # What is wrong; what would be right.
    assert "; " in lines[0], lines[0]
    return lines[0]


@pytest.fixture
def cgi(tmp_path):
    (tmp_path / "cgi").mkdir()
    return tmp_path / "cgi"


@pytest.mark.parametrize(
    "option",
    [
        ["--workers", "0"],
        ["--workers", "-1"],
        ["--workers", "two"],
        ["--workers", "1.5"],
        ["--http", "nginx"],
        ["--loop", "curio"],
        ["--log-format", "xml"],
        ["--max-body", "much"],
        ["--max-body", "-1"],
        ["--max-body", "12Q"],
        ["--max-programs", "0"],
        ["--max-programs", "x"],
        ["--header-timeout", "x"],
        ["--header-timeout", "-1"],
        ["--body-timeout", "0"],
        ["--send-timeout", "nan"],
        ["--keepalive-timeout", "inf"],
        ["--script-timeout", "1e999"],
        ["--kill-timeout", "soon"],
        ["--stop-timeout", "-0.1"],
        ["--env", "=value"],
        ["--env", ""],
        ["--env", "A B=c"],
        ["--listen", "nonsense"],
        ["--listen", "127.0.0.1"],
        ["--listen", "127.0.0.1:"],
        ["--listen", "127.0.0.1:http"],
        ["--listen", "127.0.0.1:-1"],
        ["--listen", "127.0.0.1:65536"],
        ["--listen", "127.0.0.1:80_80"],
        ["--listen", "999.1.2.3:0"],
        ["--listen", "192.0.2.1:0"],
        ["--listen", "[::1:0"],
        ["--listen", "[nonsense]:0"],
        ["--listen", "::1:8000"],
        ["--listen", "unix:"],
        ["--listen", "unix:/no/such/directory/socket"],
        ["--listen", "unix:/tmp/" + "x" * 200],
        ["--listen", ""],
        ["--access-log", "/no/such/directory/log"],
        ["--error-log", "/no/such/directory/log"],
        ["--access-log", "/tmp"],
        ["--pid-file", "/no/such/directory/pid"],
        ["--temp-dir", "/no/such/directory"],
        ["--temp-dir", "/etc/passwd"],
        ["--tls-cert", "/no/such/file"],
        ["--tls-cert", "/etc/passwd"],
        ["--cgi-dir", "/no/such/directory"],
        ["--cgi-dir", "/etc/passwd"],
        ["--cgi-dir", "/x/=/no/such/directory"],
        ["--cgi-dir", ""],
    ],
    ids=" ".join,
)
def test_a_bad_value_is_named_with_its_option(cgi, option):
    name, value = option
    line = refused("--cgi-dir", f"/other/={cgi}", "--listen", "127.0.0.1:0", *option)
    assert line.startswith(f"gateway: {name}"), line
    assert value in line


def test_an_unknown_option(cgi):
    assert "--no-such-option" in refused("--cgi-dir", cgi, "--no-such-option")


def test_an_argument_that_belongs_nowhere(cgi):
    assert "stray" in refused("--cgi-dir", cgi, "stray")


@pytest.mark.parametrize("option", ["--listen", "--cgi-dir", "--workers", "--env"])
def test_a_missing_value(cgi, option):
    assert option in refused("--cgi-dir", cgi, option)


def test_nothing_to_serve():
    assert refused("--listen", "127.0.0.1:0").startswith("gateway: --cgi-dir")


def test_a_relative_directory_that_does_not_exist(cgi):
    line = refused("--cgi-dir", "nowhere", cwd=cgi)
    assert line.startswith("gateway: --cgi-dir nowhere: ")


@pytest.mark.parametrize("other", ["/cgi-bin/={}", "{}", "/cgi-bin={}", "//cgi-bin//={}", "/cgi-bin/./={}"])
def test_duplicate_mounts(cgi, other):
    line = refused("--cgi-dir", cgi, "--cgi-dir", other.format(cgi), "--listen", "127.0.0.1:0")
    assert line.startswith("gateway: --cgi-dir")
    assert "/cgi-bin/" in line


@pytest.mark.parametrize("prefix", ["x/", "../", "/../", "/a/../../", "/a%2", "/a?b/", "/a#b/"])
def test_a_prefix_that_is_none(cgi, prefix):
    line = refused("--cgi-dir", f"{prefix}={cgi}", "--listen", "127.0.0.1:0")
    assert line.startswith("gateway: --cgi-dir")
    assert prefix in line


def test_a_port_in_use(cgi):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused("--cgi-dir", cgi, "--listen", address)
    assert line.startswith(f"gateway: --listen {address}: ")
    assert re.search(r"in use", line)


def test_the_same_address_twice(cgi):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    assert "--listen" in refused("--cgi-dir", cgi, "--listen", address, "--listen", address)


def test_a_living_unix_socket_is_not_stolen(cgi, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        line = refused("--cgi-dir", cgi, "--listen", f"unix:{path}")
        assert line.startswith(f"gateway: --listen unix:{path}: ")
        assert re.search(r"in use", line)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_not_replaced(cgi, tmp_path, kind):
    path = tmp_path / "socket"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    assert refused("--cgi-dir", cgi, "--listen", f"unix:{path}").startswith(f"gateway: --listen unix:{path}: ")
    assert path.is_dir() if kind == "directory" else path.read_text() == "precious"


def test_nothing_is_left_of_the_listeners_before_a_bad_one(cgi, tmp_path):
    path = tmp_path / "socket"
    refused("--cgi-dir", cgi, "--listen", f"unix:{path}", "--listen", "127.0.0.1:nonsense")
    assert not path.exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("--cgi-dir", cgi, "--listen", f"unix:{path}", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert not path.exists()


def make_certificate(directory, name):
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
            str(key),
            "-out",
            str(cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_certificates(cgi, tmp_path):
    support.need("openssl")
    cert, key = make_certificate(tmp_path, "one")
    _, other = make_certificate(tmp_path, "two")
    common = ("--cgi-dir", cgi, "--listen", "127.0.0.1:0")
    assert re.match(r"gateway: --tls-(key|cert)", refused(*common, "--tls-cert", cert, "--tls-key", other))
    assert refused(*common, "--tls-cert", cert, "--tls-key", "/no/such/key").startswith("gateway: --tls-key")
    assert re.match(r"gateway: --tls-(key|cert)", refused(*common, "--tls-cert", cert))
    assert refused(*common, "--tls-key", key).startswith("gateway: --tls-")
    assert refused(*common, "--tls-cert", tmp_path).startswith("gateway: --tls-cert")


def test_a_pid_file_of_a_bad_start_is_not_written(cgi, tmp_path):
    refused("--cgi-dir", cgi, "--pid-file", tmp_path / "pid", "--listen", "127.0.0.1:nonsense")
    assert not (tmp_path / "pid").exists()


def test_help_and_version():
    for option in ("--help", "--version"):
        command = [sys.executable, "-m", "gateway", option]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "gateway" in ended.stdout


@pytest.mark.parametrize("value", ["512", "512K", "16M", "2G", "1k"])
def test_sizes(serve, cgi, value):
    assert serve("--max-body", value, cgi_dir=cgi).get("/").status == 200


def test_several_directories(serve, tmp_path):
    one = misbehaviour.program(tmp_path / "one" / "x", "#!/bin/sh\nprintf 'X: y\\n\\none'\n")
    two = misbehaviour.program(tmp_path / "two" / "x", "#!/bin/sh\nprintf 'X: y\\n\\ntwo'\n")
    server = serve("--cgi-dir", f"/cgi-bin/deep/={two.parent}", cgi_dir=one.parent)
    assert server.get("/cgi-bin/x").body == b"one"
    assert server.get("/cgi-bin/deep/x").body == b"two"
    page = server.get("/").body
    assert b"/cgi-bin/" in page
    assert b"/cgi-bin/deep/" in page


def test_a_mount_at_the_root(serve, tmp_path):
    one = misbehaviour.program(
        tmp_path / "one" / "x", '#!/bin/sh\nprintf \'X: y\\n\\n%s|%s\' "$SCRIPT_NAME" "$PATH_INFO"\n'
    )
    server = serve("--cgi-dir", f"/={one.parent}", cgi_dir=tmp_path / "one")
    assert server.get("/x/info").body == b"/x|/info"


TRUE = ["--pool", "/app/=true"]


@pytest.mark.parametrize(
    ("directive", "word"),
    [
        ("max_requests=many", "max_requests"),
        ("max_requests", "KEY=VALUE"),
        ("pm=often", "static, dynamic, ondemand"),
        ("max_request=3", "max_requests"),
        ("request_terminate_timeout=soon", "5m"),
        ("request_slowlog_timeout=1s", "slowlog"),
        ("user=nobody-of-that-name", "no such user"),
        ("user=4294967295", "no such user"),
        ("chdir=/no/such/directory", "no such directory"),
        # The front's to decide.
        ("command=php-cgi", "--pool"),
        ("app=wiki:application", "--app"),
        ("max_children=3", "--children"),
        ("pm.max_children=3", "--children"),
        ("env=A=b", "--env"),
        ("listen=/tmp/s", "--fastcgi"),
        ("listen.mode=0666", "--fastcgi"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check"]], ids=["start", "check"])
def test_a_bad_directive_of_the_pools(directive, word, check):
    line = refused(*TRUE, "--pool-set", directive, *check)
    assert line.startswith("gateway: --pool-set")
    assert directive.partition("=")[0] in line
    assert word in line


def test_directives_that_do_not_go_together(cgi):
    assert "pm is given twice" in refused(*TRUE, "--pool-set", "pm=static", "--pool-set", "pm.mode=dynamic")
    assert "no pool" in refused("--cgi-dir", cgi, "--pool-set", "pm=static")
    status = ["--pool-set", "status_listen=127.0.0.1:9001"]
    assert "several pools" in refused(*TRUE, "--pool", "/b/=true", *status)


def test_check_shows_the_directives():
    command = [sys.executable, "-m", "gateway", *TRUE, "--pool-set", "pm=ondemand", "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended
    assert "pm=ondemand" in ended.stdout
