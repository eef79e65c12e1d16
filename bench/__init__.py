"""Benchmarks against the servers that people run CGI programs with today; see README.rst beside this file."""
