"""What `ray-llava` imports is what was installed: the working directory and other packages do not take its place.

Called before anything else is imported, so only the standard library is used here.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_PACKAGES = ("jobs", "model", "pipeline")
_DISTRIBUTION = "ray-llava"


class ForeignPackageError(ImportError):
    """A package of this project is not the one that was installed; the message says what to do."""


def put_own_packages_first() -> None:
    """Let imports find this project's packages before others of the same names, on `sys.path` as it is from now on.

    `python -m` puts the working directory first, where a user's own `model.py`, or `tokenizers.py`, may be.
    """
    root = Path(__file__).resolve().parents[1]
    here = Path.cwd()
    if not here.samefile(root):
        sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != here]
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    os.environ["PYTHONSAFEPATH"] = "1"  # for interpreters that are started from here


def check_own_packages() -> None:
    """Refuse to run where another package has taken the place of one of this project's.

    Raises:
        ForeignPackageError: names the file, and the other package where it is known.
    """
    root = Path(__file__).resolve().parents[1]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if root / package not in places:
            found = places[0] if places else (spec.origin if spec else "nothing")
            raise ForeignPackageError(
                f"`import {package}` finds {found}, not the package of ray-llava in {root / package}; rename the "
                "former or take its folder out of PYTHONPATH"
            )
    for path in _replaced_files(root):
        others = ", ".join(_owners(path)) or "another package"
        raise ForeignPackageError(
            f"{root / path} is not the file that ray-llava installed: {others} has replaced it. Install ray-llava "
            "again, into an environment without that package"
        )


def _replaced_files(root: Path) -> Iterator[str]:
    """Yield the installed Python files whose content is no longer what pip noted; none for an editable install."""
    try:
        files = importlib.metadata.distribution(_DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        return
    for file in files:
        if file.suffix != ".py" or file.parts[0] not in _PACKAGES or file.hash is None:
            continue
        path = Path(str(file.locate()))
        if not path.is_relative_to(root):
            continue
        content = path.read_bytes() if path.is_file() else b""
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).decode().rstrip("=")
        if digest != file.hash.value:
            yield str(file)


def _owners(path: str) -> Iterator[str]:
    """Yield the other installed distributions that claim a file."""
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name != _DISTRIBUTION and any(str(file) == path for file in distribution.files or []):
            yield name
