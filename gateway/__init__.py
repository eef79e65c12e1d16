"""The web server for programs: an HTTP front that runs CGI programs."""

__version__ = "0.1.0"
