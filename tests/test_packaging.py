"""What the code imports is declared in pyproject.toml, and what is declared is pinned in constraints.txt."""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OWN_PACKAGES = {"benchmarks", "jobs", "model", "pipeline", "tests"}
COMPARED = {"datasets", "liger_kernel", "streaming", "torchao"}  # other sides of benchmarks, if installed
WITH_TORCH = {"triton"}  # comes with its builds for GPUs
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*groups: str) -> set[str]:
    """Names of the declared distributions; no group means the runtime dependencies."""
    lines = [line for group in groups for line in PROJECT["optional-dependencies"][group]]
    return {canonicalize_name(Requirement(line).name) for line in [*PROJECT["dependencies"], *lines]}


def imported_packages(folder: str) -> Iterator[tuple[str, Path]]:
    """Top-level names of all third-party imports below a folder, lazy ones included."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                if top not in OWN_PACKAGES | COMPARED | WITH_TORCH and top not in sys.stdlib_module_names:
                    yield top, path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("folder", "groups"),
    [
        ("model", ("lora", "flash")),
        ("pipeline", ("lora", "eightbit", "captions")),
        ("benchmarks", ("lora", "eightbit", "bench", "real")),
        ("jobs", ()),
        ("tests", ("dev", "lora")),
    ],
)
def test_imports_of_each_folder_are_declared(folder: str, groups: tuple[str, ...]) -> None:
    distributions = importlib.metadata.packages_distributions()
    allowed = declared(*groups)
    undeclared = {
        f"{path} imports {top}"
        for top, path in imported_packages(folder)
        if not allowed & {canonicalize_name(name) for name in distributions.get(top, [top])}
    }
    assert undeclared == set()


def test_constraints_pin_every_declared_distribution_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    groups = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "flash"}
    requirements = [Requirement(line) for lines in [PROJECT["dependencies"], *groups.values()] for line in lines]
    outside = [
        f"{requirement}: pinned {pins.get(canonicalize_name(requirement.name))}"
        for requirement in requirements
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), ""))
    ]
    assert outside == []
