"""WSGI applications that the runtime is tested with, good ones and bad ones; a copy is started elsewhere."""

import json
import os
import subprocess
import sys
import threading
from wsgiref.validate import validator

PLAIN = [("Content-Type", "text/plain")]


def hello(environ, start_response):
    start_response("200 OK", PLAIN)
    return [b"hello, ", b"world\n"]


def gate():
    with open("waits", "a") as mark:
        mark.write("x")
    with open("gate") as waiting:
        waiting.read()


@validator
def valid(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    environ["wsgi.errors"].write("")
    environ["wsgi.errors"].flush()
    start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


@validator
def valid_generator(environ, start_response):
    start_response("200 OK", PLAIN)
    yield from environ["wsgi.input"]


def show(environ, start_response):
    start_response("200 OK", PLAIN)
    values = {name: value for name, value in environ.items() if isinstance(value, (str, bool, tuple))}
    return [json.dumps(values).encode()]


def process(environ, start_response):
    start_response("200 OK", PLAIN)
    import connection
    import start
    import worker
    import wsgi

    left = [name for name in os.environ if name.startswith("FCGI_POOL")]
    child = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=False).stdout
    found = {
        "path": sys.path,
        "directory": os.getcwd(),
        "left": left,
        "stdin": os.readlink("/proc/self/fd/0"),
        "child": child,
        "ours": [m.__file__ for m in (worker, wsgi, connection, start)],
        "pid": os.getpid(),
    }
    return [json.dumps(found).encode()]


def input_methods(environ, start_response):
    stream = environ["wsgi.input"]
    found = [
        stream.read(3),
        stream.readline(),
        stream.readline(4),
        stream.readline(),
        stream.read(0),
        *stream.readlines(6),
        next(iter(stream)),
        stream.read(5),
        stream.read(),
        stream.read(),
        stream.readline(),
        stream.read(9),
    ]
    start_response("200 OK", PLAIN)
    return [b"|".join(found)]


def digest(environ, start_response):
    import hashlib

    found = hashlib.sha256()
    while part := environ["wsgi.input"].read(100_000):
        found.update(part)
    start_response("200 OK", PLAIN)
    return [found.hexdigest().encode()]


def streaming(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"one\n"
    yield b""
    gate()
    yield b"two\n"


def waiting(environ, start_response):
    gate()
    return hello(environ, start_response)


def named(environ, start_response):
    """Tell the worker; wait at the FIFO that the query names."""
    if environ["QUERY_STRING"]:
        with open(environ["QUERY_STRING"]) as fifo:
            fifo.read()
    start_response("200 OK", PLAIN)
    return [b"%d" % os.getpid()]


def writer(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"written\n")
    gate()
    return [b"returned\n"]


class Endless:
    def __init__(self, environ, start_response):
        start_response("200 OK", PLAIN)
        self.block = bytes(int(environ.get("QUERY_STRING")))

    def __iter__(self):
        while True:
            yield self.block

    def close(self):
        with open("closed", "w") as file:
            file.write("closed")


def reads_all(environ, start_response):
    try:
        environ["wsgi.input"].read()
    except ConnectionError as error:
        with open("closed", "w") as file:
            file.write(str(error))
        raise


class LateClose:
    def __init__(self, environ, start_response):
        self.errors = environ["wsgi.errors"]
        start_response("200 OK", [*PLAIN, ("Content-Length", "4")])

    def __iter__(self):
        return iter([b"body"])

    def close(self):
        gate()
        self.errors.write("words after the end\n")
        raise ValueError("in close")


def logs(environ, start_response):
    environ["wsgi.errors"].writelines(["first \u00e9\n", "second \udc80\n"])
    environ["wsgi.errors"].flush()
    gate()
    thread = threading.Thread(target=environ["wsgi.errors"].write, args=["from a thread\n"])
    thread.start()
    thread.join()
    environ["wsgi.errors"].write("x" * 9000)
    print("third", file=environ["wsgi.errors"])
    start_response("200 OK", PLAIN)
    return [b"logged"]


def file(environ, start_response):
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](open("large", "rb"), 8192)


def length(environ, start_response):
    promised, *blocks = environ["QUERY_STRING"].split(",")
    start_response(environ["HTTP_STATUS"], [("Content-Length", promised)] if promised else [])
    blocks = [block.encode() for block in blocks]
    return blocks if environ["HTTP_KIND"] == "list" else iter(blocks)


def fails(environ, start_response):
    raise ValueError("on purpose: caf\u00e9")


def fails_late(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"begun"
    raise ValueError("on purpose")


def exits(environ, start_response):
    sys.exit("no more")


def recovers(environ, start_response):
    start_response("200 OK", PLAIN)
    try:
        raise ValueError("handled")
    except ValueError:
        start_response("503 Not Now", PLAIN, sys.exc_info())
    return [b"recovered"]


def recovers_late(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"begun")
    try:
        raise ValueError("too late")
    except ValueError:
        start_response("503 Not Now", PLAIN, sys.exc_info())
    return [b"never"]


def misuse(environ, start_response):
    kind = environ["QUERY_STRING"]
    if kind == "no start":
        return [b"x"]
    if kind == "text":
        start_response("200 OK", PLAIN)
        return ["text"]
    if kind == "number":
        start_response("200 OK", PLAIN)
        return iter([1])
    if kind == "none":
        start_response("200 OK", PLAIN)
        return None
    if kind == "twice":
        start_response("200 OK", PLAIN)
    status, headers = {
        "status": ("OK", PLAIN),
        "bytes": (b"200 OK", PLAIN),
        "split": ("200 OK\r\nX: y", PLAIN),
        "header": ("200 OK", [("X", "a\r\nB: c")]),
        "name": ("200 OK", [("X y", "a")]),
        "int": ("200 OK", [("X", 1)]),
        "unicode": ("200 OK", [("X", "\u20ac")]),
        "length": ("200 OK", [("Content-Length", "-1")]),
        "two lines": ("200 OK", [("A", "b\r\nX: y\r\nZ")]),
    }.get(kind, ("200 OK", PLAIN))
    start_response(status, headers)
    return [b"x"]


class Namespace:
    inner = staticmethod(hello)


application = hello
not_callable = 1
