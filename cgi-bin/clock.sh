#!/bin/sh
# A clock by server-sent events: a response that never ends, one line a second.
#
#     http://127.0.0.1:8000/cgi-bin/clock.sh           the page
#     http://127.0.0.1:8000/cgi-bin/clock.sh/events    the stream: curl -N shows it
#
# Nothing needs to be set for streaming: what a program writes goes to the client at once. Only the program's
# own buffer can hold it back. A shell has none; in C call fflush(stdout), in Perl set $| = 1, in Python
# print(..., flush=True). When the client goes away, the server ends the program (SIGTERM).

case $PATH_INFO in
/events)
    printf 'Content-Type: text/event-stream\nCache-Control: no-store\n\n'
    while printf 'data: %s\n\n' "$(date)"
    do
        sleep 1
    done
    ;;
'')
    cat <<'PAGE'
Content-Type: text/html; charset=utf-8

<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>A clock</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { display: grid; height: 100vh; margin: 0; place-items: center; text-align: center }
  output { display: block; font-size: 2.5rem; font-variant-numeric: tabular-nums }
</style>
<main>
  <output id="time">…</output>
  <p>The server's clock, sent as it ticks.</p>
</main>
<script>
  new EventSource("clock.sh/events").onmessage = event => {
    document.getElementById("time").textContent = event.data
  }
</script>
</html>
PAGE
    ;;
*)
    printf 'Status: 404 Not Found\nContent-Type: text/plain\n\nThere is /events here and nothing else.\n'
    ;;
esac
