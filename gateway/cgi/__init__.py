"""CGI/1.1 (RFC 3875): variables, the judge of a program's output, the starting of programs."""
