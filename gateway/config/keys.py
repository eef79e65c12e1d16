"""Every key of the configuration file: its type, default, and what it means.

The reference page is made from this file, so each key says what it does, its unit, and the nearest directive of nginx
or php-fpm. msgspec reads and checks the types: beside pydantic it takes a seventh of the time to start and a fifteenth
of the memory. Its messages name the place, and `read` says the rest.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field


def _key(text: str, like: str = "", whose: str = "nginx") -> Meta:
    """Return the description of a key; `like`: the nearest directive elsewhere, of the program `whose`."""
    return Meta(description=text, extra={"like": f"{whose}: ``{like}``" if like else ""})


Seconds = int | float | str
Size = int | str


Number = int | str


class Limits(Struct, forbid_unknown_fields=True, kw_only=True):
    """Limits of each process of a CGI program; a route's hold one by one in place of the server's."""

    cpu: Annotated[
        Seconds | None, _key("CPU time; then SIGXCPU, and 2 s later SIGKILL", "RLimitCPU", "Apache")
    ] = None
    memory: Annotated[
        Size | None, _key("address space, with what is mapped and not used", "RLimitMEM", "Apache")
    ] = None
    processes: Annotated[
        Number | None,
        _key("processes and threads of the user, wherever they run; not counted for root", "RLimitNPROC", "Apache"),
    ] = None
    files: Annotated[Number | None, _key("open descriptors", "rlimit_files", "php-fpm")] = None
    file_size: Annotated[
        Size | None, _key("of a file that is written; more is SIGXFSZ", "LimitFSIZE", "systemd")
    ] = None
    core: Annotated[Size | None, _key("of a core dump; 0: none is made", "rlimit_core", "php-fpm")] = None


class Landlock(Struct, forbid_unknown_fields=True, kw_only=True):
    """What of the file system CGI programs reach, besides their own directory; where the kernel has Landlock."""

    read: Annotated[
        list[str] | None,
        _key("read and executed there and below; the system's directories", "ReadOnlyPaths", "systemd"),
    ] = None
    write: Annotated[
        list[str], _key("read, executed and changed there and below", "ReadWritePaths", "systemd")
    ] = field(default_factory=list)


class Cgroup(Struct, forbid_unknown_fields=True, kw_only=True):
    """Limits of all programs together that have the same user and limits; where the server may make cgroups (v2)."""

    memory: Annotated[Size | None, _key("resident memory; more is SIGKILL", "MemoryMax", "systemd")] = None
    processes: Annotated[Number | None, _key("processes and threads", "TasksMax", "systemd")] = None
    cpu: Annotated[float | str | None, _key("CPUs, as 0.5 for half of one", "CPUQuota", "systemd")] = None


class Server(Struct, forbid_unknown_fields=True, kw_only=True):
    """The server as a whole."""

    listen: Annotated[
        list[str] | None,
        _key("HOST:PORT, [::1]:PORT or unix:PATH, each once; 127.0.0.1:8000 if TLS listens nowhere else", "listen"),
    ] = None
    workers: Annotated[int | None, _key("front workers; the number of CPUs", "worker_processes")] = None
    user: Annotated[
        str, _key("whom workers run as, and programs whose route or pool has no user, if started by root", "user")
    ] = ""
    group: Annotated[str, _key("and with which group; the user's own", "user")] = ""
    no_new_privileges: Annotated[
        bool, _key("no more rights by set-user-id bits, which sendmail may need", "NoNewPrivileges", "systemd")
    ] = False
    limits: Annotated[Limits | None, _key("of CGI programs whose route says nothing else, see below")] = None
    landlock: Annotated[
        Landlock | bool | None, _key("of CGI programs whose route says nothing else, see below; true: its defaults")
    ] = None
    cgroup: Annotated[Cgroup | None, _key("of CGI programs whose route says nothing else, see below")] = None
    access_log: Annotated[str, _key("a path, - for standard output, or off", "access_log")] = "-"
    error_log: Annotated[str, _key("a path, or - for standard error", "error_log")] = "-"
    log_format: Annotated[str, _key("combined or json, of the access log", "log_format")] = "combined"
    pid_file: Annotated[str, _key("holds the master's pid while it serves", "pid")] = ""
    temp_dir: Annotated[str, _key("for large bodies; the system's, see TMPDIR", "client_body_temp_path")] = ""
    debug: Annotated[bool, _key("explain errors to the client, too; not for the public")] = False
    http: Annotated[str, _key("who reads requests: auto, httptools or h11")] = "auto"
    loop: Annotated[str, _key("the event loop: auto, uvloop or asyncio")] = "auto"
    max_programs: Annotated[int, _key("CGI programs at once, of each worker; more wait")] = 256
    max_body: Annotated[Size, _key("largest body of a request, bytes or 512K, 16M, 2G", "client_max_body_size")] = "2G"
    max_header_size: Annotated[
        Size, _key("largest head of a request, line and fields", "large_client_header_buffers")
    ] = "64K"
    max_request_line: Annotated[Size, _key("its line: method and target", "large_client_header_buffers")] = "16K"
    max_headers: Annotated[int, _key("its fields, at most so many", "max_headers")] = 128
    header_timeout: Annotated[Seconds, _key("a request's whole head", "client_header_timeout")] = 20
    body_timeout: Annotated[Seconds, _key("longest stall of a request's body", "client_body_timeout")] = 60
    send_timeout: Annotated[Seconds, _key("longest time in which a client takes nothing", "send_timeout")] = 60
    keepalive_timeout: Annotated[Seconds, _key("longest pause between two requests", "keepalive_timeout")] = 75
    handshake_timeout: Annotated[Seconds, _key("the TLS handshake", "client_header_timeout")] = 20
    script_timeout: Annotated[Seconds, _key("longest silence of a program", "fastcgi_read_timeout")] = 60
    queue_timeout: Annotated[Seconds, _key("longest wait for a place to be served in")] = 30
    kill_timeout: Annotated[Seconds, _key("from TERM to KILL for a program that is ended")] = 3
    stop_timeout: Annotated[Seconds, _key("QUIT waits so long for what is under way", "worker_shutdown_timeout")] = 30
    compress: Annotated[
        bool, _key("send text that programs write in gzip, or br and zstd if installed", "gzip")
    ] = False
    https_port: Annotated[
        int, _key("requests that came without TLS are sent to this port by https; 0: answered", "return 301 https://")
    ] = 0


class KeyPair(Struct, forbid_unknown_fields=True, kw_only=True):
    """One more certificate."""

    certificate: Annotated[str, _key("the certificate chain, PEM; it is for the names in it", "ssl_certificate")]
    key: Annotated[str, _key("its private key; in the same file", "ssl_certificate_key")] = ""


class Tls(Struct, forbid_unknown_fields=True, kw_only=True):
    """How TLS is spoken, and where."""

    certificate: Annotated[
        str, _key("the certificate chain, PEM; without it, the first of certificates is for all other names",
                  "ssl_certificate")
    ] = ""
    key: Annotated[str, _key("its private key; in the same file", "ssl_certificate_key")] = ""
    certificates: Annotated[
        list[KeyPair], _key("more: a client gets the one for the name that it asks for", "server_name")
    ] = field(default_factory=list)
    listen: Annotated[
        list[str], _key("HOST:PORT, with TLS, beside the addresses of [server]; none: TLS at all of those that are TCP",
                        "listen ssl")
    ] = field(default_factory=list)
    minimum: Annotated[str, _key('the lowest version, "1.2" or "1.3"', "ssl_protocols")] = "1.2"
    client_ca: Annotated[
        str, _key("authorities, PEM, that certificates of clients are from", "ssl_client_certificate")
    ] = ""
    verify_client: Annotated[
        str, _key("clients are asked for a certificate: off, optional, require", "ssl_verify_client")
    ] = "off"


class Clients(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is allowed to one client, and whom is believed about who the client is."""

    limit_rate: Annotated[
        str, _key('requests of one client address, as "10/s", "600/m,burst=20" or "10/s,burst=20,delay"', "limit_req")
    ] = ""
    limit_connections: Annotated[int, _key("connections of one client address at once; 0: any", "limit_conn")] = 0
    limit_status: Annotated[int, _key("429 or 503, for who is over a limit", "limit_req_status")] = 429
    max_connections: Annotated[
        int, _key("connections of one worker; 0: as descriptors allow", "worker_connections")
    ] = 0
    max_handshakes: Annotated[int, _key("of these, handshakes under way; 0: 1024")] = 0
    min_body_rate: Annotated[int, _key("bytes a second at which a body must come; 0: any")] = 0
    min_send_rate: Annotated[int, _key("bytes a second of the response that a client must take; 0: any")] = 0
    rate_window: Annotated[Seconds, _key("in which these two are measured")] = 20
    proxy_protocol: Annotated[
        list[str], _key("[ADDRESS=]NETWORKS: connections to ADDRESS begin with a PROXY header", "listen proxy_protocol")
    ] = field(default_factory=list)
    real_ip: Annotated[
        list[str], _key("networks of proxies whose word about the client is taken; unix: too", "set_real_ip_from")
    ] = field(default_factory=list)
    exempt: Annotated[
        list[str], _key("networks, and unix:, that are not counted and not limited, and have no minimum rate", "geo")
    ] = field(default_factory=list)
    real_ip_header: Annotated[str, _key("the field that names the client; X-Forwarded-For", "real_ip_header")] = ""
    auth: Annotated[
        dict[str, str], _key("prefix and htpasswd file: a name and password are asked for", "auth_basic_user_file")
    ] = field(default_factory=dict)
    auth_realm: Annotated[str, _key("what they are asked for", "auth_basic")] = "restricted"


class Redirect(Struct, forbid_unknown_fields=True, kw_only=True):
    """An answer that sends the client elsewhere."""

    to: Annotated[str, _key("where to; with $host, $uri, $path, and the query unless there is one", "return 301 URL")]
    status: Annotated[int, _key("301, 302, 303, 307 or 308")] = 302


class Rewrite(Struct, forbid_unknown_fields=True, kw_only=True):
    """A rule that is tried on each request, in order; the first that fits holds."""

    match: Annotated[str, _key("a regular expression, searched in the decoded path", "rewrite")]
    to: Annotated[str, _key("the path instead, with $1 to $9, $host, $uri, $path")]
    status: Annotated[int, _key("0: within the server; 301, 302, 307 or 308: the client is sent there")] = 0
    hosts: Annotated[list[str], _key("for these hosts alone", "server_name")] = field(default_factory=list)


class Route(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which requests are answered by what: `cgi`, `fastcgi`, `root`, `root` with `fastcgi`, or `redirect`."""

    path: Annotated[str, _key("a prefix of whole segments; the longest that fits is taken", "location")]
    hosts: Annotated[list[str], _key("names, or *.example.org; none: every host", "server_name")] = field(
        default_factory=list
    )
    methods: Annotated[list[str], _key("for these alone; GET stands for HEAD, too", "limit_except")] = field(
        default_factory=list
    )
    internal: Annotated[bool, _key("only for redirects within the server", "internal")] = False
    cgi: Annotated[str, _key("a directory of CGI programs")] = ""
    root: Annotated[str, _key("a directory of files", "root, alias")] = ""
    fastcgi: Annotated[str, _key("pool:NAME, unix:PATH or tcp:HOST:PORT", "fastcgi_pass")] = ""
    extensions: Annotated[list[str], _key("with root: files that fastcgi runs; all others are sent")] = field(
        default_factory=list
    )
    index: Annotated[
        list[str], _key("with root: what a directory stands for; index.html, with fastcgi index.php before it", "index")
    ] = field(default_factory=list)
    listing: Annotated[bool, _key("with root alone: list a directory that has no page of its own", "autoindex")] = False
    connections: Annotated[int, _key("to a server that is no pool of ours: how many it can serve at once")] = 0
    redirect: Annotated[Redirect | None, _key("the client is sent elsewhere", "return")] = None
    try_files: Annotated[
        list[str], _key("$path, $path/, $path.html …: the first that is there; last a path or =404", "try_files")
    ] = field(default_factory=list)
    env: Annotated[dict[str, str], _key("variables for the program", "fastcgi_param")] = field(default_factory=dict)
    warm: Annotated[bool | str, _key("with cgi: true, require or reuse, see docs/warm.rst")] = False
    preload: Annotated[list[str], _key("with warm: modules to be imported ahead")] = field(default_factory=list)
    follow_links: Annotated[bool, _key("follow symbolic links", "disable_symlinks")] = True
    pass_authorization: Annotated[bool, _key("give the program the Authorization field")] = True
    user: Annotated[str, _key("with cgi: whom its programs run as; the server's", "SuexecUserGroup", "Apache")] = ""
    group: Annotated[str, _key("and with which group; the user's own", "SuexecUserGroup", "Apache")] = ""
    no_new_privileges: Annotated[bool | None, _key("with cgi, as of the server", "NoNewPrivileges", "systemd")] = None
    limits: Annotated[Limits | None, _key("with cgi: of each process, see below; \"unlimited\" takes one away")] = None
    landlock: Annotated[
        Landlock | bool | None, _key("with cgi: what of the file system is reached, see below; false: all")
    ] = None
    cgroup: Annotated[Cgroup | None, _key("with cgi: of all programs together, see below")] = None
    kill_group: Annotated[bool, _key("with cgi: end what a program left in its process group")] = False
    stream_body: Annotated[
        bool,
        _key("with cgi or fastcgi: a body whose length is known goes to the program while it comes",
             "fastcgi_request_buffering off"),
    ] = False  # fmt: skip
    authorizer: Annotated[
        str, _key("a FastCGI Authorizer, unix:PATH or tcp:HOST:PORT, that is asked first", "auth_request")
    ] = ""
    headers: Annotated[
        dict[str, str], _key("fields of each response, in place of the program's; '' takes one away", "add_header")
    ] = field(default_factory=dict)
    error_pages: Annotated[
        dict[str, str], _key("for errors of this server: status and a path that answers instead", "error_page")
    ] = field(default_factory=dict)
    sendfile_root: Annotated[str, _key("where X-Sendfile of a program may lead to", "X-Accel-Redirect")] = ""
    max_body: Annotated[
        Size | None, _key("in place of the server's: largest body of a request", "client_max_body_size")
    ] = None
    body_timeout: Annotated[Seconds | None, _key("in place of the server's", "client_body_timeout")] = None
    send_timeout: Annotated[Seconds | None, _key("in place of the server's", "send_timeout")] = None
    script_timeout: Annotated[Seconds | None, _key("in place of the server's", "fastcgi_read_timeout")] = None
    queue_timeout: Annotated[Seconds | None, _key("in place of the server's")] = None
    limit_rate: Annotated[
        str, _key("requests of one client address for this route, beside those of [clients]", "limit_req")
    ] = ""
    limit_connections: Annotated[
        int, _key("requests of one client address at once for this route; 0: any", "limit_conn")
    ] = 0
    auth: Annotated[
        str, _key("an htpasswd file: a name and password are asked for", "auth_basic_user_file")
    ] = ""
    auth_realm: Annotated[str, _key("what they are asked for", "auth_basic")] = "restricted"


class Document(Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    server: Annotated[Server, _key("the server as a whole")] = field(default_factory=Server)
    tls: Annotated[Tls | None, _key("TLS")] = None
    clients: Annotated[Clients, _key("what is allowed to one client")] = field(default_factory=Clients)
    pools: Annotated[
        dict[str, dict[str, Any]], _key("processes that are kept, by name; the keys are in docs/fastcgi.rst")
    ] = field(default_factory=dict)
    routes: Annotated[list[Route], _key("which requests are answered by what")] = field(default_factory=list)
    rewrites: Annotated[list[Rewrite], _key("rules that are tried first")] = field(default_factory=list)
