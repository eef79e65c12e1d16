"""CGI programs in Python and Perl without the start of their interpreter: a warm one forks a child for each request.

Some facts about what a warm interpreter is. It is the very binary that the script's first line names, with the flags
that stand there, started in the environment that is the same for every request, and stopped before it has run
anything: one file of ours, `bootstrap.py` or `bootstrap.pl`, which waits. Asked for a child it forks. The child waits
for a request of its own, and then is the CGI process: own pid, session, environment, working directory and standard
streams, and nothing that a request has brought is ever in the process it was forked from.

The child is the spawner's child and not the interpreter's (clone(2), CLONE_PARENT). So the spawner ends, reaps and
counts it as any other, and no death of the interpreter loses one.

What cannot be the same as in a fresh process is not done warm: the child then executes the script, keeps its pid, and
is that fresh process.
"""
