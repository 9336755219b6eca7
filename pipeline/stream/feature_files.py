"""Files of the cache: per shard a few files of features, and last a table that says which image's are where.

Named after the shard's SHA-256, so that a shard changed under the same name has none. Every file is written under a
temporary name, synced and renamed; the table comes last and stands for the whole shard: a killed run leaves finished
shards and files that the next one writes again.

Shapes: I distinct images of a shard, U their tiles, P features per tile, V vision width.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.files.atomic import replacing
from model.files.file_mode import follow_umask
from model.fusion.resolution import ROLES, ImageView, Role

_FEATURES: Final = "features"
_MAX_FILE_BYTES: Final = 512 << 20
"""Features gathered in memory before they are written."""


class CachedImage(NamedTuple):
    """An image as the cache has it."""

    view: ImageView
    features: Tensor
    """`[tiles, P, V]` in the tower's type."""


def image_key(data: bytes, role: Role) -> bytes:
    """Return the 16 bytes under which an image file in a role is known."""
    return hashlib.blake2b(data, digest_size=16, person=role.encode()).digest()


class ShardWriter:
    """Collects the features of a shard's images and writes them; `finish` makes them count."""

    def __init__(self, folder: Path, shard_sha256: str, max_file_bytes: int = _MAX_FILE_BYTES) -> None:
        """Write into `folder`, which is created; what a killed writer of this shard left under temporary names goes."""
        self._folder, self._shard, self._max_file_bytes = folder, shard_sha256, max_file_bytes
        self._keys: list[bytes] = []
        self._places: list[tuple[int, int, int, int, int, int]] = []
        self._waiting: list[Tensor] = []
        self._num_files = 0
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{shard_sha256[:32]}.*.tmp"):
            leftover.unlink()

    def add(self, key: bytes, view: ImageView, features: Tensor) -> None:
        """Add the features `[tiles, P, V]` of an image that was not added before."""
        first = sum(len(tiles) for tiles in self._waiting)
        self._keys.append(key)
        self._places.append(
            (self._num_files, first, len(features), view.height, view.width, ROLES.index(view.role)),
        )
        self._waiting.append(features.cpu())
        if sum(tiles.nbytes for tiles in self._waiting) >= self._max_file_bytes:
            self._write_features()

    def finish(self) -> None:
        """Write what is left, then the table."""
        if self._waiting:
            self._write_features()
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        keys = np.frombuffer(b"".join(self._keys[idx] for idx in order), np.uint8).reshape(-1, 16)
        places = torch.tensor([self._places[idx] for idx in order], dtype=torch.int64).view(-1, 6)
        table = {"keys": torch.from_numpy(keys.copy()), "places": places}
        _write(table_file(self._folder, self._shard), table)

    def _write_features(self) -> None:
        _write(_features_file(self._folder, self._shard, self._num_files), {_FEATURES: torch.cat(self._waiting)})
        self._num_files += 1
        self._waiting = []


class ShardReader:
    """Looks images of a shard up; features are read through a memory map."""

    def __init__(self, folder: Path, shard_sha256: str) -> None:
        """Read the table.

        Raises:
            FileNotFoundError: the shard is not in the cache.
        """
        self._folder, self._shard = folder, shard_sha256
        table = load_file(table_file(folder, shard_sha256))
        self._keys: npt.NDArray[np.bytes_] = table["keys"].numpy().view("S16").reshape(-1)  # compared padded with NUL
        self._places = table["places"]

    def find(self, key: bytes) -> CachedImage | None:
        """Return the image of that key, None when the shard has none."""
        row = int(np.searchsorted(self._keys, np.array(key, "S16")))
        if row == len(self._keys) or bytes(self._keys[row]).ljust(16, b"\0") != key:
            return None
        file, first, num_tiles, height, width, role = self._places[row].tolist()
        with safe_open(_features_file(self._folder, self._shard, file), framework="pt") as opened:
            features = opened.get_slice(_FEATURES)[first : first + num_tiles]
        return CachedImage(ImageView(height, width, ROLES[role]), features)


@functools.lru_cache(maxsize=1024)
def open_shard(folder: str, shard_sha256: str) -> ShardReader:
    """Return a reader, kept for the life of the process: finished shards never change."""
    return ShardReader(Path(folder), shard_sha256)


def table_file(folder: Path, shard_sha256: str) -> Path:
    """Return the file whose existence says that a shard is cached."""
    return folder / f"{shard_sha256[:32]}.table.safetensors"


def _features_file(folder: Path, shard_sha256: str, number: int) -> Path:
    return folder / f"{shard_sha256[:32]}.{number:05d}.safetensors"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        follow_umask(temporary)
