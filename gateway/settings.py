"""What the server is told to do: typed, frozen, complete before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from fcgi_pool.listener import Address
from gateway.cgi.warm.shebang import Recipe
from gateway.clients.settings import ClientSettings
from gateway.http.limits import Limits


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Every wait has its own bound, in seconds. Passing it names the culprit.

    Precedents: nginx client_header_timeout, client_body_timeout, send_timeout and fastcgi_read_timeout 60 s,
    keepalive_timeout 75 s; Apache RequestReadTimeout 20 to 40 s for the head, Timeout 60 s.
    """

    header: float = 20.0  # client: the whole head of a request
    body: float = 60.0  # client: a stall between two pieces of a body
    send: float = 60.0  # client: takes nothing of what is sent
    keepalive: float = 75.0  # client: idle between two requests
    script: float = 60.0  # program: silence, before its header and in its body
    kill: float = 3.0  # program: from TERM to KILL
    queue: float = 30.0  # server: a request waits for a place to start its program
    stop: float = 30.0  # server: the drain at QUIT
    handshake: float = 20.0  # client: the TLS handshake


@dataclass(frozen=True, slots=True)
class FastCgiServer:
    """A FastCGI server: where it listens, and how many connections it can serve at once.

    With `connections` = 0 that is not known: it gets a connection for each request.
    """

    name: str
    address: Address
    connections: int = 0


@dataclass(frozen=True, slots=True)
class CgiMount:
    """A directory of CGI programs served below `prefix`, which begins and ends with a slash."""

    prefix: str
    directory: str
    env: tuple[tuple[str, str], ...] = ()
    follow_links: bool = True
    pass_authorization: bool = True
    kill_group: bool = False
    # "": each program is a fresh process. "warm": scripts of Python and Perl are forked from an interpreter that has
    # started already, where they can be. "require": those that cannot are not run. "reuse": scripts of Python are run
    # again and again in the processes of pools, those of Perl as with "warm".
    warm: str = ""
    # Modules that warm interpreters import at their start, though they are not the interpreter's own.
    preload: tuple[str, ...] = ()
    # With "reuse": which pool runs the scripts of which interpreter.
    reuse: tuple[tuple[Recipe, FastCgiServer], ...] = ()


@dataclass(frozen=True, slots=True)
class FastCgiMount:
    """One application that answers everything below `prefix`, which begins and ends with a slash."""

    prefix: str
    server: FastCgiServer
    env: tuple[tuple[str, str], ...] = ()
    pass_authorization: bool = True


@dataclass(frozen=True, slots=True)
class SiteMount:
    """A tree of files served below `prefix`; those whose name ends in one of `extensions` are run by `server`."""

    prefix: str
    directory: str
    server: FastCgiServer
    extensions: tuple[str, ...] = (".php",)
    index: tuple[str, ...] = ("index.php", "index.html")
    env: tuple[tuple[str, str], ...] = ()
    follow_links: bool = True
    pass_authorization: bool = True


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of processes that is started and kept by us: `server`'s name, address and number of children, their
    command line, their variables, and the pool's directives, each as ``KEY=VALUE``."""

    server: FastCgiServer
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    directives: tuple[str, ...] = ()


Mount = CgiMount | FastCgiMount | SiteMount


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the server's certificate chain and private key, PEM."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the processes of one server need to know."""

    listen: tuple[Address, ...]
    mounts: tuple[Mount, ...]
    pools: tuple[Pool, ...] = ()
    # Asked before anything below their prefix is served.
    authorizers: tuple[FastCgiMount, ...] = ()
    workers: int = 1
    http: str = "auto"
    loop: str = "auto"
    debug: bool = False
    access_log: str = "-"
    error_log: str = "-"
    log_format: str = "combined"
    pid_file: str = ""
    temp_dir: str = ""
    tls: Tls | None = None
    # Programs at once in one worker; more wait in line. Apache's MaxRequestWorkers is 400 for all of the server.
    max_programs: int = 256
    # Requests that wait for a place; one more is answered 503 at once.
    max_waiting: int = 4096
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    clients: ClientSettings = field(default_factory=ClientSettings)

    @property
    def fastcgi_servers(self) -> tuple[FastCgiServer, ...]:
        """Every FastCGI server that is asked for something, once."""
        found: dict[FastCgiServer, None] = {}
        for mount in (*self.mounts, *self.authorizers):
            servers = [server for _, server in mount.reuse] if isinstance(mount, CgiMount) else [mount.server]
            found |= dict.fromkeys(servers)
        return tuple(found)
