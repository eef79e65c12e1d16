#!/usr/bin/env perl
# Says hello with CGI::Fast: written like a program with CGI.pm, but one process answers many requests.
#
#     apt install libcgi-fast-perl          # or: cpan CGI::Fast
#     python -m gateway --pool /=examples/perl-fast/hello.fcgi --children 4
use strict;
use warnings;
use CGI::Fast;

binmode STDOUT;
my $answered = 0;

while (my $query = CGI::Fast->new) {
    # Parameters of a GET and of a POST alike.
    my $name = CGI::escapeHTML(scalar $query->param('name') // 'World');
    my $info = CGI::escapeHTML($query->path_info);
    my $visits = ($query->cookie('visits') // 0) =~ /^(\d{1,6})$/ ? $1 + 1 : 1;
    my $cookie = $query->cookie(-name => 'visits', -value => $visits, -httponly => 1, -samesite => 'Lax');
    $answered++;
    print $query->header(-type => 'text/html', -charset => 'utf-8', -cookie => $cookie);
    print <<"END";
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Hello from Perl</title>
<h1>Hello, $name!</h1>
<p>This is your visit number $visits. Process $$ has answered $answered requests. PATH_INFO is "$info".
<form method="post"><input name="name"> <button>Say</button></form>
</html>
END
}
