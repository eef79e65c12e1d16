#!/bin/sh
# What a CGI program is told of a request: its environment, as a page.
#
#     http://127.0.0.1:8000/cgi-bin/environment.sh/any/path?any=query
#
# A demonstration and a tool to find faults with; take it away from a server that strangers reach, since it
# names directories of the machine. What a program should not show even to the visitor himself it hides:
# his cookies and credentials (a foreign script in his browser could read them here), and every variable
# that CGI does not know, because the administrator may have put a password there with --env.

# The header: fields, then an empty line. Plain "\n" is enough in CGI.
cat <<'HEAD'
Content-Type: text/html; charset=utf-8
Cache-Control: no-store

<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>The environment of this request</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
  td, th { border-bottom: 1px solid #8884; padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
  td { overflow-wrap: anywhere }
  th { font-weight: normal; white-space: nowrap }
  i { opacity: .6 }
</style>
<h1>The environment of this request</h1>
<table>
HEAD

# awk and not env, since a value may have several lines. Everything that comes from outside is escaped before
# it stands in HTML.
awk '
    function escape(text) {
        gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); gsub(/>/, "\\&gt;", text)
        gsub(/\n/, "<br>", text)
        return text
    }
    BEGIN {
        told = "^(AUTH_TYPE|CONTENT_(LENGTH|TYPE)|DOCUMENT_ROOT|GATEWAY_INTERFACE|HTTPS|HTTP_.*|PATH|PATH_INFO|" \
            "PATH_TRANSLATED|PWD|QUERY_STRING|REDIRECT_STATUS|REMOTE_.*|REQUEST_.*|SCRIPT_.*|SERVER_.*)$"
        for (name in ENVIRON) {
            if (name ~ /^HTTP_(COOKIE|AUTHORIZATION|PROXY_AUTHORIZATION)$/)
                value = "<i>hidden</i>"
            else if (name !~ told)
                value = "<i>hidden: not a variable of CGI</i>"
            else
                value = escape(ENVIRON[name])
            print "<tr><th>" escape(name) "<td>" value
        }
    }' | LC_ALL=C sort

printf '</table>\n</html>\n'
