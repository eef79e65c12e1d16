"""A browser on a site of PHP pages with pictures, styles, forms, sessions and events, with TLS and without."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import zlib

import pytest

from tests import support
from tests.misbehaviour import program
from tests.pool_load import front

PICTURES = 30
INDEX = f"""<?php session_start(); header('Content-Type: text/html; charset=utf-8'); ?>
<!doctype html><link rel="stylesheet" href="style.css"><script src="script.js" defer></script><body><h1>Site</h1>
<?php for ($n = 0; $n < {PICTURES}; $n++) echo "<img src='pictures/$n.png'>", "<img src='picture.php?n=$n'>"; ?>
"""
PAGES = {
    "index.php": INDEX,
    "picture.php": "<?php header('Content-Type: image/png'); readfile('pictures/' . (int)$_GET['n'] . '.png');",
    "count.php": "<?php session_start(); echo $_SESSION['count'] = ($_SESSION['count'] ?? 0) + 1;",
    "upload.php": "<?php echo sha1_file($_FILES['file']['tmp_name']), ' ', $_POST['words'];",
    "moved.php": "<?php header('Location: count.php?moved', true, 303);",
    "report.php": "<?php error_log('REPORT ' . file_get_contents('php://input'));",
    "style.css": "h1 { width: 321px }",
}
# What a page sees of the server, sent to the server. Nothing in it waits for a time.
SCRIPT = """
const seen = {};
const text = async (url, options) => (await fetch(url, options)).text();
async function look() {
  await Promise.all([...document.images].map((image) => image.decode()));
  seen.pictures = [...document.images].filter((image) => image.naturalWidth === 7).length;
  seen.style = getComputedStyle(document.querySelector('h1')).width;
  seen.counts = [];
  for (let n = 0; n < 3; n++) seen.counts.push(await text('count.php'));
  const form = new FormData();
  form.append('file', new Blob([new Uint8Array(1000000).fill(65)]), 'näme.bin');
  form.append('words', 'grüße & more');
  seen.upload = await text('upload.php', {method: 'POST', body: form});
  const moved = await fetch('moved.php', {method: 'POST', body: 'x'});
  seen.moved = [moved.status, moved.redirected, await moved.text()];
  const part = await fetch('pictures/0.png', {headers: {Range: 'bytes=1-3'}, cache: 'no-store'});
  seen.part = [part.status, await part.text(), part.headers.get('Content-Range').replace(/.*\\//, '') > 3];
  seen.again = (await fetch('pictures/0.png', {cache: 'no-cache'})).status;
  seen.absent = (await fetch('absent.php')).status;
  seen.hello = await text('cgi-bin/hello?a=b%20c');
  seen.events = await new Promise((resolve, reject) => {
    const events = [], source = new EventSource('cgi-bin/events');
    source.onerror = reject;
    source.onmessage = (event) => {
      events.push(event.data);
      if (events.length === 3) { source.close(); resolve(events); }
    };
  });
  const leave = new AbortController();
  const endless = await fetch('cgi-bin/endless', {signal: leave.signal});
  await endless.body.getReader().read();
  leave.abort();
}
addEventListener('load', () => look().catch((error) => { seen.error = String(error.stack || error.type || error); })
  .then(() => fetch('report.php', {method: 'POST', body: JSON.stringify(seen)})));
"""


def picture(shade):
    """A PNG, 7 by 5."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([shade, 255 - shade, 128]) * 7 for _ in range(5))
    head = struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    (root / "pictures").mkdir(parents=True)
    for name, words in {**PAGES, "script.js": SCRIPT}.items():
        (root / name).write_text(words)
    for number in range(PICTURES):
        (root / "pictures" / f"{number}.png").write_bytes(picture(number))
    programs = tmp_path / "programs"
    program(programs / "hello", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello %s' \"$QUERY_STRING\"\n")
    program(programs / "events", "#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\n'\n"
            "for n in 1 2 3; do printf 'data: event %s\\n\\n' $n; done\nexec cat /dev/zero >/dev/null\n")  # fmt: skip
    program(programs / "endless", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec cat /dev/zero\n")
    return root, programs


@contextlib.contextmanager
def browser(url):
    """Chromium, showing a page to nobody; ended with all its processes and files."""
    # A short path: it has a socket there, too.
    profile = tempfile.mkdtemp(prefix="browser-")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--ignore-certificate-errors"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", url]
    environment = {**os.environ, "HOME": profile, "TMPDIR": profile}
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               env=environment, text=True)  # fmt: skip
    words = support.Watched()
    reading = words.follow(process.stderr)
    try:
        yield words
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reading.join(support.PATIENCE)
        support.wait_until(lambda: f"left: {found}" if (found := support.members(process.pid)) else "")
        shutil.rmtree(profile)


@pytest.mark.parametrize("is_secure", [False, True])
def test_a_browser_gets_all_of_a_site(site, certificate, is_secure):
    support.need("chromium", "php-cgi")
    root, programs = site
    options = ["--php", str(root), "--children", "3", "--cgi-dir", str(programs), "--compress"]
    options += ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])] if is_secure else []
    with front(*options) as server:
        address = f"{'https' if is_secure else 'http'}://127.0.0.1:{server.port}/"
        with browser(address):
            report = server.wait_for_log(r"REPORT (\{.*\})", timeout=120)
            server.wait_for_access(r'"GET /cgi-bin/endless HTTP/1.1" 499 ')
            server.wait_for_access(r'"GET /cgi-bin/events HTTP/1.1" 499 ')
        seen = json.loads(report[1].replace('\\"', '"').replace("\\\\", "\\"))
        assert "error" not in seen, seen
        body = hashlib.sha1(b"A" * 1_000_000).hexdigest()
        assert seen == {
            "pictures": 2 * PICTURES,
            "style": "321px",
            "counts": ["1", "2", "3"],
            "upload": f"{body} grüße & more",
            "moved": [200, True, "4"],
            "part": [206, "PNG", True],
            "again": 200,
            "absent": 404,
            "hello": "hello a=b%20c",
            "events": ["event 1", "event 2", "event 3"],
        }
        # What it had was fresh, and it was told so. It keeps nothing of a server whose certificate nobody vouches for.
        assert is_secure or re.search(r'"GET /pictures/0.png HTTP/1.1" 304 ', server.accesses.text)
        assert not re.search(r'" 5\d\d ', server.accesses.text), server.accesses.text
