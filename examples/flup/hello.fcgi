#!/usr/bin/env python3
# A flup script as many have it: a WSGI application, and flup's server on the socket that it is started with.
#
#     pip install flup
#     python -m gateway --pool "/=python examples/flup/hello.fcgi" --children 2
#
# Nothing in here knows of the server: Apache's mod_fcgid or lighttpd starts the same file.
from html import escape
from urllib.parse import parse_qs

from flup.server.fcgi import WSGIServer


def application(environ, start_response):
    query = parse_qs(environ.get('QUERY_STRING', ''))
    if environ['REQUEST_METHOD'] == 'POST':
        length = int(environ.get('CONTENT_LENGTH') or 0)
        query = parse_qs(environ['wsgi.input'].read(length).decode('utf-8', 'replace'))
    name = escape(query.get('name', ['World'])[0])
    start_response('200 OK', [('Content-Type', 'text/html; charset=utf-8')])
    yield '<!DOCTYPE html>\n<html lang="en">\n<title>Hello</title>\n'.encode()
    yield '<p>Hello, {}!\n<form method="post"><input name="name"><button>Say</button></form>\n'.format(name).encode()
    yield '<p>You asked for {}.\n'.format(escape(environ.get('PATH_INFO', ''))).encode()


if __name__ == '__main__':
    WSGIServer(application).run()
