"""The configuration file: what it says when something is wrong, and what its routes do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import ConfigFileError, read_file
from gateway.config.reference import page
from tests import support

ROUTE = '[[routes]]\npath = "/cgi-bin/"\ncgi = "cgi"\n'


@pytest.fixture(autouse=True)
def place(tmp_path):
    """A directory for a configuration file and what it names."""
    for name in ("cgi", "site", "private"):
        (tmp_path / name).mkdir()
    support.script(tmp_path / "cgi" / "hello", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello\\n'\n")
    return tmp_path


def write(place: Path, text: str) -> Path:
    path = place / "gateway.toml"
    path.write_text(text)
    return path


MISTAKES = [
    ("[server]\nlisen = []\n" + ROUTE, r":2: server\.lisen: there is no such key; did you mean listen\?"),
    ("[server]\nxyz = 1\n" + ROUTE, r":2: server\.xyz: there is no such key; there are listen, workers, .*https_port"),
    ("[sever]\nworkers = 1\n" + ROUTE, r":1: sever: there is no such key; did you mean server\?"),
    ('[server]\n\nworkers = "two"\n' + ROUTE, r":3: server\.workers: a text in quotes where a whole number belongs"),
    ('[server]\nlisten = "127.0.0.1:1"\n' + ROUTE, r":2: server\.listen: a text in quotes where a list, as .* belongs"),
    ('[server]\nlisten = ["127.0.0.1:1",\n 7]\n' + ROUTE, r":2: server\.listen\[2\]: a whole number where a text .*"),
    ('[server]\nlisten = ["nonsense"]\n' + ROUTE, r":2: server\.listen\[1\]: .*nonsense"),
    ('[server]\nbody_timeout = "5 minutes"\n' + ROUTE, r":2: server\.body_timeout: '5 minutes' is not a time, as 30"),
    ("[server]\nbody_timeout = 0\n" + ROUTE, r":2: server\.body_timeout: a time above 0"),
    ('[server]\nmax_body = "1 MiB"\n' + ROUTE, r":2: server\.max_body: '1 MiB' is not a size, as"),
    ("[server]\nworkers = 0x7fffffff\n" + ROUTE, r":2: server\.workers: 2147483647: a number from 1 to"),
    ('[server]\ntemp_dir = "nowhere"\n' + ROUTE, r":2: server\.temp_dir: .*/nowhere: no directory"),
    ('[server]\nlog_format = "xml"\n' + ROUTE, r":2: server\.log_format: 'xml': one of combined, json"),
    ("", r":1: routes: nothing would be served; write \[\[routes\]\]"),
    ("[server\n", r":1: not TOML: .*line 1"),
    ("[server]\nworkers = 1\n[server]\n" + ROUTE, r":3: not TOML: .*server"),
    ("x = " + "[" * 20_000, r": not TOML that can be read: "),
    (f"x = {'9' * 5000}\n", r": not TOML that can be read: "),
    ('[server]\nuser = "a\\u0000"\n' + ROUTE, r":2: server\.user: there is a NUL in it"),
    ("[server]\nworkers = 0\n" + ROUTE, r":2: server\.workers: 0: a number from 1 to 1024"),
    ("[server]\nlisten = []\n" + ROUTE, r":2: server\.listen: empty: nobody could come"),
    ('[server]\nlisten = ["[::1]:1", "[::1]:1"]\n' + ROUTE, r":2: server\.listen\[2\]: '\[::1\]:1' is there twice"),
    ('[server]\nsend_timeout = "9999999999d"\n' + ROUTE, r":2: server\.send_timeout: '9999999999d' is not a time"),
    (ROUTE + 'cig = "x"\n', r":4: routes\[1\]\.cig: there is no such key; did you mean cgi\?"),
    (ROUTE + 'index = ["x"]\n', r":4: routes\[1\]\.index: goes with root, and has no effect here"),
    ('[[routes]]\npath = "/"\nroot = "site"\nenv = { A = "1" }\n', r":4: routes\[1\]\.env: goes with .*cgi"),
    ('[[routes]]\npath = "/"\nroot = "site"\nindex = ["../x"]\n', r":4: routes\[1\]\.index\[1\]: '\.\./x': the name"),
    (ROUTE + 'sendfile_root = "no"\n', r":4: routes\[1\]\.sendfile_root: the directory .* does not exist"),
    (ROUTE + 'try_files = ["/../x", "/y"]\n', r":4: routes\[1\]\.try_files\[1\]: '/\.\./x': write \$path"),
    (ROUTE + 'try_files = ["$path", "/ä"]\n', r":4: routes\[1\]\.try_files\[2\]: '/ä': a path or URL"),
    (ROUTE + 'hosts = ["bücher.example:80"]\n', r":4: routes\[1\]\.hosts\[1\]: .*; write, say, xn--bcher-kva\.example"),
    (ROUTE + '[[rewrites]]\nmatch = "(a)"\nto = "/$2"\n', r":6: rewrites\[1\]\.to: \$2: the groups of match end at 1"),
    (ROUTE + '[[rewrites]]\nmatch = "a"\nto = "/b"\nhosts = ["a b"]\n', r":7: rewrites\[1\]\.hosts\[1\]: 'a b' is no"),
    ('[[routes]]\npath = "/"\nredirect = { to = "$request_uri" }\n', r":3: .*: there is no \$request_uri; there"),
    ("[clients]\nlimit_status = 450\n" + ROUTE, r":2: clients\.limit_status: 450: write 429 or 503"),
    ("[clients]\nlimit_connections = -1\n" + ROUTE, r":2: .*; write, say, limit_connections = 20"),
    ('[clients]\nlimit_rate = "1\\n2"\n' + ROUTE, r":2: clients\.limit_rate: 1\\n2: not a rate"),
    (ROUTE + ROUTE, r":5: routes\[2\]\.path: the same as of routes\[1\], which always wins"),
    (ROUTE + '[[routes]]\npath = "/a"\n', r":4: routes\[2\]: what answers is missing; write cgi, root, fastcgi or"),
    (ROUTE + '[[routes]]\npath = "/../a"\ncgi = "cgi"\n', r":5: routes\[2\]\.path: '/../a/' is no prefix of a path"),
    (ROUTE + '[[routes]]\npath = "/a"\ncgi = "no"\n', r":6: routes\[2\]\.cgi: the directory '.*/no' does not exist"),
    (ROUTE + 'fastcgi = "unix:/x"\n', r":4: routes\[1\]\.fastcgi: cgi answers already; keep one"),
    (ROUTE + "kill_grup = true\n", r":4: routes\[1\]\.kill_grup: there is no such key; did you mean kill_group\?"),
    (ROUTE + 'warm = "hot"\n', r":4: routes\[1\]\.warm: 'hot': write true, \"require\" or \"reuse\""),
    (ROUTE + 'preload = ["x"]\n', r":4: routes\[1\]\.preload: goes with warm"),
    (ROUTE + 'env = { "A-B" = "1" }\n', r":4: routes\[1\]\.env\.A-B: no name of a variable"),
    (ROUTE + "[routes.env]\nA = 1\n", r":4: routes\[1\]\.env: a whole number where a text in quotes belongs"),
    (ROUTE + 'hosts = ["a b"]\n', r":4: routes\[1\]\.hosts\[1\]: 'a b' is no name of a host"),
    (ROUTE + 'methods = ["get"]\n', r":4: routes\[1\]\.methods\[1\]: 'get' is no method; write, say, GET"),
    (ROUTE + 'headers = { "A B" = "x" }\n', r":4: routes\[1\]\.headers\.A B: no field of a response"),
    (ROUTE + 'headers = { Date = "x" }\n', r":4: routes\[1\]\.headers\.Date: is the server's own to say"),
    (ROUTE + 'error_pages = { 200 = "/x" }\n', r":4: routes\[1\]\.error_pages\.200: an error is from 400 to 599"),
    (ROUTE + 'error_pages = { 400 = "/x" }\n', r":4: routes\[1\]\.error_pages\.400: is answered before"),
    (ROUTE + 'error_pages = { 404 = "x" }\n', r":4: routes\[1\]\.error_pages\.404: 'x': a path of this server"),
    (ROUTE + 'try_files = ["x", "/y"]\n', r":4: routes\[1\]\.try_files\[1\]: 'x': write \$path"),
    (ROUTE + 'try_files = ["$path"]\n', r":4: routes\[1\]\.try_files\[1\]: '\$path': the last is a path"),
    ('[[routes]]\npath = "/"\nfastcgi = "pool:x"\n', r":3: routes\[1\]\.fastcgi: there is no pool 'x'; there are:"),
    ('[[routes]]\npath = "/"\nfastcgi = "/run/x"\n', r":3: routes\[1\]\.fastcgi: '/run/x' is no address; write pool:"),
    ('[[routes]]\npath = "/"\nroot = "site"\nfastcgi = "unix:/x"\n', r":1: routes\[1\]\.extensions: missing: which"),
    ('[[routes]]\npath = "/"\nredirect = { to = "/x", status = 200 }\n', r":3: routes\[1\]\.redirect\.status: 200:"),
    ('[[routes]]\npath = "/"\nredirect = { status = 301 }\n', r":3: routes\[1\]\.redirect: to is missing"),
    (ROUTE + '[[rewrites]]\nmatch = "("\nto = "/"\n', r":5: rewrites\[1\]\.match: no regular expression: "),
    (ROUTE + '[[rewrites]]\nmatch = "a"\nto = "b"\n', r":6: rewrites\[1\]\.to: 'b': within the server it is a path"),
    ("[pools.a]\nmax_children = 2\n" + ROUTE, r":1: pools\.a: command is missing, or app"),
    ('[pools.a]\ncommand = ["true"]\npm = "x"\n' + ROUTE, r":3: pools\.a\.pm: 'x': not one of static, dynamic"),
    ('[pools.a]\ncommand = ["true"]\nmaxchildren = 2\n' + ROUTE, r":3: pools\.a\.maxchildren: there is no such key"),
    ('[pools.a]\ncommand = ["nosuchprogram"]\n' + ROUTE, r":2: pools\.a\.command: .*nosuchprogram.*: there is no such"),
    ('[clients]\nlimit_rate = "fast"\n' + ROUTE, r":2: clients\.limit_rate: fast: not a rate above 0;"),
    ('[clients]\nreal_ip = ["10.0.0.300"]\n' + ROUTE, r":2: clients\.real_ip: '10\.0\.0\.300' does not appear to be"),
    ('[clients.auth]\n"/a/" = "no"\n' + ROUTE, r":1: clients\.auth: /a/=.*/no: No such file or directory"),
    ('[tls]\ncertificate = "no.pem"\n' + ROUTE, r":2: tls\.certificate: .*no\.pem"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(place, text, message):
    path = write(place, text)
    with pytest.raises(ConfigFileError, match=rf"^{path}{message}") as caught:
        read_file(str(path))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_line_ends_of_windows_do_no_harm(place):
    path = place / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ROUTE.replace("\n", "\r\n").encode())
    assert read_file(str(path)).mounts[0].prefix == "/cgi-bin/"


def test_a_host_that_is_named_twice_in_one_route_does_no_harm(place):
    settings = read_file(str(write(place, ROUTE + 'hosts = ["a.example", "A.example"]\n')))
    assert settings.routes[0].hosts == ("a.example", "A.example")


@pytest.mark.parametrize("key", ["access_log", "error_log", "pid_file"])
@pytest.mark.parametrize("name", ["nowhere/file", "site"])
def test_check_says_what_the_server_could_not_write(place, key, name):
    path = write(place, f'[server]\nlisten = ["127.0.0.1:0"]\n{key} = "{name}"\n{ROUTE}')
    command = [sys.executable, "-m", "gateway", "--config", path]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert f"FAILS  [server] {key} {place}/{name}: " in checked.stdout
    assert "the server would not start" in checked.stdout
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_the_command_line_says_it_and_ends(place):
    path = write(place, "[server]\nlisen = []\n")
    for options in ([], ["--check"], ["--print-config"]):
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", "--config", path, *options], capture_output=True, text=True, check=False
        )
        words = f"gateway: {path}:2: server.lisen: there is no such key; did you mean listen?\n"
        assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", words)


@pytest.mark.parametrize(("name", "words"), [("nosuch.toml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(place, name, words):
    with pytest.raises(ConfigFileError, match=words):
        read_file(str(place / name))


def test_other_options_belong_into_the_file(place):
    path = write(place, ROUTE)
    command = [sys.executable, "-m", "gateway", "--config", path, "--workers", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("gateway: --workers: the file that --config names stands for all options")


def test_paths_begin_at_the_files_directory(place):
    settings = read_file(str(write(place, f'[server]\npid_file = "run/pid"\n{ROUTE}')))
    assert settings.mounts[0].directory == f"{place}/cgi"
    assert settings.pid_file == f"{place}/run/pid"


def test_sockets_and_pools_begin_at_the_files_directory(place):
    text = (
        '[server]\nlisten = ["unix:front"]\n[clients]\nproxy_protocol = ["unix:front=unix:"]\n'
        '[pools.a]\ncommand = ["cgi/hello", "x/y"]\nlisten = "unix:pool"\nchdir = "site"\nslowlog = "slow"\n'
        '[pools.b]\ncommand = ["sh"]\n'
        '[[routes]]\npath = "/"\nfastcgi = "unix:back"\n'
    )
    settings = read_file(str(write(place, text)))
    assert settings.listen[0].path == f"{place}/front"
    assert settings.clients.proxy_protocol.listen[0].path == f"{place}/front"
    assert settings.fastcgi_servers[0].address.path == f"{place}/back"
    first, second = settings.pools
    assert (first.command, first.server.address.path) == ((f"{place}/cgi/hello", "x/y"), f"{place}/pool")
    assert {f"chdir={place}/site", f"slowlog={place}/slow"} <= set(first.directives)
    assert second.command == ("sh",)


def test_the_reference_is_that_of_the_code():
    assert (support.ROOT / "docs" / "configuration.rst").read_text() == page()


def test_print_config_shows_defaults_too(place):
    path = write(place, ROUTE + "warm = true\n")
    command = [sys.executable, "-m", "gateway", "--config", path, "--print-config"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert f'routes[1].mount.directory = "{place}/cgi"' in shown
    assert 'routes[1].mount.warm = "warm"' in shown
    assert "timeouts.body = 60.0" in shown
    assert 'listen[1] = "127.0.0.1:8000"' in shown


def test_print_config_has_one_line_for_each_value(place):
    rule = '[[rewrites]]\nmatch = "a\\nb\\"ä"\nto = "/x"\n'
    command = [sys.executable, "-m", "gateway", "--config", write(place, ROUTE + rule), "--print-config"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert 'rewrites[1].match = "a\\nb\\"ä"' in shown
    assert all(re.match(r"[a-z_\[\]0-9.]+ = ", line) for line in shown)


# What routes do.


def location(answer):
    return answer.status, answer.headers["Location"]


ECHO = """#!/bin/sh
printf 'Content-Type: text/plain\\nX-Powered-By: sh\\n\\n'
echo "$SCRIPT_NAME|$PATH_INFO|$QUERY_STRING|$REQUEST_METHOD|$REQUEST_URI|$NAME"
cat
"""


def test_hosts(configured, place):
    for name in ("one", "wild", "all", "longer"):
        (place / name).mkdir()
        support.script(place / name / "who", f"#!/bin/sh\nprintf 'Content-Type: a/b\\n\\n{name}'\n")
    server = configured(
        '[[routes]]\npath = "/"\ncgi = "all"\n'
        '[[routes]]\npath = "/"\ncgi = "one"\nhosts = ["one.example", "[::1]"]\n'
        '[[routes]]\npath = "/"\ncgi = "wild"\nhosts = ["*.example"]\n'
        '[[routes]]\npath = "/longer/"\ncgi = "longer"\n'
    )
    for host, name in [
        ("one.example", "one"), ("ONE.example.", "one"), ("one.example:80", "one"), ("[::1]:80", "one"),
        ("two.example", "wild"), ("a.one.example", "wild"), ("example", "all"), ("one.example.org", "all"),
        ("127.0.0.1", "all"),
    ]:  # fmt: skip
        assert server.get("/who", headers={"Host": host}).text == name, host
        assert server.get("/longer/who", headers={"Host": host}).text == "longer"


def test_methods(configured, place):
    support.script(place / "private" / "who", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\nwritten'\n")
    server = configured(
        '[[routes]]\npath = "/x/"\ncgi = "cgi"\nmethods = ["GET"]\n'
        '[[routes]]\npath = "/x/"\ncgi = "private"\nmethods = ["POST", "PUT"]\n'
    )
    assert server.get("/x/hello").text == "hello\n"
    assert server.get("/x/hello", method="HEAD").status == 200
    assert server.get("/x/who", method="PUT", body=b"x").text == "written"
    assert server.get("/x/who").status == 404
    answer = server.get("/x/who", method="DELETE")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, POST, PUT")


def test_redirects(configured):
    server = configured(
        '[[routes]]\npath = "/a/"\nredirect = { to = "https://$host/b$path", status = 301 }\n'
        '[[routes]]\npath = "/u/"\nredirect = { to = "https://new.example$uri" }\n'
        '[[routes]]\npath = "/q/"\nredirect = { to = "/c?own=1", status = 308 }\n'
    )
    host = {"Host": "Some.example:81"}
    assert location(server.get("/a/x%20y%2Fz?q=%41", headers=host)) == (
        301,
        "https://some.example/b/a/x%20y/z?q=%41",
    )
    assert location(server.get("/a/%0d%0aX:%20y", headers=host)) == (301, "https://some.example/b/a/%0D%0AX:%20y")
    assert location(server.get("/u/%41/..//b?x=/%0d")) == (302, "https://new.example/u/%41/..//b?x=/%0d")
    assert location(server.get("/q/?x=1", method="POST", body=b"x")) == (308, "/c?own=1")


def test_rewrites(configured, place):
    support.script(place / "cgi" / "echo", ECHO)
    server = configured(
        f"{ROUTE}"
        '[[rewrites]]\nmatch = "^/say/(.+)$"\nto = "/cgi-bin/echo/$1"\n'
        '[[rewrites]]\nmatch = "^/number/([0-9]+)$"\nto = "/cgi-bin/echo?n=$1"\n'
        '[[rewrites]]\nmatch = "^/old(/|$)"\nto = "/new$1"\nstatus = 301\n'
        '[[rewrites]]\nmatch = "^/"\nto = "/cgi-bin/hello"\nhosts = ["only.example"]\n'
    )
    assert server.get("/say/a%20b?q=1").text == "/cgi-bin/echo|/a b|q=1|GET|/say/a%20b?q=1|\n"
    answer = server.get("/number/7?q=1", method="POST", body=b"body")
    assert answer.text == "/cgi-bin/echo||n=7|POST|/number/7?q=1|\nbody"
    assert location(server.get("/old/?q=1")) == (301, "/new/?q=1")
    assert server.get("/number/x").status == 404
    # What is decoded is matched, so that nobody gets around a rule.
    assert server.get("/%73ay/x").text.startswith("/cgi-bin/echo|/x|")
    assert server.get("/anything", headers={"Host": "only.example"}).text == "hello\n"


def test_internal_routes_are_reached_from_within_alone(configured, place):
    support.script(place / "cgi" / "asks", "#!/bin/sh\nprintf 'X-Accel-Redirect: /private/who?a=1\\n\\nignored'\n")
    support.script(place / "private" / "who", ECHO)
    server = configured(f'{ROUTE}[[routes]]\npath = "/private/"\ncgi = "private"\ninternal = true\n')
    assert server.get("/private/who").status == 404
    assert server.get("/private//%77ho").status == 404
    answer = server.get("/cgi-bin/asks", method="POST", body=b"gone")
    assert answer.text == "/private/who||a=1|GET|/cgi-bin/asks|\n"
    assert "X-Accel-Redirect" not in answer.headers


SENDS = """#!/bin/sh
printf 'X-Sendfile: %s\\nContent-Type: text/x-mine\\nSet-Cookie: a=b\\nContent-Length: 3\\n\\nabc' "$QUERY_STRING"
"""


def test_files_that_programs_name(configured, place):
    support.script(place / "cgi" / "sends", SENDS)
    (place / "site" / "a.bin").write_bytes(bytes(range(256)) * 1000)
    (place / "secret").write_text("secret")
    (place / "site" / "link").symlink_to(place / "secret")
    server = configured(f'{ROUTE}sendfile_root = "site"\n[[routes]]\npath = "/plain/"\ncgi = "cgi"\n')
    answer = server.get(f"/cgi-bin/sends?{place}/site/a.bin")
    assert (answer.status, answer.body) == (200, bytes(range(256)) * 1000)
    assert (answer.headers["Content-Type"], answer.headers["Set-Cookie"]) == ("text/x-mine", "a=b")
    assert "X-Sendfile" not in answer.headers
    part = server.get(f"/cgi-bin/sends?{place}/site/a.bin", headers={"Range": "bytes=1-3"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"\1\2\3", "bytes 1-3/256000")
    for path in (f"{place}/secret", f"{place}/site/../secret", f"{place}/site/link", f"{place}/site", "/etc/passwd"):
        assert server.get(f"/cgi-bin/sends?{path}").status in (502, 404), path
        assert "secret" not in server.get(f"/cgi-bin/sends?{path}").text
    server.wait_for_log("names '/etc/passwd' by X-Sendfile, which is not below the root")
    assert server.get(f"/plain/sends?{place}/site/a.bin").status == 502
    server.wait_for_log("the route has no sendfile_root")


@pytest.mark.parametrize("field", ["X-Accel-Redirect", "Location"])
@pytest.mark.parametrize("target", ["/../x", "/%zz", "/a%00"])
def test_a_program_that_sends_nowhere_is_at_fault(configured, place, field, target):
    text = f"#!/bin/sh\necho '{field}: {target}'\necho\n"
    support.script(place / "cgi" / "away", text)
    server = configured(ROUTE)
    assert server.get("/cgi-bin/away").status == 502
    server.wait_for_log(r"error \[.*\] 502 a redirect within the server: ")


def test_headers(configured, place):
    support.script(place / "cgi" / "echo", ECHO)
    headers = 'headers = { X-Frame-Options = "DENY", x-powered-by = "", Server = "mine" }\n'
    server = configured(f'{ROUTE}{headers}[[routes]]\npath = "/plain/"\ncgi = "cgi"\n')
    for path in ("/cgi-bin/echo", "/cgi-bin/echo", "/cgi-bin/nosuch"):
        answer = server.get(path)
        assert (answer.headers["X-Frame-Options"], answer.headers["Server"]) == ("DENY", "mine")
        assert "X-Powered-By" not in answer.headers
        assert answer.headers["Date"]
    assert server.get("/plain/echo").headers["X-Powered-By"] == "sh"


def test_error_pages(configured, place):
    support.script(place / "cgi" / "echo", ECHO)
    support.script(place / "cgi" / "bad", "#!/bin/sh\necho nonsense\n")
    pages = 'error_pages = { 404 = "/cgi-bin/echo?page", 502 = "/cgi-bin/bad", 405 = "/nowhere" }\n'
    server = configured(ROUTE + pages)
    answer = server.get("/cgi-bin/nosuch")
    assert (answer.status, answer.reason) == (404, "Not Found")
    assert answer.text == "/cgi-bin/echo||page|GET|/cgi-bin/nosuch|\n"
    posted = server.get("/cgi-bin/nosuch", method="POST", body=b"x" * 100_000)
    assert (posted.status, posted.text) == (404, "/cgi-bin/echo||page|GET|/cgi-bin/nosuch|\n")
    assert server.get("/cgi-bin/nosuch", method="HEAD").body == b""
    # A page that fails is no page.
    assert server.get("/cgi-bin/bad").status == 502
    server.wait_for_access('"GET /cgi-bin/nosuch HTTP/1.1" 404 ')


def test_an_error_page_is_whole_whatever_the_client_has(configured, place):
    (place / "site" / "404.html").write_text("<p>nothing here")
    server = configured(
        '[[routes]]\npath = "/"\nroot = "site"\nerror_pages = { 404 = "/404.html", 405 = "/404.html" }\n'
    )
    tag = server.get("/nosuch").headers["ETag"]
    late = "Fri, 01 Jan 2038 00:00:00 GMT"
    for headers in ({"If-None-Match": tag}, {"If-Modified-Since": late}, {"If-Match": '"x"'}, {"Range": "bytes=0-1"}):
        answer = server.get("/nosuch", headers=headers)
        assert (answer.status, answer.text) == (404, "<p>nothing here")
        assert "Content-Range" not in answer.headers
    answer = server.get("/404.html", method="POST", body=b"x")
    assert (answer.status, answer.text, answer.headers["Allow"]) == (405, "<p>nothing here", "GET, HEAD")


def test_who_is_not_let_in_gets_the_page_of_the_route(configured, place):
    (place / "private" / "login.html").write_text("<p>come in")
    (place / "site" / "secret").write_text("secret")
    (place / "users").write_text("bob:$2y$05$" + "." * 53 + "\n")
    server = configured(
        '[clients.auth]\n"/site/" = "users"\n'
        '[[routes]]\npath = "/site/"\nroot = "site"\nheaders = { X-Frame-Options = "DENY" }\n'
        'error_pages = { 401 = "/open/login.html" }\n'
        '[[routes]]\npath = "/open/"\nroot = "private"\ninternal = true\n'
    )
    answer = server.get("/site/secret")
    assert (answer.status, answer.text) == (401, "<p>come in")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert server.get("/open/login.html").status == 404


def test_try_files_send_to_a_directory_with_its_slash(configured, place):
    (place / "site" / "below").mkdir()
    (place / "site" / "below" / "index.html").write_text("<p>below")
    server = configured('[[routes]]\npath = "/"\nroot = "site"\ntry_files = ["$path", "$path/", "=404"]\n')
    answer = server.get("/below?a=b")
    assert (answer.status, answer.headers["Location"]) == (301, "/below/?a=b")
    assert server.get("/below/").text == "<p>below"


def test_try_files(configured, place):
    support.script(place / "cgi" / "front", ECHO)
    support.script(place / "cgi" / "real.cgi", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\nreal'\n")
    server = configured(
        '[[routes]]\npath = "/"\ncgi = "cgi"\ntry_files = ["$path", "$path.cgi", "/front"]\n'
        '[[routes]]\npath = "/strict/"\ncgi = "cgi"\ntry_files = ["$path", "=410"]\n'
    )
    assert server.get("/hello").text == "hello\n"
    assert server.get("/real").text == "real"
    answer = server.get("/some/page?x=1", method="POST", body=b"kept")
    assert answer.text == "/front||x=1|POST|/some/page?x=1|\nkept"
    assert server.get("/strict/hello").text == "hello\n"
    assert server.get("/strict/nosuch").status == 410
    assert server.get("/strict/%2e%2e%2fhello").status == 400


def test_a_loop_within_the_server_ends(configured):
    server = configured('[[routes]]\npath = "/"\ncgi = "cgi"\ntry_files = ["$path", "/nosuch"]\n')
    assert server.get("/other").status == 500
    server.wait_for_log("the request was sent on within the server for the 11th time")


def test_where_to_is_not_known_without_a_host(configured):
    server = configured(
        '[[routes]]\npath = "/"\nredirect = { to = "https://$host$uri" }\n'
        '[[routes]]\npath = "/files/"\nroot = "site"\ntry_files = ["$path", "/$host"]\n'
        '[[rewrites]]\nmatch = "^/old"\nto = "//$host/new"\nstatus = 301\n'
    )
    for path in (b"/", b"/old", b"/files/x"):
        assert server.exchange(b"GET " + path + b" HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_http_is_sent_to_https(configured):
    server = configured(f"https_port = 8443\n{ROUTE}")
    answer = server.get("/cgi-bin/hello?a=b", headers={"Host": "some.example:80"})
    assert location(answer) == (308, "https://some.example:8443/cgi-bin/hello?a=b")
    absolute = server.exchange(b"GET http://other.example/x?y HTTP/1.1\r\nHost: z\r\nConnection: close\r\n\r\n")
    assert b"\r\nLocation: https://other.example:8443/x?y\r\n" in absolute
    assert server.exchange(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_limits_of_clients(configured):
    server = configured(f'[clients]\nlimit_rate = "1/m"\nlimit_status = 503\n{ROUTE}')
    assert server.get("/cgi-bin/hello").status == 200
    answer = server.get("/cgi-bin/hello")
    assert (answer.status, bool(answer.headers["Retry-After"])) == (503, True)


def test_files(configured, place):
    (place / "site" / "index.html").write_text("<p>index")
    (place / "site" / "below").mkdir()
    server = configured('[[routes]]\npath = "/"\nroot = "site"\nlisting = true\nmethods = ["GET"]\n')
    assert server.get("/").text == "<p>index"
    assert server.get("/below/").status == 200
    assert server.get("/", method="POST", body=b"x").status == 405


def test_nothing_is_listed_that_no_route_shows(configured):
    assert configured(ROUTE).get("/").status == 404


def checked(*options):
    command = [sys.executable, "-m", "gateway", *options, "--check", "--run"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_trial_asks_each_program_and_pool(place):
    support.need("php-cgi")
    (place / "site" / "index.php").write_text("<?php echo getmypid();")
    support.script(place / "cgi" / "bad", "#!/bin/sh\necho why >&2\nexit 3\n")
    support.script(place / "cgi" / "own error", "#!/bin/sh\nprintf 'Status: 500 Mine\\n\\n'\n")
    support.script(place / "private" / "removes", f"#!/bin/sh\nrm -rf '{place}/site'\n")
    path = write(
        place,
        f'[pools.blog]\ncommand = ["php-cgi"]\npm = "static"\nmax_children = 1\n{ROUTE}'
        '[[routes]]\npath = "/"\nroot = "site"\nfastcgi = "pool:blog"\nextensions = [".php"]\n'
        '[[routes]]\npath = "/"\ncgi = "cgi"\nhosts = ["*.example"]\n'
        '[[routes]]\npath = "/in/"\ncgi = "private"\ninternal = true\n'
        '[[routes]]\npath = "/down/"\nfastcgi = "unix:nothing.sock"\n'
        '[[routes]]\npath = "/post/"\ncgi = "private"\nmethods = ["POST"]\n',
    )
    ended = checked("--config", str(path))
    assert ended.returncode == 1
    for words in (
        r"^  ran    /cgi-bin/hello: 200 in [0-9]+ ms$",
        r"^  ran    check\.example/hello: 200 in ",
        r"^  FAILS  /cgi-bin/bad: 502 .*/bad \(pid [0-9]+\) ended with exit status 3: .*its stderr ends: why$",
        r"^  FAILS  /cgi-bin/own%20error: 500 by the program itself$",
        r"^  ran    /: 200 in ",
        r"^  -      /in/removes: not asked, internal$",
        r"^  -      /post/removes: not asked, only for POST$",
        r"^  FAILS  /down/: 503 .*nothing\.sock.*$",
        r"^5 failed$",
    ):
        assert re.search(words, ended.stdout, re.MULTILINE), (words, ended.stdout, ended.stderr)
    assert (place / "site").is_dir()


def test_a_trial_of_what_is_well(place):
    ended = checked("--cgi-dir", str(place / "cgi"))
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "all ran well")


def test_a_trial_is_no_client_that_is_limited(place):
    limits = '[clients]\nlimit_rate = "1/m"\nproxy_protocol = ["192.0.2.0/24"]\n'
    support.script(place / "cgi" / "second", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n")
    (place / "users").write_text("bob:$2y$05$" + "." * 53 + "\n")
    ended = checked("--config", str(write(place, limits + ROUTE + 'auth = "users"\nlimit_rate = "1/m"\n')))
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "all ran well")
    assert len(re.findall(r"^  ran .*: 200 in ", ended.stdout, re.MULTILINE)) == 2


def test_a_full_disk_for_the_pid_file_is_told_and_nothing_serves(place):
    support.need_file("/dev/full")
    path = write(place, f'[server]\nlisten = ["unix:s"]\npid_file = "/dev/full"\n{ROUTE}')
    command = [sys.executable, "-m", "gateway", "--config", path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    words = "gateway: [server] pid_file /dev/full: No space left on device; make room, or name another\n"
    assert (ended.returncode, ended.stderr) == (2, words)
    assert not (place / "s").exists()


def test_run_goes_with_check(place):
    command = [sys.executable, "-m", "gateway", "--cgi-dir", place / "cgi", "--run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr[:31]) == (2, "gateway: --run: goes with --che")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('error_log = "/nowhere/log"', r"gateway: \[server\] error_log /nowhere/log: No such file or directory"),
        ('access_log = "/nowhere/log"', r"gateway: \[server\] access_log /nowhere/log: "),
        ('pid_file = "/nowhere/pid"', r"gateway: \[server\] pid_file /nowhere/.*: "),
        ('listen = ["unix:/nowhere/s"]', r"gateway: \[server\] listen unix:/nowhere/s: "),
    ],
)
def test_what_cannot_be_opened_is_named_by_its_key(place, line, words):
    default = "" if "listen" in line else 'listen = ["127.0.0.1:0"]'
    path = write(place, f"[server]\n{line}\n{default}\n{ROUTE}")
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "--config", path], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.match(words, ended.stderr), ended.stderr
    assert "--" not in ended.stderr


def test_a_check_names_the_key(place):
    support.script(place / "cgi" / "odd", "#!/bin/sh\n")
    path = write(place, ROUTE + 'warm = "require"\nlimit_rate = "5/s"\nmax_body = "1K"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "--config", path, "--check"], capture_output=True, text=True, check=False
    )
    assert re.search(r'FAILS  /cgi-bin/odd: cold: .* \(warm = "require"\)$', ended.stdout, re.MULTILINE), ended.stdout
    assert re.search(r"^limit    /cgi-bin/: a body of 1024 bytes, .*, 5 requests a second", ended.stdout, re.MULTILINE)
