"""The Python worker of a pool: serves a WSGI application on the listening socket at descriptor 0.

It runs in the application's own installation, Python 3.9 or later, where nothing of ours is installed: it is started by
its path, and imports the standard library, `fcgi_pool.protocol` and `fcgi_pool.scoreboard` alone.
"""
