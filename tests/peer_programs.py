"""One FastCGI program in every way that people write them. Each answers alike: see `KINDS`."""

from __future__ import annotations

import subprocess
from pathlib import Path

# A GET is answered by one line, "KIND METHOD URI", or by so many bytes as ?size= says, of the ten digits over and over.
# A POST is answered by its own body.
KINDS = ("runtime", "flup-threaded", "flup-forked", "flup-script", "perl", "perl-fast", "c", "php")

WSGI = """
import os
from urllib.parse import parse_qs

KIND = os.environ.get("KIND", "flup-script")

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("X-Kind", KIND)])
    if environ["REQUEST_METHOD"] == "POST":
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]
    size = int(parse_qs(environ.get("QUERY_STRING", "")).get("size", [0])[0])
    if size:
        return (b"0123456789" * 1000 for _ in range(size // 10_000))
    return [f"{KIND} {environ['REQUEST_METHOD']} {environ['REQUEST_URI']}\\n".encode()]
"""
FLUP = """
from flup.server.fcgi import WSGIServer
from peer_wsgi import application
WSGIServer(application).run()
"""
PERL = """
use strict; use warnings; use FCGI;
binmode STDOUT;
my $request = FCGI::Request();
while ($request->Accept() >= 0) {
    print "Content-Type: application/octet-stream\\r\\nX-Kind: perl\\r\\n\\r\\n";
    if ($ENV{REQUEST_METHOD} eq 'POST') {
        my ($body, $left, $at) = ('', $ENV{CONTENT_LENGTH}, 0);
        while ($left and my $got = read(STDIN, $body, $left, $at)) { $at += $got; $left -= $got; }
        print $body;
    } elsif (($ENV{QUERY_STRING} // '') =~ /size=(\\d+)/) {
        print '0123456789' x 1000 for 1 .. $1 / 10000;
    } else {
        print "perl $ENV{REQUEST_METHOD} $ENV{REQUEST_URI}\\n";
    }
}
"""
PERL_FAST = """
use strict; use warnings; use CGI::Fast;
while (my $query = CGI::Fast->new) {
    binmode STDOUT;
    print $query->header(-type => 'application/octet-stream', -x_kind => 'perl-fast');
    if ($query->request_method eq 'POST') { print $query->param('POSTDATA'); }
    elsif ($query->param('size')) { print '0123456789' x 1000 for 1 .. $query->param('size') / 10000; }
    else { print "perl-fast ", $query->request_method, " $ENV{REQUEST_URI}\\n"; }
}
"""
C = r"""
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) {
    while (FCGI_Accept() >= 0) {
        const char *query = getenv("QUERY_STRING"), *size = query ? strstr(query, "size=") : NULL;
        printf("Content-Type: application/octet-stream\r\nX-Kind: c\r\n\r\n");
        if (!strcmp(getenv("REQUEST_METHOD"), "POST")) {
            size_t length = (size_t)atol(getenv("CONTENT_LENGTH")), at = 0, got;
            char *body = malloc(length + 1);
            while (at < length && (got = fread(body + at, 1, length - at, stdin)) > 0) at += got;
            fwrite(body, 1, at, stdout);
            free(body);
        } else if (size) {
            for (long left = atol(size + 5); left > 0; left -= 10) fwrite("0123456789", 1, 10, stdout);
        } else printf("c %s %s\n", getenv("REQUEST_METHOD"), getenv("REQUEST_URI"));
    }
    return 0;
}
"""
PHP = """<?php
header('Content-Type: application/octet-stream');
header('X-Kind: php');
if ($_SERVER['REQUEST_METHOD'] === 'POST') readfile('php://input');
elseif (isset($_GET['size']))
    for ($left = $_GET['size']; $left > 0; $left -= 10000) echo str_repeat('0123456789', 1000);
else echo "php {$_SERVER['REQUEST_METHOD']} {$_SERVER['REQUEST_URI']}\\n";
"""


def build(directory: Path) -> None:
    """Write the programs into a directory, and compile the one in C."""
    directory.chmod(0o755)
    for name, text in (
        ("peer_wsgi.py", WSGI), ("peer_flup.py", FLUP), ("peer.pl", PERL), ("peer_fast.pl", PERL_FAST),
        ("peer.c", C), ("peer.php", PHP),
    ):  # fmt: skip
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)
    done = subprocess.run(
        ["cc", "-O1", "-w", "-o", directory / "peer", directory / "peer.c", "-lfcgi"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr


def pools(programs: Path, sockets: Path, python: str) -> str:
    """Return a configuration with a pool for each kind, which listens on ``SOCKETS/KIND``."""
    apps = {"runtime": "own", "flup-threaded": "flup-threaded", "flup-forked": "flup-forked"}
    commands = {
        "flup-script": [python, str(programs / "peer_flup.py")],
        "perl": ["perl", str(programs / "peer.pl")],
        "perl-fast": ["perl", str(programs / "peer_fast.pl")],
        "c": [str(programs / "peer")],
        "php": ["php-cgi", "-d", "upload_max_filesize=8M", "-d", "post_max_size=8M"],
    }
    text = ""
    for kind in KINDS:
        text += f'[pools.{kind}]\nlisten = "unix:{sockets / kind}"\nlisten_mode = "0666"\nchdir = "{programs}"\n'
        # None is sent home as idle: a web server may keep a connection to it.
        text += 'pm = "dynamic"\nmax_children = 5\nmin_spare_servers = 1\nmax_spare_servers = 5\n'
        text += f'env = {{ KIND = "{kind}" }}\n'
        if kind in apps:
            text += f'app = "peer_wsgi:application"\nrunner = "{apps[kind]}"\n\n'
        else:
            text += f"command = {commands[kind]!r}\n\n"
    return text
