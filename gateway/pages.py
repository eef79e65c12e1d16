"""The pages the server writes itself: errors, what is mounted, and what is in a directory."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from gateway.http.message import Refused
from gateway.http.response import METHODS, REASONS, encode_head, encode_start

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:12vh auto 0;padding:0 1.5rem;color:#222;"
    "background:#fff}h1{font-size:1.5rem;font-weight:600;margin:0 0 .5rem}p,ul,pre{margin:.75rem 0}"
    "code,pre{font:14px/1.5 ui-monospace,monospace}pre{background:#f4f4f2;padding:.75rem 1rem;white-space:pre-wrap;"
    "overflow-wrap:anywhere}ul{padding-left:1.2rem}a{color:#0b57a4}.id{color:#666;font-size:.875rem}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}pre{background:#262626}"
    "a{color:#8ab8f0}.id{color:#999}}"
)


def _page(title: str, body: str) -> bytes:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    ).encode("utf-8", "backslashreplace")


def error_page(status: int, reason: bytes, request_id: str, words: str) -> bytes:
    """Return the page for an error. `words`, if any, explain it; the id leads to the explanation in the error log."""
    title = f"{status} {reason.decode()}".strip()
    body = f"<h1>{title}</h1>"
    if words:
        body += f"\n<pre>{escape(words)}</pre>"
    elif status >= 500:
        body += "\n<p>The reason is in the server's error log, under this id.</p>"
    if request_id:
        body += f'\n<p class="id">Request <code>{escape(request_id)}</code></p>'
    return _page(title, body)


def index_page(mounts: list[tuple[str, list[str]]], applications: list[str]) -> bytes:
    """Return the page that lists what is mounted: (prefix, names of programs) each, and prefixes of applications."""
    body = "<h1>The gateway is running</h1>"
    for prefix, names in mounts:
        body += f"\n<p>Programs below <code>{escape(prefix)}</code></p>\n<ul>"
        for name in names:
            href = quote(prefix + name, safe="/", errors="surrogateescape")
            body += f'\n<li><a href="{href}">{escape(name)}</a></li>'
        body += "\n</ul>" if names else "\n<li>none yet: put an executable file there</li></ul>"
    if applications:
        body += "\n<p>Applications</p>\n<ul>"
        body += "".join(f'\n<li><a href="{escape(prefix)}">{escape(prefix)}</a></li>' for prefix in applications)
        body += "\n</ul>"
    return _page("gateway", body)


def listing_page(path: str, names: list[tuple[str, str]], is_short: bool) -> bytes:
    """Return the page of a directory: `names` are (name, size in words), directories' with a slash at their end.

    `is_short`: there are more, which are not shown.
    """
    title = escape(path)
    body = f"<h1>{title}</h1>\n<ul>"
    if path != "/":
        body += '\n<li><a href="../">..</a></li>'
    for name, size in names:
        # Without the dot a colon in the name would make the rest of it a scheme.
        href = "./" + quote(name, safe="/", errors="surrogateescape")
        words = f' <span class="id">{size}</span>' if size else ""
        body += f'\n<li><a href="{href}">{escape(name)}</a>{words}</li>'
    body += "\n</ul>"
    if is_short:
        body += "\n<p>There are more, which are not listed.</p>"
    return _page(title, body)


def refusal(refused: Refused, words: str) -> tuple[bytes, bytes]:
    """Return head and page of the last response of a connection, which answers what is no request; for `words` see
    `error_page`."""
    page = error_page(refused.status, REASONS.get(refused.status, b""), "", words)
    fields = [(b"Content-Type", b"text/html; charset=utf-8")]
    if refused.status == 405:
        fields.append((b"Allow", METHODS.encode()))
    framing = b"Content-Length: %d\r\nConnection: close\r\n" % len(page)
    return encode_head(encode_start(refused.status, b"", fields), framing), page
