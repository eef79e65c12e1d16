#!/bin/sh
# The three ways in which a CGI program sends a request elsewhere (RFC 3875, section 6.2).
#
#     /cgi-bin/redirect.sh/client    302: the client is told another address and asks again
#     /cgi-bin/redirect.sh/see-other 303: the same with a status of the program's choice
#     /cgi-bin/redirect.sh/local     the server answers with another page; the client notices nothing
#
# The target is never taken from the request: a program that redirects to wherever its query says lends its
# good name to whoever makes up such links.

target=${SCRIPT_NAME%/*}/environment.sh

case $PATH_INFO in
/client)
    # An absolute address alone: the server makes a 302 of it.
    printf 'Location: %s://%s%s\n\n' "$REQUEST_SCHEME" "${HTTP_HOST:-$SERVER_NAME:$SERVER_PORT}" "$target"
    ;;
/see-other)
    # With a Status it is sent as it stands. 303 is the one to use after a form was posted.
    printf 'Status: 303 See Other\nLocation: %s\n\n' "$target"
    ;;
/local)
    # A path alone: the server runs that path as if it had been asked for, with GET.
    printf 'Location: %s?from=redirect\n\n' "$target"
    ;;
*)
    cat <<PAGE
Content-Type: text/html; charset=utf-8

<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Redirects</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { margin: 2rem auto; max-width: 40rem; padding: 0 1rem }
</style>
<h1>Redirects</h1>
<ul>
  <li><a href="$SCRIPT_NAME/client">client redirect</a>: watch the address bar
  <li><a href="$SCRIPT_NAME/see-other">client redirect with the status 303</a>
  <li><a href="$SCRIPT_NAME/local">local redirect</a>: the address stays
</ul>
</html>
PAGE
    ;;
esac
