"""What the server is told to do: typed, frozen, complete before anything starts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from fcgi_pool.listener import Address
from gateway.cgi.warm.shebang import Recipe
from gateway.clients.settings import BasicAuth, ClientSettings, RateLimit
from gateway.confinement.model import Confinement
from gateway.http.limits import Limits
from gateway.privileges import Account


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
    # A body goes to the program while it comes, and is not kept before the start.
    stream_body: bool = False
    # What its programs may do.
    confinement: Confinement = field(default_factory=Confinement)


@dataclass(frozen=True, slots=True)
class FastCgiMount:
    """One application that answers everything below `prefix`, which begins and ends with a slash."""

    prefix: str
    server: FastCgiServer
    env: tuple[tuple[str, str], ...] = ()
    pass_authorization: bool = True
    stream_body: bool = False


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
    stream_body: bool = False


@dataclass(frozen=True, slots=True)
class StaticMount:
    """A tree of files served below `prefix`, none of them run. `index` are names of a directory's own page; with
    `listing`, a directory without one is answered by the names of what is in it."""

    prefix: str
    directory: str
    index: tuple[str, ...] = ("index.html",)
    follow_links: bool = True
    listing: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of processes that is started and kept by us: `server`'s name, address and number of children, their
    command line, their variables, and the pool's directives, each as ``KEY=VALUE``."""

    server: FastCgiServer
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    directives: tuple[str, ...] = ()
    app: str = ""  # instead of a command: a WSGI application, run by our own runtime
    no_new_privileges: bool = False

    @property
    def program(self) -> str:
        """What it runs, as a shell would be told."""
        return self.app or shlex.join(self.command)


Mount = CgiMount | FastCgiMount | SiteMount | StaticMount


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that sends the client elsewhere, see `routes.expand` for the variables in `to`."""

    to: str
    status: int = 302


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rule on the decoded path: where `match` is found, the request is for `to`, or is redirected there. ``$1`` to
    ``$9`` in `to` are the groups of `match`."""

    match: str
    to: str
    hosts: tuple[str, ...] = ()
    status: int = 0  # 0: within the server


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """What holds for the requests of one route: in place of the server's a body of `max_body` bytes and times in
    seconds, see `Timeouts`; and beside the server's a rate and a number of requests at once of each client."""

    max_body: int
    body: float
    send: float
    script: float
    queue: float
    rate: RateLimit | None = None
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests `mount` or `redirect` answers, and what is said around its answers."""

    prefix: str
    mount: Mount | None = None
    redirect: Redirect | None = None
    hosts: tuple[str, ...] = ()  # names, or ``*.example.org``; none: all
    methods: tuple[str, ...] = ()
    internal: bool = False  # only for redirects within the server
    # Of these, with ``$path`` for what is below the prefix, the first that is there in the mount's directory is served;
    # the last is a path of the server, or ``=404``.
    try_files: tuple[str, ...] = ()
    # Fields added to each response, or with '' taken away.
    headers: tuple[tuple[str, str], ...] = ()
    error_pages: tuple[tuple[int, str], ...] = ()
    sendfile_root: str = ""  # where X-Sendfile may lead to
    limits: RouteLimits | None = None  # None: the server's
    auth: BasicAuth | None = None  # who may, in place of what stands before its prefix


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Files of a certificate chain and of its private key, PEM; both may be the same file."""

    certificate: str
    key: str


# Options whose keys are not those of the table [server] alone.
_KEYS = {
    "--script-timeout": "script_timeout",
    "--queue-timeout": "queue_timeout",
    "--warm require": 'warm = "require"',
    "--auth": "auth",
}


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS as the server speaks it.

    `pairs`: a client that asks for no host, or for none that a certificate is for, is shown the first. `listen`: where
    TLS is spoken, beside the addresses of the settings; none: on all of those that are TCP. `minimum`: the lowest
    version, "1.2" or "1.3". `verify_client`: whether clients are asked for a certificate that the authorities in the
    file `client_ca` have signed: "off", "optional", "require".
    """

    pairs: tuple[KeyPair, ...]
    listen: tuple[Address, ...] = ()
    minimum: str = "1.2"
    client_ca: str = ""
    verify_client: str = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the processes of one server need to know."""

    listen: tuple[Address, ...]
    routes: tuple[Route, ...]
    rewrites: tuple[Rewrite, ...] = ()
    # Whether "/" shows what is mounted, if nothing is mounted there.
    shows_index: bool = False
    # Whom workers run as, and programs whose route says nothing else; None: as the server was started.
    account: Account | None = None
    no_new_privileges: bool = False
    # Requests that did not come over TLS are sent to this port by https; 0: they are answered.
    https_port: int = 0
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
    # Whether what programs write is sent in a content coding that the client accepts.
    compress: bool = False
    # Programs at once in one worker; more wait in line. Apache's MaxRequestWorkers is 400 for all of the server.
    max_programs: int = 256
    # Requests that wait for a place; one more is answered 503 at once.
    max_waiting: int = 4096
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    clients: ClientSettings = field(default_factory=ClientSettings)
    are_of_file: bool = False  # a configuration file said all this, not options

    def named(self, option: str) -> str:
        """Return what the user knows `option` by: in a configuration file, a key."""
        if not self.are_of_file:
            return option
        return _KEYS.get(option) or "[server] " + option.removeprefix("--").replace("-", "_")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the server listens, with TLS and without."""
        return (*self.listen, *(self.tls.listen if self.tls else ()))

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """Every mount, in the order of the routes."""
        return tuple(route.mount for route in self.routes if route.mount)

    @property
    def confinements(self) -> tuple[Confinement, ...]:
        """What the CGI programs of the routes may do, each once: so many spawners has a worker, and at least one."""
        found = dict.fromkeys(mount.confinement for mount in self.mounts if isinstance(mount, CgiMount))
        return tuple(found) or (Confinement(self.account, self.no_new_privileges),)

    @property
    def counts_clients(self) -> bool:
        """Whether anything is counted by the client's address."""
        limits = [route.limits for route in self.routes if route.limits]
        return self.clients.are_counted or any(one.rate or one.connections for one in limits)

    @property
    def fastcgi_servers(self) -> tuple[FastCgiServer, ...]:
        """Every FastCGI server that is asked for something, once."""
        found: dict[FastCgiServer, None] = {}
        for mount in (*self.mounts, *self.authorizers):
            if isinstance(mount, CgiMount):
                found |= dict.fromkeys(server for _, server in mount.reuse)
            elif not isinstance(mount, StaticMount):
                found[mount.server] = None
        return tuple(found)
