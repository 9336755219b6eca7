"""Which code a process runs: where this project's packages come from, and a digest of it.

A driver and its workers may find different installations, or somebody else's `model` and `pipeline`, on their paths.
Standard library only: `find_code` travels by value to processes that may have any version of this package, or none.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

_PACKAGES = ("jobs", "model", "pipeline")


class OwnCode(NamedTuple):
    """An installation of this project."""

    root: str
    """Folder that holds its packages; empty when there is none."""
    digest: str
    """SHA-256 over the names and contents of its Python files."""


class MixedCodeError(ValueError):
    """Processes of one run would run different code."""


def find_code() -> OwnCode:
    """Return the code that `import pipeline` would run in this process."""
    spec = importlib.util.find_spec("pipeline")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        return OwnCode("", "")
    root = Path(places[0]).resolve().parent
    return OwnCode(str(root), _digest(root))


@functools.cache
def own_code() -> OwnCode:
    """Return the code of this process."""
    root = Path(__file__).resolve().parents[2]
    return OwnCode(str(root), _digest(root))


def check_same_code(found: OwnCode, expected: OwnCode, where: str) -> None:
    """Refuse a process that runs other code than the command that started the run.

    Args:
        found: the code of the process.
        expected: the code of the command.
        where: names the process, such as `node 10.0.0.7`.

    Raises:
        MixedCodeError: they differ.
    """
    if not found.root:
        raise MixedCodeError(f"{where} has no ray-llava; install the same version there as at {expected.root}")
    if found.digest != expected.digest:
        raise MixedCodeError(
            f"{where} would run the ray-llava in {found.root} (digest {found.digest[:12]}), this command runs the one "
            f"in {expected.root} (digest {expected.digest[:12]}); install the same version on both"
        )


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
