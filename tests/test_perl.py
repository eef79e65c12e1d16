"""Scripts as they were written for CGI.pm."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse

import pytest

from tests import support
from tests.real_client import Ending, Gate, Stream, multipart


@pytest.fixture
def perl(serve, tmp_path):
    """Write one script in Perl, start the server: a function of its text that gives the server."""
    support.need_perl("CGI")

    def start(text, *options, name="script.pl", **more):
        directory = tmp_path / "cgi"
        directory.mkdir(exist_ok=True)
        support.script(directory / name, f"#!/usr/bin/perl\nuse strict;\nuse warnings;\n{text}")
        return serve(*options, cgi_dir=directory, **more)

    return start


PARAMETERS = """
use CGI;
my $q = CGI->new;
print $q->header(-type => 'text/plain', -charset => 'utf-8');
print $q->request_method, "\\n";
for my $name (sort $q->multi_param) {
    print "$name=", join('|', $q->multi_param($name)), "\\n";
}
print "query ", join('|', map { "$_=" . $q->url_param($_) } sort $q->url_param), "\\n" if $q->url_param;
"""


def test_parameters_of_a_query(perl):
    answer = perl(PARAMETERS).get("/cgi-bin/script.pl?b=2&a=1%20%26+x&b=%C3%A9;c=")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body.decode().startswith("GET\na=1 & x\nb=2|é\nc=\n")


@pytest.mark.parametrize("size", [3, 100_000])
def test_parameters_of_a_form(perl, size):
    fields = {"name": "Ada & Co=", "long": "x" * size}
    answer = perl(PARAMETERS).get(
        "/cgi-bin/script.pl?from=query",
        method="POST",
        body=urllib.parse.urlencode(fields).encode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.body.decode() == f"POST\nlong={fields['long']}\nname=Ada & Co=\nquery from=query\n"


def test_head_has_no_body(perl):
    answer = perl(PARAMETERS).get("/cgi-bin/script.pl?a=1", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


UPLOAD = """
use CGI;
use Digest::SHA;
my $q = CGI->new;
my $name = $q->param('file');
my $file = $q->upload('file') or die $q->cgi_error || 'no file';
my $sum = Digest::SHA->new(256)->addfile($file->handle)->hexdigest;
print $q->header('text/plain'), "$name\\n", -s $file->handle, "\\n$sum\\n", $q->param('remark'), "\\n";
"""


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_upload(perl, tmp_path, size):
    spool = tmp_path / "spool"
    spool.mkdir()
    server = perl(UPLOAD, "--env", f"TMPDIR={spool}")
    content = os.urandom(size)
    kind, body = multipart(("remark", None, b"last"), ("file", "some file.bin", content))
    answer = server.get("/cgi-bin/script.pl", method="POST", body=body, headers={"Content-Type": kind})
    assert answer.body.decode() == f"some file.bin\n{size}\n{hashlib.sha256(content).hexdigest()}\nlast\n"
    assert list(spool.iterdir()) == []


def test_cookies(perl):
    server = perl("""
        use CGI;
        my $q = CGI->new;
        my %seen = map { $_ => $q->cookie($_) } $q->cookie;
        my @set = ($q->cookie(-name => 'a', -value => 'x y', -path => '/'), $q->cookie(-name => 'b', -value => 2));
        print $q->header(-type => 'text/plain', -cookie => \\@set), map { "$_: $seen{$_}\\n" } sort keys %seen;
    """)
    answer = server.get("/cgi-bin/script.pl", headers={"Cookie": "two=2; one=a%20b"})
    assert answer.body == b"one: a b\ntwo: 2\n"
    assert answer.headers.get_all("Set-Cookie") == ["a=x%20y; path=/", "b=2; path=/"]
    # Two fields of that name are one list to the script.
    both = server.exchange(
        b"GET /cgi-bin/script.pl HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nCookie: c=3\r\nCookie: d=4\r\n\r\n"
    )
    assert b"c: 3\nd: 4\n" in both


@pytest.mark.parametrize(
    ("call", "status", "location"),
    [
        ("$q->redirect('http://b.example/there?x=1')", 302, "http://b.example/there?x=1"),
        ("$q->redirect(-uri => 'http://b.example/', -status => '301 Moved Permanently')", 301, "http://b.example/"),
        ("$q->redirect(-uri => '/elsewhere', -status => 303)", 303, "/elsewhere"),
        ("'Location: http://b.example/plain', $CGI::CRLF x 2", 302, "http://b.example/plain"),
    ],
)
def test_redirects(perl, call, status, location):
    answer = perl(f"use CGI; my $q = CGI->new; print {call};").get("/cgi-bin/script.pl")
    assert (answer.status, answer.headers["Location"]) == (status, location)


def test_local_redirect(perl):
    server = perl("""
        use CGI;
        my $q = CGI->new;
        if ($q->path_info eq '/end') {
            print $q->header('text/plain'), $q->request_method, ' ', $q->query_string, "\\n";
        } else {
            print 'Location: ', $q->script_name, "/end?came=here\\n\\n";
        }
    """)
    answer = server.get(
        "/cgi-bin/script.pl/begin",
        method="POST",
        body=b"x=1",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert (answer.status, answer.body) == (200, b"GET came=here\n")


def test_what_a_script_knows_of_its_address(perl):
    server = perl("""
        use CGI;
        my $q = CGI->new;
        print $q->header('text/plain'), join "\\n", $q->self_url, $q->url, $q->url(-absolute => 1),
            $q->url(-path_info => 1), $q->script_name, $q->path_info, $q->virtual_host, $q->virtual_port,
            $q->protocol, $q->server_protocol, $q->remote_addr, $q->user_agent, $q->referer, $q->http('X-One'), '';
    """)
    headers = {"Host": "a.example:8080", "User-Agent": "Test/1", "Referer": "http://b.example/", "X-One": "1"}
    answer = server.get("/cgi-bin/script.pl/a%20b/c?d=e", headers=headers)
    base = "http://a.example:8080/cgi-bin/script.pl"
    assert answer.body.decode().splitlines() == [
        f"{base}/a%20b/c?d=e",
        base,
        "/cgi-bin/script.pl",
        f"{base}/a%20b/c",
        "/cgi-bin/script.pl",
        "/a b/c",
        "a.example",
        "8080",
        "http",
        "HTTP/1.1",
        "127.0.0.1",
        "Test/1",
        "http://b.example/",
        "1",
    ]


def test_statuses_and_binary_bodies(perl):
    server = perl("""
        use CGI;
        binmode STDOUT;
        print CGI->new->header(-status => '418 Short and stout', -type => 'application/octet-stream', -X_pot => 'tea');
        print map { chr } 0 .. 255;
    """)
    answer = server.get("/cgi-bin/script.pl")
    assert (answer.status, answer.reason) == (418, "Short and stout")
    assert answer.headers["X-pot"] == "tea"
    assert answer.body == bytes(range(256))


def test_nph(perl):
    server = perl(
        "use CGI qw(-nph); my $q = CGI->new; print $q->header('text/plain'), 'by itself';", name="nph-script.pl"
    )
    answer = server.exchange(b"GET /cgi-bin/nph-script.pl HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] 200 OK\r\n", answer)
    assert answer.lower().count(b"\r\ncontent-type: ") == 1
    assert answer.endswith(b"\r\n\r\nby itself")


def test_server_push(perl, tmp_path):
    """multipart/x-mixed-replace, the old way to stream: each part before the next is made."""
    gate = Gate(tmp_path / "gate")
    server = perl(f"""
        use CGI;
        $| = 1;
        my $q = CGI->new;
        print $q->multipart_init(-boundary => 'cut'), $q->multipart_start(-type => 'text/plain'), "one\\n",
            $q->multipart_end;
        open my $gate, '<', '{gate.path}' or die;
        <$gate>;
        print $q->multipart_start(-type => 'text/plain'), "two\\n", $q->multipart_final;
    """)
    with Stream(server.socket(), "/cgi-bin/script.pl") as stream:
        head = stream.until(b"\r\n\r\n").lower()
        assert b"content-type: multipart/x-mixed-replace;boundary=\"cut\"" in head
        first = stream.until(b"--cut")
        while b"one\n" not in first:
            first += stream.until(b"\n")
        gate.open()
        assert b"\r\n\r\ntwo\n\r\n--cut--" in stream.rest()
    gate.close()


# When it goes wrong.


def test_die_is_502_and_the_log_says_why(perl):
    server = perl("die 'the tea is cold';", "--debug")
    answer = server.get("/cgi-bin/script.pl")
    assert answer.status == 502
    id_ = answer.headers["X-Request-Id"]
    assert id_.encode() in answer.body
    assert b"the tea is cold" in answer.body  # --debug
    server.wait_for_log(rf"script \[{id_}\] script\.pl\[\d+\]: the tea is cold at .*script\.pl line 4\.")
    assert re.search(r"255|exit", server.wait_for_log(rf"error \[{id_}\] (.*)")[1])
    server.wait_for_access(rf'"GET /cgi-bin/script.pl HTTP/1.1" 502 .* id={id_} .* exit=255 outcome=failed')


def test_die_is_not_shown_without_debug(perl):
    answer = perl("die 'the tea is cold';").get("/cgi-bin/script.pl")
    assert answer.status == 502
    assert answer.headers["X-Request-Id"].encode() in answer.body
    assert b"tea" not in answer.body


def test_a_syntax_error_and_a_missing_module(perl):
    server = perl("print 'x' 'y';")
    answer = server.get("/cgi-bin/script.pl")
    assert answer.status == 502
    server.wait_for_log(r"script\.pl\[\d+\]: syntax error at .*script\.pl line 4, near")
    server = perl("use No::Such::Module::Anywhere;")
    assert server.get("/cgi-bin/script.pl").status == 502
    server.wait_for_log(r"Can't locate No/Such/Module/Anywhere\.pm in @INC")


def test_die_after_the_header_is_logged(perl):
    server = perl("""
        use CGI;
        $| = 1;
        print CGI->new->header('text/plain'), "begun\\n";
        die 'the tea is gone';
    """)
    server.exchange(b"GET /cgi-bin/script.pl HTTP/1.0\r\nHost: a.example\r\n\r\n")
    server.wait_for_log(r"script\.pl\[\d+\]: the tea is gone at .*script\.pl line 8\.")


def test_fatals_to_browser(perl):
    support.need_perl("CGI::Carp")
    server = perl("use CGI::Carp 'fatalsToBrowser'; die 'the <tea> is cold';")
    answer = server.get("/cgi-bin/script.pl")
    assert answer.status in (200, 500)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert b"<h1>Software error:</h1>" in answer.body
    assert b"the &lt;tea&gt; is cold" in answer.body
    server.wait_for_log(r"script\.pl\[\d+\]: .*the <tea> is cold")


def test_warnings_go_to_the_log_and_not_to_the_client(perl):
    server = perl("""
        use CGI;
        my $q = CGI->new;
        warn 'lukewarm';
        print $q->header('text/plain'), "fine\\n";
        warn 'cooler';
    """)
    answer = server.get("/cgi-bin/script.pl")
    assert (answer.status, answer.body) == (200, b"fine\n")
    server.wait_for_log(r"script\.pl\[\d+\]: lukewarm at")
    server.wait_for_log(r"script\.pl\[\d+\]: cooler at")


def test_a_script_ends_with_its_client(perl):
    server = perl("""
        use CGI;
        $| = 1;
        print CGI->new->header('text/plain'), "$$\\n";
        sleep;
    """)
    with Stream(server.socket(), "/cgi-bin/script.pl") as stream:
        stream.until(b"\r\n\r\n")
        ending = Ending(int(stream.until(b"\n")))
    ending.wait()
    server.wait_for_access(r" 499 .* outcome=client-gone")
