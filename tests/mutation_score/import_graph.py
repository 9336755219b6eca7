"""Which modules of the repository import which, read from their text: lazy imports count, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PRODUCT = ("model", "pipeline", "jobs")
_FOLDERS = (*_PRODUCT, "tests", "benchmarks")

Graph = dict[str, set[str]]
"""For each module those that it imports, packages included."""


def read_graph() -> Graph:
    """Read the imports of all modules."""
    paths = {_name(path): path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return {name: _imports(name, path, paths.keys()) for name, path in paths.items()}


def module_path(module: str) -> Path:
    """Return the file of a module that is not a package."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def module_of(path: str) -> str:
    """Return the module of a file that is named relative to the repository."""
    return _name(ROOT / path)


def imported_by(graph: Graph, modules: Iterable[str]) -> set[str]:
    """Return the modules, and whatever they import directly or not."""
    found: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += graph.get(module, ())
    return found


def independent_of(graph: Graph, module: str, modules: Iterable[str]) -> list[str]:
    """Return what the modules import of the product, directly or not, without ever importing `module`."""
    reached = (name for name in imported_by(graph, modules) if name.split(".")[0] in _PRODUCT)
    return sorted(name for name in reached if module not in imported_by(graph, [name]))


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, path: Path, known: Iterable[str]) -> set[str]:
    found = {name.rpartition(".")[0]}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    with_packages = {".".join(parts[:end]) for parts in map(_split, found) for end in range(1, len(parts) + 1)}
    return (with_packages & set(known)) - {name}


def _split(name: str) -> list[str]:
    return name.split(".")
