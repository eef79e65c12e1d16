"""Other people's web servers in front of our pools: nginx, Apache with mod_proxy_fcgi, lighttpd."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.peer_programs import KINDS
from tests.support import PATIENCE, members, wait_until

_MODULES = Path("/usr/lib/apache2/modules")
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
NAMES = {"nginx": "nginx", "apache": "apache2", "lighttpd": "lighttpd"}

NGINX = """\
daemon off;
master_process off;
pid @WORK@/pid;
error_log stderr;
events {}
http {
    access_log off;
    client_max_body_size 0;
    client_body_temp_path @WORK@/body;
    fastcgi_temp_path @WORK@/fastcgi;
    proxy_temp_path @WORK@/proxy;
    scgi_temp_path @WORK@/scgi;
    uwsgi_temp_path @WORK@/uwsgi;
@UPSTREAMS@
    server {
        listen 127.0.0.1:@PORT@;
        fastcgi_keep_conn on;
        fastcgi_param REQUEST_METHOD $request_method;
        fastcgi_param REQUEST_URI $request_uri;
        fastcgi_param QUERY_STRING $query_string;
        fastcgi_param CONTENT_TYPE $content_type;
        fastcgi_param CONTENT_LENGTH $content_length;
        fastcgi_param SERVER_PROTOCOL $server_protocol;
        fastcgi_param SERVER_NAME localhost;
        fastcgi_param SERVER_PORT $server_port;
        fastcgi_param PATH_INFO $uri;
        fastcgi_param SCRIPT_NAME "";
        fastcgi_param SCRIPT_FILENAME @PROGRAMS@/peer.php;
        fastcgi_param REDIRECT_STATUS 200;
@LOCATIONS@
    }
}
"""
APACHE = """\
ServerRoot "@WORK@"
DefaultRuntimeDir "@WORK@"
ServerName localhost
Listen 127.0.0.1:@PORT@
PidFile "@WORK@/pid"
ErrorLog "/dev/stderr"
LoadModule mpm_event_module "@MODULES@/mod_mpm_event.so"
LoadModule authz_core_module "@MODULES@/mod_authz_core.so"
LoadModule proxy_module "@MODULES@/mod_proxy.so"
LoadModule proxy_fcgi_module "@MODULES@/mod_proxy_fcgi.so"
StartServers 1
ServerLimit 1
ThreadsPerChild 8
MaxRequestWorkers 8
@USER@
# Else SCRIPT_FILENAME begins with "proxy:fcgi://", which php-fpm takes off and php-cgi does not.
ProxyFCGIBackendType GENERIC
@LOCATIONS@
"""
LIGHTTPD = """\
server.modules = ("mod_fastcgi")
server.bind = "127.0.0.1"
server.port = @PORT@
server.document-root = "@PROGRAMS@"
server.upload-dirs = ("@WORK@")
server.errorlog = "/dev/stderr"
fastcgi.server = (
@LOCATIONS@
)
"""


def _configuration(name: str, sockets: Path, programs: Path) -> str:
    if name == "nginx":
        upstreams = [f"    upstream {kind} {{ server unix:{sockets / kind}; keepalive 1; }}" for kind in KINDS]
        locations = [f"        location /{kind}/ {{ fastcgi_pass {kind}; }}" for kind in KINDS]
        return NGINX.replace("@UPSTREAMS@", "\n".join(upstreams)).replace("@LOCATIONS@", "\n".join(locations))
    if name == "apache":
        # With a worker of that name of its own, so that its connection may be used again.
        locations = [f"ProxyPass /{kind}/ unix:{sockets / kind}|fcgi://{kind}/ enablereuse=on max=1" for kind in KINDS]
        script = f"ProxyPassMatch ^/php/ unix:{sockets / 'php'}|fcgi://php{programs}/peer.php enablereuse=on max=1"
        locations[KINDS.index("php")] = script
        return APACHE.replace("@LOCATIONS@", "\n".join(locations)).replace("@USER@", _apache_user())
    locations = [
        f'    "/{kind}/" => (("socket" => "{sockets / kind}", "check-local" => "disable")),'
        for kind in KINDS
        if kind != "php"
    ]
    locations.append(f'    ".php" => (("socket" => "{sockets / "php"}")),')
    return LIGHTTPD.replace("@LOCATIONS@", "\n".join(locations))


def _apache_user() -> str:
    """Whom Apache's workers run as: it refuses root."""
    return f"User nobody\nGroup #{pwd.getpwnam('nobody').pw_gid}" if os.geteuid() == 0 else ""


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(name: str, sockets: Path, programs: Path, work: Path) -> Iterator[int]:
    """Run the web server `name` in front of the pools in `sockets`, in the directory `work`; gives its port."""
    port = free_port()
    values = {"WORK": work, "PORT": port, "PROGRAMS": programs, "MODULES": _MODULES}
    text = _configuration(name, sockets, programs)
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    config = work / "server.conf"
    config.write_text(text)
    command = {
        "nginx": ["nginx", "-p", str(work), "-c", str(config), "-e", "stderr"],
        "apache": ["apache2", "-D", "FOREGROUND", "-f", str(config)],
        "lighttpd": ["lighttpd", "-D", "-f", str(config)],
    }[name]
    with started(command, port, work / "log"):
        yield port


@contextlib.contextmanager
def started(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """Run a server in a session of its own until it accepts on `port`; at the end nothing of it is left."""
    program = shutil.which(command[0], path=_PATH)
    assert program, command[0]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def refused() -> str:
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), PATIENCE).close()
            except OSError as error:
                return f"{error}: {log.read_text()}"
            return ""

        wait_until(refused)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda: f"left: {found}" if (found := members(process.pid)) else "")
