"""A script in Perl is the same warm and cold: what it finds, what it says, how it ends."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import pytest

from tests import support
from tests.real_client import multipart
from tests.warm_support import PERL, pair_of, see

PROBE = (Path(__file__).parent / "warm" / "probe.pl").read_text()
BEGIN = "print qq{Content-Type: text/plain\\n\\nbegun\\n};\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    support.need_file(PERL)
    with pair_of(tmp_path_factory.mktemp("cgi"), tmp_path_factory.mktemp("spool"), "--env", "MINE=1") as pair:
        yield pair


def probe_text(seen):
    assert seen.status == 200, seen
    # The numbers of string evals go on from those of the interpreter's own.
    return re.sub(r"((?:REMOTE|SERVER)_PORT=)\d+|(?<=\(eval )\d+", r"\1N", seen.text).split("\n")


def compare(pair, path):
    more = {"method": "POST", "body": "stdin é\n".encode(), "headers": {"X-Odd": "a=b"}}
    cold = see(pair.cold, f"{path}/info?q=1", **more)
    for _ in range(4):
        warm = see(pair.warm, f"{path}/info?q=1", **more)
        found, expected = probe_text(warm), probe_text(cold)
        lines = [line for line in found if line not in expected], [line for line in expected if line not in found]
        assert lines == ([], [])
        assert (warm.errors, warm.end) == (cold.errors, cold.end)


@pytest.mark.parametrize(
    "shebang",
    [PERL, "/usr/bin/env perl", *(f"{PERL} {flags}" for flags in ("-w", "-W", "-X", "-I/nowhere", "-T", "-wT"))],
)
def test_a_script_finds_the_same(pair, shebang):
    if "T" in shebang:
        # What runs other programs, and what is found beside it, is refused there; but that it is, is compared below.
        text = re.sub(r"(?m)^note\((?:shell|perl|system|do) .*$", "", PROBE)
    else:
        text = PROBE
    compare(pair, pair.write(f"#!{shebang}\n{text}", "probe.pl"))


@pytest.mark.parametrize("name", ["probe", "probe with spaces.pl", "a-name-longer-than-a-process-may-have.cgi"])
def test_by_any_name(pair, name):
    compare(pair, pair.write(f"#!{PERL}\n{PROBE}", name).replace(" ", "%20"))


@pytest.mark.parametrize("name", ['a"quote.pl', "a\nline.pl"])
def test_a_name_that_cannot_stand_in_a_line_directive(pair, serve, name):
    text = f"#!{PERL}\n{BEGIN}print unpack('H*', __FILE__), __LINE__;\n"
    path = urllib.parse.quote(pair.write(text, name))
    server = serve("--warm", cgi_dir=pair.directory)
    for _ in range(4):
        assert see(server, path) == see(pair.cold, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "exit 0;",
        "exit 3;",
        "exit 256;",
        "exit -1;",
        "exit 'x';",
        "die qq{died\\n};",
        "die 'with a line';",
        "die;",
        "die { code => 3 };",
        "die bless [], 'Class';",
        "package E { use overload '\"\"' => sub { 'overloaded' } } die bless {}, 'E';",
        "$! = 5; die qq{errno\\n};",
        "$! = 0; $? = 512; die qq{status\\n};",
        "sub f { die 'nested' } sub g { f() } g();",
        "eval { die 'caught' }; print $@;",
        "$SIG{__DIE__} = sub { print 'handler: ', @_ }; die 'x';",
        "$SIG{__WARN__} = sub { print 'handler: ', @_ }; warn 'x';",
        "warn 'a warning';",
        "warn qq{no line\\n};",
        "use warnings; my $x; print qq{<$x>};",
        "use warnings; print 1 + 'a';",
        "use strict; $undeclared = 1;",
        "my $x = ;",
        "}",
        "print 'no end",
        "use No::Such::Module;",
        "require 'no-such-file.pl';",
        "no_such_function();",
        "No::Such->new;",
        "1 / 0;\n",
        "my $x = 0; 1 / $x;",
        "END { print qq{end\\n} }",
        "END { $? = 9 }",
        "END { print qq{end $?\\n} } exit 4;",
        "END { print qq{end $?\\n} } die 'dead';",
        "END { die 'in END' }",
        "END { print 1 } END { print 2 }",
        "BEGIN { print qq{X: y\\n} } BEGIN { exit 5 }",
        "BEGIN { die 'in BEGIN' }",
        "CHECK { print STDERR qq{check\\n} } INIT { print STDERR qq{init\\n} } UNITCHECK { print STDERR qq{unit\\n} }",
        "print ${^GLOBAL_PHASE}; END { print ${^GLOBAL_PHASE} }",
        "package C { sub new { bless {} } sub DESTROY { print qq{destroyed ${^GLOBAL_PHASE}\\n} } } my $c = C->new;",
        "package C { sub DESTROY { print qq{destroyed ${^GLOBAL_PHASE}\\n} } } our $c = bless {}, 'C';",
        "kill KILL => $$; sleep 9;",
        "kill TERM => $$; sleep 9;",
        "kill SEGV => $$; sleep 9;",
        "kill INT => $$; sleep 9;",
        "$SIG{TERM} = sub { print qq{caught\\n}; exit 6 }; kill TERM => $$; sleep 9;",
        "$SIG{ALRM} = sub { die qq{alarm\\n} }; alarm 1; select undef, undef, undef, 9;",
        "exec '/bin/sh', '-c', 'echo from a shell; exit 6';",
        "exec '/no/such/program' or print qq{$!\\n};",
        "print `echo below`;",
        "system 'echo by system';",
        "use POSIX; POSIX::_exit(9);",
        "close STDOUT; exit 2;",
        "close STDERR; die 'unheard';",
        "close STDIN; print 'no stdin';",
        "open STDOUT, '>', '/dev/full' or die; print 'x' x 100000; close STDOUT or die qq{full: $!\\n};",
        "open STDOUT, '>', '/dev/full' or die; print 'x';",
        "open my $f, '>', 'written' or die $!; print $f 'kept'; print -s 'written';",
        "binmode STDOUT, ':utf8'; print chr 233;",
        "print chr 233;",
        "print chr 300;",
        "use utf8; binmode STDOUT, ':encoding(UTF-8)'; print 'é', length 'é';",
        "use open qw(:std :utf8); print chr 233;",
        "$| = 1; print 'one'; system 'echo two'; print 'three';",
        "print 'unflushed';",
        "print 'no line end'",
        "printf '%s %s', __FILE__, __LINE__;",
        "# line 100 \"another name\"\nwarn 'here';",
        "use lib '/nowhere'; print $INC[0];",
        "use FindBin; print $FindBin::Bin eq $ENV{DOCUMENT_ROOT} ? 1 : 0, $FindBin::Script;",
        "use File::Basename; print basename $0;",
        "use Cwd; print getcwd eq readlink '/proc/self/cwd' ? 1 : 0;",
        "use Time::HiRes; print Time::HiRes::time() > 1 ? 1 : 0;",
        "use threads; print threads->create(sub { 'from a thread' })->join;",
        "format STDOUT =\n@<<< @>>>\n'ab', 'cd'\n.\nwrite;\n",
        "print <<\"X\", <<'Y';\n$0\nX\n\\$0\nY\n",
        "my $p = fork // die; exit 3 if !$p; waitpid $p, 0; print while <DATA>;\n__END__\nnot lost\n",
        "seek DATA, 0, 0; print scalar <DATA>, scalar <DATA>;\n__END__\n",
        "print while <DATA>;\n__END__\nafter the end\n",
        "local $/; print <DATA>; seek DATA, 0, 0; print length(<DATA>) > 0 ? 1 : 0;\n__DATA__\ndata\n",
        "=pod\n\ndocumentation\n\n=cut\n\nprint 'after pod';",
        "our $VERSION = '1.2'; print main->VERSION;",
        "sub AUTOLOAD { our $AUTOLOAD; print qq{auto $AUTOLOAD\\n} unless $AUTOLOAD =~ /DESTROY/ } anything();",
        "use constant X => 5; print X;",
        "print sprintf('%vd', $^V) =~ /^5/ ? 1 : 0;",
        "my %h = map { $_ => 1 } 1 .. 20; print scalar keys %h;",
        "print 'a' =~ /a/ ? $& : '', $`, $';",
        "use Getopt::Long; GetOptions('x' => \\my $x); print $x // 'undef';",
        "use Data::Dumper; $Data::Dumper::Sortkeys = 1; print Dumper({ a => [1, 2] });",
        "use Storable 'dclone'; print dclone([1, 2])->[1];",
        "use Sys::Hostname; print hostname ne '' ? 1 : 0;",
        "use JSON::PP; print JSON::PP->new->canonical->encode({ b => 1, a => 2 });",
        "use MIME::Base64; print encode_base64 'x';",
        "use Digest::MD5 'md5_hex'; print md5_hex 'x';",
        "use CGI::Carp 'fatalsToBrowser'; die 'to the browser';",
        "use CGI; print CGI->new->param('a') // 'undef';",
        "chdir '/'; print readlink '/proc/self/cwd';",
        "print \"\\r\\nlines with CR\\r\\n\";\r\nprint 1;\r\n",
    ],
)
@pytest.mark.parametrize("shebang", [PERL])
def test_what_it_does_and_how_it_ends(pair, text, shebang):
    seen = pair.same(pair.write(f"#!{shebang}\n{BEGIN}{text}\n", "ends.pl"))
    assert not any("Gateway::Warm" in line for line in seen.errors)


@pytest.mark.parametrize("text", [
    "system qq{echo $ENV{QUERY_STRING}};", "$ENV{PATH} = '/bin'; system 'echo clean';", "print `echo x`;",
    "open my $f, '>', qq{x-$ENV{QUERY_STRING}} or die $!;", "my $line = <STDIN>; unlink $line;", "print qq{$0\\n};",
    "use Scalar::Util 'tainted'; print map { tainted($_) ? 1 : 0 } $0, $^X, $ENV{PATH}, $ENV{QUERY_STRING}, @INC;",
    "use Scalar::Util 'tainted'; print tainted(<STDIN>) ? 1 : 0;", "require './beside.pl';",
    "kill 0, $ENV{QUERY_STRING};",
])  # fmt: skip
def test_what_taint_mode_refuses(pair, text):
    path = pair.write(f"#!{PERL} -T\n{BEGIN}{text}\n", "taint.pl")
    pair.same(f"{path}?1", method="POST", body=b"line\n")


@pytest.mark.parametrize("text", ["", "\n\n", "print qq{X: y\\n\\n}", "#!perl\nprint qq{X: y\\n\\n};", "exit 3",
    "print qq{X: y\\n\\n};\n\0print 1;\n", "print qq{X: y\\n\\n\xe9};\n", "die", "{{{", "use v9.9;"])  # fmt: skip
def test_scripts_of_all_kinds(pair, text):
    pair.same(pair.write(f"#!{PERL}\n{text}".encode("latin-1"), "kind.pl"))


CGI_PM = """
use strict; use warnings;
use CGI;
my $q = CGI->new;
print $q->header(-type => 'text/html', -cookie => $q->cookie(-name => 'c', -value => [1, 2])), $q->start_html('t');
print map { "$_=" . join('|', $q->multi_param($_)) . "\\n" } sort $q->multi_param;
if (my $file = $q->upload('file')) { local $/; my $text = <$file>; print length $text, ' ', $q->param('file'); }
print $q->url(-path => 1), $q->self_url, $q->request_method, $q->remote_host, $q->path_info, $q->cookie('x') // '';
print $q->start_form, $q->textfield('name'), $q->submit, $q->end_form, $q->end_html;
"""


def test_cgi_pm(pair):
    support.need_perl("CGI")
    path = pair.write(f"#!{PERL}\n{CGI_PM}", "form.pl")
    headers = {"Cookie": "x=cookie"}
    seen = pair.same(f"{path}/info?a=1;b=%C3%A9&a=2", headers=headers)
    assert "a=1|2" in seen.text
    form = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
    assert "name=Ada & Co" in pair.same(path, method="POST", body=b"name=Ada+%26+Co&x=1", headers=form).text
    kind, body = multipart(("remark", None, b"1 < 2"), ("file", "a.bin", bytes(range(256)) * 1000))
    upload = pair.same(path, method="POST", body=body, headers={**headers, "Content-Type": kind})
    assert "256000 a.bin" in upload.text
