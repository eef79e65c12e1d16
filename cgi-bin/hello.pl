#!/usr/bin/perl -T
# Says hello and counts your visits: parameters, a form and a cookie in plain Perl, without CGI.pm.
#
#     http://127.0.0.1:8000/cgi-bin/hello.pl?name=World
#
# -T (taint mode) makes Perl refuse to use what came from outside in a command or a file name.
use strict;
use warnings;

# Parameters come in the query (GET) or on standard input (POST), written alike: name=World&colour=green
sub parameters {
    my $text = $ENV{QUERY_STRING} // '';
    if (($ENV{REQUEST_METHOD} // 'GET') eq 'POST'
        && ($ENV{CONTENT_TYPE} // '') =~ m{^application/x-www-form-urlencoded\b}i) {
        # Read CONTENT_LENGTH bytes, and no more than a form of this size can need.
        my $length = $ENV{CONTENT_LENGTH} // 0;
        $length = 10_000 if $length > 10_000;
        read STDIN, $text, $length;
    }
    my %value;
    for my $pair (split /&/, $text) {
        my ($name, $value) = split /=/, $pair, 2;
        next unless defined $name;
        for ($name, $value = $value // '') {
            tr/+/ /;
            s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
        }
        $value{$name} = $value;
    }
    return %value;
}

# Everything that comes from outside is escaped before it stands in HTML.
sub escape {
    my ($text) = @_;
    my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;');
    $text =~ s/([&<>"])/$entity{$1}/g;
    return $text;
}

my %parameter = parameters();
my $name = $parameter{name} // '';
$name = 'World' if $name eq '';
$name = escape($name);

# A cookie comes back as the visitor likes, so only what a number looks like is believed.
my ($visits) = ($ENV{HTTP_COOKIE} // '') =~ /(?:^|;\s*)visits=(\d{1,6})(?:;|$)/;
$visits = ($visits // 0) + 1;

print <<"PAGE";
Content-Type: text/html; charset=utf-8
Set-Cookie: visits=$visits; HttpOnly; SameSite=Lax

<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Hello</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { margin: 2rem auto; max-width: 40rem; padding: 0 1rem }
</style>
<h1>Hello, $name!</h1>
<p>This is your visit number $visits.
<form method="post">
  <label>Your name: <input name="name" value="$name"></label>
  <button>Greet</button>
</form>
</html>
PAGE
