"""The arrows between the rooms: who may import whom, and who alone has a power."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

MODULES = sorted([*ROOT.glob("gateway/**/*.py"), *ROOT.glob("fcgi_pool/**/*.py")])


def imports(path: Path) -> set[str]:
    """Return the names of all modules that a file imports at run time."""
    found: set[str] = set()
    for node in _run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _run_time_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        nodes.append(node)
        nodes.extend(_run_time_nodes(node))
    return nodes


def name(path: Path) -> str:
    """Return a file's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_pool_never_imports_the_gateway() -> None:
    """gateway → fcgi_pool, never back."""
    for path in ROOT.glob("fcgi_pool/**/*.py"):
        assert not {found for found in imports(path) if found.split(".")[0] == "gateway"}, path


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("h11", ["gateway.http.h11_reader"]),
        ("httptools", ["gateway.http.httptools_reader"]),
        ("argparse", ["fcgi_pool.cli", "gateway.cli", "gateway.config.build", "gateway.options"]),
        (
            "ctypes",
            [
                "fcgi_pool.process", "fcgi_pool.runtime.scripts", "gateway.cgi.warm.bootstrap", "gateway.parent",
                "gateway.confinement.landlock", "gateway.privileges",
            ],
        ),
        ("marshal", ["gateway.cgi.wire"]),
        ("msgspec", ["gateway.config.keys", "gateway.config.read", "gateway.config.reference"]),
        ("tomllib", ["fcgi_pool.cli", "gateway.config.read"]),
    ],
)
def test_one_file_has_the_power(library: str, homes: list[str]) -> None:
    """A library that is a power has one home, and another in each program of its own."""
    users = sorted(name(path) for path in MODULES if library in imports(path))
    assert set(users) <= set(homes)


def test_programs_are_started_in_one_place() -> None:
    """Only the spawner starts CGI programs; who forks is known: a master, its trial, a pool, a warm interpreter."""
    forks = ("gateway.parent", "gateway.trial", "gateway.cgi.warm.bootstrap", "fcgi_pool.process")
    for path in MODULES:
        text = path.read_text()
        assert ("posix_spawn(" in text) == (name(path) == "gateway.cgi.spawner"), path
        assert ("os.fork()" in text) == (name(path) in forks), path
        assert "import subprocess" not in text, path


@pytest.mark.parametrize(
    "room", ["http", "cgi/output", "cgi/variables", "fastcgi/params", "routing", "supervision", "fault"]
)
def test_pure_rooms_do_no_io(room: str) -> None:
    """What only decides imports neither sockets, nor processes, nor the loop."""
    paths = [path for path in MODULES if name(path).startswith("gateway." + room.replace("/", "."))]
    assert paths
    for path in paths:
        forbidden = {"asyncio", "os", "select", "selectors", "signal", "subprocess", "threading"}
        assert not imports(path) & forbidden, path


def test_the_codec_is_made_of_nothing_but_bytes() -> None:
    """fcgi_pool.protocol knows no clock, log or socket, and nothing else of the project."""
    for path in ROOT.glob("fcgi_pool/protocol/*.py"):
        found = {one.split(".")[0] for one in imports(path) if not one.startswith("fcgi_pool.protocol")}
        assert found <= {"__future__", "dataclasses", "enum", "struct", "typing", "collections"}, path


def test_there_are_no_cycles() -> None:
    """No module imports itself, however far round, at run time."""
    names = {name(path): imports(path) for path in MODULES}
    graph = {module: {found for found in targets if found in names} - {module} for module, targets in names.items()}

    def reach(module: str, seen: frozenset[str]) -> None:
        assert module not in seen, f"{module} is in a cycle: {sorted(seen)}"
        for target in graph[module]:
            reach(target, seen | {module})

    for module in graph:
        reach(module, frozenset())


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_are_small(path: Path) -> None:
    """Past 500 lines a file, or 60 a function, a noun is missing."""
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < 60, node.name


def test_the_design_is_read_in_one_go() -> None:
    """Past 150 lines it describes the code, and not how it hangs together."""
    assert len((ROOT / "docs" / "design.rst").read_text().splitlines()) < 150
