"""git itself, against the server with ``examples/git``: clone, fetch, push, of all sizes, in all its ways."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from tests import support

PROGRAMS = support.ROOT / "examples/git/cgi-bin"
MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("git_is_here")


@pytest.fixture
def git_is_here():
    support.need("git")


class Git:
    """git without the configuration of this machine and of the person who runs the tests."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.trace = home / "trace"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_TRACE_CURL": str(self.trace),
            "GIT_TRACE_CURL_NO_DATA": "1",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_AUTHOR_DATE": "1700000000 +0000",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
            "GIT_COMMITTER_DATE": "1700000000 +0000",
        }

    def run(self, *words: object, fails: bool = False, data: bytes | None = None) -> str:
        """Run git, demand that it succeeds, or fails; give what it says."""
        done = subprocess.run(
            # Nothing in the background: a test leaves nothing behind.
            ["git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", *map(str, words)],
            env=self.environment,
            cwd=self.environment["HOME"],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        said = done.stdout.decode(errors="replace").strip()
        assert (done.returncode != 0) == fails, said
        return said

    def commit_of(self, repository: Path, name: str = "HEAD") -> str:
        return self.run("-C", repository, "rev-parse", "--verify", f"{name}^{{commit}}")

    def is_sound(self, repository: Path) -> None:
        said = self.run("-C", repository, "fsck", "--full", "--strict")
        assert not re.search("error|missing|broken|dangling", said), said

    def traced(self) -> str:
        """What git sent and received over HTTP, and forget it."""
        text = self.trace.read_text(errors="replace")
        self.trace.unlink()
        return text.lower()


@pytest.fixture
def git(tmp_path):
    return Git(tmp_path / "home")


@pytest.fixture
def root(tmp_path, git):
    """The directory of the server's repositories, with project.git, empty, that may be pushed to."""
    make_repository(git, tmp_path / "root/project.git")
    return tmp_path / "root"


@pytest.fixture
def start(serve, root):
    """Starts the server as the README says."""

    def start(*options, prefix="/", **more):
        settings = [f"GIT_PROJECT_ROOT={root}", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"]
        environment = [word for setting in settings for word in ("--env", setting)]
        server = serve("--cgi-dir", f"{prefix}={PROGRAMS}", *environment, *options, **more)
        server.url = f"http://127.0.0.1:{server.port}{prefix}git"
        return server

    return start


def make_repository(git, path):
    git.run("init", "--quiet", "--bare", "--initial-branch=main", path)
    for setting in ("http.receivepack=true", "gc.auto=0", "maintenance.auto=false", "receive.autogc=false"):
        git.run("-C", path, "config", *setting.split("="))


def add_commits(git, repository, *, count=1, size=100, seed=1, branch="main"):
    """Put commits on a branch, each with a file of `size` random bytes; give the last one's id."""
    numbers = random.Random(seed)
    tip = git.run("-C", repository, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
    stream = []
    for index in range(count):
        stream.append(f"commit refs/heads/{branch}\ncommitter Ada <ada@example.org> {1700000000 + index} +0000\n")
        stream.append(f"data <<END\nCommit {seed}.{index}\nEND\n")
        if tip and not index:
            stream.append(f"from {tip}\n")
        stream.append(f"M 100644 inline file-{seed}-{index}\ndata {size}\n")
        stream.append(numbers.randbytes(size))
        stream.append("\n")
    data = b"".join(part if isinstance(part, bytes) else part.encode() for part in stream)
    # What is incompressible need not be compressed: without, 50 MiB take a second less.
    git.run("-C", repository, "-c", "core.compression=0", "-c", "fastimport.unpackLimit=1", "fast-import",
            "--quiet", data=data)  # fmt: skip
    return git.commit_of(repository, branch)


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_clone_push_fetch(start, git, root, http, protocol):
    """A day with git: all three kinds of its protocol, which goes by a header field of its own."""
    project = root / "project.git"
    first = add_commits(git, project, count=3)
    server = start("--http", http)
    one, two = root.parent / "one", root.parent / "two"
    version = ("-c", f"protocol.version={protocol}")
    git.run(*version, "clone", f"{server.url}/project.git", one)
    git.run(*version, "clone", f"{server.url}/project.git", two)
    assert git.commit_of(one) == git.commit_of(two) == first
    assert (f"git-protocol: version={protocol}" in git.traced()) == (protocol > 0)

    (one / "new.txt").write_text("new\n")
    git.run("-C", one, "add", "new.txt")
    git.run("-C", one, "commit", "-m", "Something new")
    git.run("-C", one, *version, "push", "origin", "main")
    second = git.commit_of(one)
    assert second != first
    assert git.commit_of(project, "main") == second

    git.run("-C", two, *version, "pull", "--ff-only")
    assert git.commit_of(two) == second
    assert (two / "new.txt").read_text() == "new\n"
    for repository in (one, two, project):
        git.is_sound(repository)
    server.wait_for_access(r'"POST /git/project.git/git-receive-pack HTTP/1.1" 200 .* exit=0 outcome=ok')


def test_clone_below_the_default_prefix(start, git, root, tmp_path):
    tip = add_commits(git, root / "project.git")
    server = start(prefix="/cgi-bin/")
    git.run("clone", f"{server.url}/project.git", tmp_path / "clone")
    assert git.commit_of(tmp_path / "clone") == tip


def test_push_to_a_fresh_repository(start, git, root, tmp_path):
    """Every kind of reference in one push, into nothing."""
    work = tmp_path / "work"
    git.run("init", "--quiet", "--initial-branch=main", work)
    tip = add_commits(git, work, count=2)
    other = add_commits(git, work, seed=2, branch="other")
    git.run("-C", work, "tag", "-a", "-m", "One", "v1", "main")
    server = start()
    git.run("-C", work, "push", f"{server.url}/project.git", "--all")
    git.run("-C", work, "push", f"{server.url}/project.git", "--tags")
    project = root / "project.git"
    assert git.commit_of(project, "main") == tip
    assert git.commit_of(project, "other") == other
    assert git.commit_of(project, "v1") == tip
    git.is_sound(project)
    git.run("-C", work, "push", f"{server.url}/project.git", "--delete", "other")
    assert "other" not in git.run("-C", project, "for-each-ref")


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_push_larger_than_the_post_buffer_is_chunked(start, git, root, tmp_path, http):
    """git sends chunked what does not fit into http.postBuffer, 1 MiB; http-backend wants its CONTENT_LENGTH."""
    work = tmp_path / "work"
    git.run("init", "--quiet", "--initial-branch=main", work)
    tip = add_commits(git, work, count=5, size=MIB)
    server = start("--http", http)
    git.run("-C", work, "push", f"{server.url}/project.git", "main")
    assert "=> send header: transfer-encoding: chunked" in git.traced()
    assert git.commit_of(root / "project.git", "main") == tip
    git.is_sound(root / "project.git")


def test_fetch_of_50_mib(start, git, root, tmp_path):
    project = root / "project.git"
    first = add_commits(git, project)
    server = start()
    clone = tmp_path / "clone"
    git.run("clone", f"{server.url}/project.git", clone)
    # Neither side shall look for likenesses in random bytes.
    git.run("-C", project, "config", "core.bigFileThreshold", "1m")
    tip = add_commits(git, project, count=5, size=10 * MIB, seed=50)
    git.run("-C", clone, "fetch", "origin")
    assert git.commit_of(clone) == first
    assert git.commit_of(clone, "origin/main") == tip
    git.is_sound(clone)
    large = server.wait_for_access(r'"POST /git/project.git/git-upload-pack HTTP/1.1" 200 (\d{8,}) .* outcome=ok')
    assert 50 * MIB < int(large[1]) < 51 * MIB


def test_many_wants_are_compressed(start, git, root, tmp_path):
    """Where git has much to ask for it compresses the request; http-backend unpacks it."""
    project = root / "project.git"
    tips = {add_commits(git, project, seed=number, branch=f"branch-{number}") for number in range(40)}
    assert len(tips) == 40
    server = start()
    git.run("clone", "--mirror", f"{server.url}/project.git", tmp_path / "clone.git")
    assert "=> send header: content-encoding: gzip" in git.traced()
    references = git.run("-C", tmp_path / "clone.git", "for-each-ref")
    assert references == git.run("-C", project, "for-each-ref")
    git.is_sound(tmp_path / "clone.git")


def test_shallow_clone_and_the_rest_later(start, git, root, tmp_path):
    tip = add_commits(git, root / "project.git", count=30)
    server = start()
    clone = tmp_path / "clone"
    git.run("clone", "--depth", "1", f"{server.url}/project.git", clone)
    assert git.commit_of(clone) == tip
    assert git.run("-C", clone, "rev-list", "--count", "HEAD") == "1"
    git.run("-C", clone, "fetch", "--depth", "3")
    assert git.run("-C", clone, "rev-list", "--count", "origin/main") == "3"
    git.run("-C", clone, "fetch", "--unshallow")
    assert git.run("-C", clone, "rev-list", "--count", "HEAD") == "30"
    git.is_sound(clone)


def test_dumb_clone(start, git, root, tmp_path):
    """The files of the repository one by one: GET with 404 among the answers."""
    project = root / "project.git"
    tip = add_commits(git, project, count=3)
    git.run("-C", project, "update-server-info")
    server = start()
    environment = git.environment
    git.environment = {**environment, "GIT_SMART_HTTP": "0"}
    git.run("clone", f"{server.url}/project.git", tmp_path / "clone")
    git.environment = environment
    assert git.commit_of(tmp_path / "clone") == tip
    git.is_sound(tmp_path / "clone")


def test_many_clones_at_once(start, git, root, tmp_path):
    tip = add_commits(git, root / "project.git", count=5, size=MIB)
    server = start()
    running = [
        subprocess.Popen(
            ["git", "-c", "gc.auto=0", "clone", "--quiet", f"{server.url}/project.git", tmp_path / f"clone-{number}"],
            env={name: value for name, value in git.environment.items() if "TRACE" not in name},
        )
        for number in range(6)
    ]
    assert [clone.wait() for clone in running] == [0] * 6
    for number in range(6):
        assert git.commit_of(tmp_path / f"clone-{number}") == tip


def test_push_is_closed_unless_the_repository_opens_it(start, git, root, tmp_path):
    project = root / "project.git"
    before = add_commits(git, project)
    git.run("-C", project, "config", "--unset", "http.receivepack")
    server = start()
    clone = tmp_path / "clone"
    git.run("clone", f"{server.url}/project.git", clone)
    add_commits(git, clone, seed=2)
    assert "403" in git.run("-C", clone, "push", "origin", "main", fails=True)
    assert git.commit_of(project, "main") == before


def test_a_rejected_push_says_why(start, git, root, tmp_path):
    """The answer of a hook is for the one who pushes."""
    project = root / "project.git"
    support.script(project / "hooks/pre-receive", "#!/bin/sh\ncat > /dev/null\necho 'not on a Monday' >&2\nexit 1\n")
    work = tmp_path / "work"
    git.run("init", "--quiet", "--initial-branch=main", work)
    add_commits(git, work)
    server = start()
    assert "remote: not on a Monday" in git.run("-C", work, "push", f"{server.url}/project.git", "main", fails=True)
    assert git.run("-C", project, "for-each-ref") == ""


def test_what_is_not_there(start, git, tmp_path):
    server = start()
    assert "not found" in git.run("clone", f"{server.url}/nothing.git", tmp_path / "clone", fails=True)
    assert server.get("/git").status == 404
    assert server.get("/git/").status == 404
    assert server.get("/git/project.git/../../etc/passwd").status == 404
    assert server.get("/git/..%2f..%2fetc/passwd").status in (400, 403, 404, 500)


def test_repositories_that_are_missing_are_explained(serve, tmp_path):
    server = serve("--cgi-dir", f"/={PROGRAMS}", "--env", f"GIT_PROJECT_ROOT={tmp_path / 'nowhere'}")
    answer = server.get("/git/project.git/info/refs?service=git-upload-pack")
    assert answer.status == 500
    server.wait_for_log(r"script \[.*\] git\[\d+\]: there is no directory .*/nowhere: make it, or give another")
