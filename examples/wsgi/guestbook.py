"""A guestbook: a small WSGI application with a form, which several processes run at once.

    python -m fcgi_pool --listen unix:/tmp/guestbook.sock --children 4 \
        --chdir "$PWD/examples/wsgi" --env GUESTBOOK=/tmp/guestbook.db --app guestbook:application
    python -m gateway --fastcgi /=unix:/tmp/guestbook.sock --connections 4

Each request may meet another process, so nothing is kept in variables: entries are in a file of SQLite, named by
GUESTBOOK.
"""

import contextlib
import html
import os
import sqlite3
from urllib.parse import parse_qs

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Guestbook</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
  body {{ margin: 2rem auto; max-width: 44rem; padding: 0 1rem }}
  li {{ overflow-wrap: anywhere }}
</style>
<h1>Guestbook</h1>
<form method="post" action="{here}">
  <p><label>Name: <input name="name" required maxlength="80"></label>
  <p><label>Words: <input name="words" required maxlength="400" size="50"></label>
  <p><button>Write</button>
</form>
<ul>
{entries}</ul>
<p>Answered by process {pid}.
</html>
"""
FORM_LIMIT = 16 * 1024  # bytes; the two fields need no more, even with every character escaped
SHOWN = 100  # entries, the latest first


def application(environ, start_response):
    """Show the entries and a form; take what the form sends, then send the browser back to the page."""
    method = environ["REQUEST_METHOD"]
    here = environ["SCRIPT_NAME"] + "/"
    if environ["PATH_INFO"] not in ("", "/"):
        return answer(start_response, "404 Not Found", "There is no such page.\n")
    if method in ("GET", "HEAD"):
        entries = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(words)}\n" for name, words in read())
        page = PAGE.format(here=html.escape(here), entries=entries, pid=os.getpid())
        return answer(start_response, "200 OK", page, ("Content-Type", "text/html; charset=utf-8"))
    if method != "POST":
        return answer(start_response, "405 Method Not Allowed", "Use the form.\n", ("Allow", "GET, HEAD, POST"))
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > FORM_LIMIT:
        return answer(start_response, "413 Content Too Large", "Fewer words, please.\n")
    form = parse_qs(environ["wsgi.input"].read(length).decode("utf-8", "replace"))
    name, words = form.get("name", [""])[0].strip()[:80], form.get("words", [""])[0].strip()[:400]
    if not name or not words:
        return answer(start_response, "400 Bad Request", "A name and some words, please.\n")
    write(name, words)
    # Whoever reloads the page then does not send the form again.
    return answer(start_response, "303 See Other", "", ("Location", here))


def answer(start_response, status, text, *headers):
    """Send a whole response; plain text unless `headers` say otherwise."""
    body = text.encode()
    kinds = [] if headers and headers[0][0] == "Content-Type" else [("Content-Type", "text/plain; charset=utf-8")]
    start_response(status, [*kinds, *headers, ("Content-Length", str(len(body)))])
    return [body]


def database():
    """Open the file, and make it if it is not there."""
    opened = sqlite3.connect(os.environ.get("GUESTBOOK", "guestbook.db"), timeout=10)
    opened.execute("CREATE TABLE IF NOT EXISTS entry (name TEXT NOT NULL, words TEXT NOT NULL)")
    return contextlib.closing(opened)


def read():
    """Return the latest entries."""
    with database() as entries:
        return entries.execute("SELECT name, words FROM entry ORDER BY rowid DESC LIMIT ?", (SHOWN,)).fetchall()


def write(name, words):
    """Add an entry."""
    with database() as entries, entries:
        entries.execute("INSERT INTO entry VALUES (?, ?)", (name, words))
