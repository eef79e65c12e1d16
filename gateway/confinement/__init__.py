"""Least privilege for CGI programs: what they may do (`model`), who keeps them to it (`enter`, `landlock`, `cgroup`),
and what of it a program has met with (`words`).

One process starts the programs of one confinement, and gives up what they may not have before it starts the first. So
every program and warm interpreter has it from its parent, and nothing is done for it at a request.
"""
