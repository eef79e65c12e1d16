"""What all servers serve: one directory with a page and the same programs."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Children

BENCH = Path(__file__).parent
REPOSITORY = BENCH.parent

PROGRAMS = {"c": "compiled C", "sh": "/bin/sh", "python": "python3 print"}


@dataclass(frozen=True)
class Site:
    """A temporary directory: what is served, and a place for the logs and sockets of each server."""

    root: Path

    @property
    def documents(self) -> Path:
        return self.root / "documents"

    @property
    def programs(self) -> Path:
        return self.documents / "cgi-bin"

    def work(self, name: str) -> Path:
        """The directory of one server."""
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path


def program_path(program: str) -> str:
    return f"/cgi-bin/hello-{program}"


def build(root: Path, children: Children) -> Site:
    """Compile and install the programs, readable for servers that give up root."""
    site = Site(root)
    root.chmod(0o755)
    site.programs.mkdir(parents=True)
    (site.documents / "index.html").write_text("<!DOCTYPE html><title>hello</title><p>hello\n")
    source = BENCH / "programs"
    compiler = shutil.which("cc") or "cc"
    compile_it = [compiler, "-O2", "-o", str(site.programs / "hello-c"), str(source / "hello.c")]
    children.run("cc", compile_it, root / "cc.log", deadline=60)
    shutil.copy(source / "hello.sh", site.programs / "hello-sh")
    # Without /usr/bin/env, which is one more exec, and without a version manager's shim, which is a shell script.
    python = Path("/usr/bin/python3")
    interpreter = python if python.exists() else Path(os.path.realpath(sys.executable))
    text = (source / "hello.py").read_text().splitlines(keepends=True)
    (site.programs / "hello-python").write_text(f"#!{interpreter}\n" + "".join(text[1:]))
    for program in PROGRAMS:
        (site.programs / f"hello-{program}").chmod(0o755)
    return site
