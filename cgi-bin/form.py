#!/usr/bin/env python3
"""A form with a file upload, for Python 3.8 and later, without the cgi module that Python 3.13 removed.

http://127.0.0.1:8000/cgi-bin/form.py shows the form; sent, it answers with name, size and SHA-256 of each
file. Nothing is kept, and a file of any size needs a few KiB of memory: it is hashed as it is read.
"""

import hashlib
import html
import os
import sys
from email.message import Message
from email.parser import HeaderParser

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Upload</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
  body {{ margin: 2rem auto; max-width: 44rem; padding: 0 1rem }}
  dt {{ font-weight: bold }}
  dd {{ margin: 0 0 .5rem; overflow-wrap: anywhere }}
</style>
<h1>Upload</h1>
{content}
</html>
"""

FORM = """\
<form method="post" enctype="multipart/form-data">
  <p><label>A remark: <input name="remark"></label>
  <p><label>Files: <input name="file" type="file" multiple></label>
  <p><button>Send</button>
</form>
"""

SHOWN = 1000  # bytes of an ordinary field that are shown again
HEADERS = 16 * 1024  # bytes that the header of one part may have: a name, a type, nothing long


class BadForm(Exception):
    """The request body is not the form that it says it is."""


def data_of_part(body, delimiter):
    """Yield the bytes of one part of multipart/form-data; read its closing delimiter too.

    The line end before a delimiter belongs to the delimiter (RFC 2046, section 5.1.1), so the end of each line
    is held back until the next one is seen. Returns whether another part follows.
    """
    held = b""
    at_line_start = True
    while True:
        line = body.readline(64 * 1024)  # a binary file may have no line ends at all
        if not line:
            raise BadForm("the body ends in the middle of a part")
        if at_line_start and line.startswith(delimiter):
            rest = line[len(delimiter):].rstrip()
            if rest in (b"", b"--"):
                return rest == b""
        data = held + line
        held = b"\r\n" if data.endswith(b"\r\n") else b"\r" if data.endswith(b"\r") else b""
        at_line_start = held == b"\r\n"
        yield data[: len(data) - len(held)]


def header_of_part(body):
    """Read the header of a part, as an email message without a body."""
    lines = []
    size = 0
    while True:
        line = body.readline(HEADERS)
        size += len(line)
        if not line or size > HEADERS:
            raise BadForm("the header of a part does not end")
        if not line.strip():
            return HeaderParser().parsestr("".join(lines))
        lines.append(line.decode("utf-8", "replace"))


def parts(body, boundary):
    """Yield (name, file name or None, type, size, SHA-256, first bytes) for each part of a form."""
    delimiter = b"--" + boundary.encode("ascii", "replace")
    for _ in data_of_part(body, delimiter):  # what stands before the first delimiter says nothing
        pass
    more = True
    while more:
        header = header_of_part(body)
        name = header.get_param("name", header="content-disposition")
        filename = header.get_param("filename", header="content-disposition")
        digest = hashlib.sha256()
        size = 0
        beginning = b""
        data = data_of_part(body, delimiter)
        while True:
            try:
                piece = next(data)
            except StopIteration as end:
                more = end.value
                break
            digest.update(piece)
            size += len(piece)
            beginning += piece[: SHOWN - len(beginning)]
        yield name, filename, header.get_content_type(), size, digest.hexdigest(), beginning


def described(body, boundary):
    """Describe each field of the form in HTML. Everything that comes from outside is escaped."""
    lines = ["<dl>"]
    for name, filename, kind, size, digest, beginning in parts(body, boundary):
        lines.append(f"<dt>{html.escape(str(name))}")
        if filename is None:
            lines.append(f"<dd>{html.escape(beginning.decode('utf-8', 'replace'))}")
        elif filename or size:  # a file input that was left empty comes with neither
            lines.append(f"<dd>{html.escape(str(filename))} ({html.escape(kind)})")
            lines.append(f"<dd>{size} bytes")
            lines.append(f"<dd><code>{digest}</code>")
    lines.append("</dl>")
    return "\n".join(lines)


def respond(content, status="200 OK"):
    """Write a whole CGI response: header, empty line, page; as bytes, whatever the locale is."""
    page = PAGE.format(content=content).encode("utf-8", "replace")
    header = f"Status: {status}\nContent-Type: text/html; charset=utf-8\nContent-Length: {len(page)}\n\n"
    sys.stdout.buffer.write(header.encode("ascii") + page)


def main():
    if os.environ.get("REQUEST_METHOD") != "POST":
        respond(FORM)
        return
    request = Message()
    request["Content-Type"] = os.environ.get("CONTENT_TYPE", "")
    boundary = request.get_boundary()
    if request.get_content_type() != "multipart/form-data" or not boundary:
        respond("<p>Send multipart/form-data.", "415 Unsupported Media Type")
        return
    try:
        respond(described(sys.stdin.buffer, boundary))
    except BadForm as why:
        respond(f"<p>Not a good form: {html.escape(str(why))}.", "400 Bad Request")


if __name__ == "__main__":
    main()
