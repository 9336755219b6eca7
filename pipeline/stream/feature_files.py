"""Files of the cache: per shard a few files of features, and last a table with the position of each image's features.

Named after the shard's SHA-256, so that a shard changed under the same name has none. Every file is written under a
temporary name, synced and renamed; the table comes last and stands for the whole shard: a killed run leaves finished
shards and files that the next one writes again.

Nothing is believed unread: the table holds a digest of every image's features, compared whenever they are read, and one
of itself that covers the shard and the cache it was made for.

Shapes: I distinct images of a shard, U their tiles, P features per tile, V vision width, F files of features.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.files.atomic import replacing
from model.files.file_mode import follow_umask
from model.fusion.resolution import ROLES, ImageView, Role

HOW_TO_FILL: Final = "run `ray-llava cache-features` with this config"
_REPAIR: Final = f"{HOW_TO_FILL}, which writes it again"
_FEATURES: Final = "features"
_TABLE_END: Final = ".table.safetensors"
_DIGEST_BYTES: Final = 16
_MAX_FILE_BYTES: Final = 512 << 20
"""Features gathered in memory before they are written."""


class FeatureCacheError(RuntimeError):
    """The cache does not hold what it should; nothing is computed in its place."""


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
        self._digests: list[bytes] = []
        self._waiting: list[Tensor] = []
        self._file_bytes: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{shard_sha256[:32]}.*.tmp"):
            leftover.unlink()

    def add(self, key: bytes, view: ImageView, features: Tensor) -> None:
        """Add the features `[tiles, P, V]` of an image that was not added before."""
        first = sum(len(tiles) for tiles in self._waiting)
        self._keys.append(key)
        self._places.append(
            (len(self._file_bytes), first, len(features), view.height, view.width, ROLES.index(view.role)),
        )
        self._waiting.append(features.cpu())
        self._digests.append(_digest(self._waiting[-1]))
        if sum(tiles.nbytes for tiles in self._waiting) >= self._max_file_bytes:
            self._write_features()

    def finish(self) -> None:
        """Write what is left, then the table."""
        if self._waiting:
            self._write_features()
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        table = {
            "keys": _rows([self._keys[idx] for idx in order]),
            "places": torch.tensor([self._places[idx] for idx in order], dtype=torch.int64).view(-1, 6),
            "digests": _rows([self._digests[idx] for idx in order]),
            "file_bytes": torch.tensor(self._file_bytes, dtype=torch.int64),
        }
        path = table_file(self._folder, self._shard)
        _write(path, table, {"digest": _table_digest(path, table)})
        for number in range(len(self._file_bytes), len(list(self._folder.glob(f"{self._shard[:32]}.0*")))):
            _features_file(self._folder, self._shard, number).unlink(missing_ok=True)  # of an earlier, larger writing

    def _write_features(self) -> None:
        path = _features_file(self._folder, self._shard, len(self._file_bytes))
        _write(path, {_FEATURES: torch.cat(self._waiting)})
        self._file_bytes.append(path.stat().st_size)
        self._waiting = []


class ShardReader:
    """Looks images of a shard up; features are read through a memory map."""

    def __init__(self, folder: Path, shard_sha256: str) -> None:
        """Read the table.

        Args:
            folder: of the cache's key.
            shard_sha256: of the shard, or its first 32 digits, as files are named.

        Raises:
            FileNotFoundError: the shard is not in the cache.
            FeatureCacheError: the table is damaged, or another cache's.
        """
        self._folder, self._shard = folder, shard_sha256
        table = _read_table(table_file(folder, shard_sha256))
        self._keys: npt.NDArray[np.bytes_] = table["keys"].numpy().view("S16").reshape(-1)  # compared padded with NUL
        self._places, self._digests, self._file_bytes = table["places"], table["digests"], table["file_bytes"].tolist()

    def find(self, key: bytes) -> CachedImage | None:
        """Return the image of that key, None when the shard has none.

        Raises:
            FeatureCacheError: its file is lost, or its features are not those that were written.
        """
        row = int(np.searchsorted(self._keys, np.array(key, "S16")))
        if row == len(self._keys) or bytes(self._keys[row]).ljust(16, b"\0") != key:
            return None
        return self._read(row)

    def check_files(self) -> None:
        """Look whether every file of features is there, as long as it was written.

        Raises:
            FeatureCacheError: names the first that is not.
        """
        for number, expected in enumerate(self._file_bytes):
            path = _features_file(self._folder, self._shard, number)
            found = path.stat().st_size if path.is_file() else None
            if found != expected:
                size = "is gone" if found is None else f"has {found} bytes"
                raise FeatureCacheError(f"{path} {size}, expected {expected} bytes; {_REPAIR}")

    def verify(self) -> None:
        """Read and compare all features.

        Raises:
            FeatureCacheError: names the first file that is damaged.
        """
        self.check_files()
        for row in range(len(self._keys)):
            self._read(row)

    def _read(self, row: int) -> CachedImage:
        file, first, num_tiles, height, width, role = self._places[row].tolist()
        path = _features_file(self._folder, self._shard, file)
        try:
            with safe_open(path, framework="pt") as opened:
                features: Tensor = opened.get_slice(_FEATURES)[first : first + num_tiles]
        except FileNotFoundError as error:
            raise FeatureCacheError(f"{path} is gone; {_REPAIR}") from error
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise FeatureCacheError(f"{path} is damaged ({error}); {_REPAIR}") from error
        if _digest(features) != bytes(self._digests[row].tolist()):
            key = bytes(self._keys[row]).hex()
            raise FeatureCacheError(f"{path}: the features of image {key} are not those that were written; {_REPAIR}")
        return CachedImage(ImageView(height, width, ROLES[role]), features)


@functools.lru_cache(maxsize=1024)
def open_shard(folder: str, shard_sha256: str) -> ShardReader:
    """Return a reader, kept for the life of the process: finished shards never change."""
    return ShardReader(Path(folder), shard_sha256)


def table_file(folder: Path, shard_sha256: str) -> Path:
    """Return the file whose existence says that a shard is cached."""
    return folder / f"{shard_sha256[:32]}{_TABLE_END}"


def cached_shards(folder: Path) -> list[str]:
    """Return the first 32 digits of the SHA-256 of every shard that was finished."""
    return sorted(path.name.removesuffix(_TABLE_END) for path in folder.glob(f"*{_TABLE_END}"))


def _features_file(folder: Path, shard_sha256: str, number: int) -> Path:
    return folder / f"{shard_sha256[:32]}.{number:05d}.safetensors"


def _read_table(path: Path) -> dict[str, Tensor]:
    """Read a table and compare its digest."""
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with safe_open(path, framework="pt") as opened:
            table = {name: opened.get_tensor(name) for name in ("keys", "places", "digests", "file_bytes")}
            written = (opened.metadata() or {}).get("digest")
    except (SafetensorError, KeyError, ValueError) as error:
        raise FeatureCacheError(f"{path} is damaged ({error}); {_REPAIR}") from error
    if written != _table_digest(path, table):
        raise FeatureCacheError(f"{path} is damaged, or a table of another cache; {_REPAIR}")
    return table


def _table_digest(path: Path, table: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over a table, the shard it belongs to and the key of its cache."""
    digest = hashlib.sha256(f"{path.parent.name}/{path.name};".encode())
    for name, tensor in sorted(table.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _digest(features: Tensor) -> bytes:
    """Return a digest of an image's features: type, shape and values."""
    values = features.contiguous().view(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{features.dtype} {list(features.shape)};".encode())
    digest.update(values.data)
    return digest.digest()[:_DIGEST_BYTES]


def _rows(values: Sequence[bytes]) -> Tensor:
    """Return byte strings of 16 as uint8 `[I, 16]`."""
    return torch.from_numpy(np.frombuffer(b"".join(values), np.uint8).reshape(-1, 16).copy())


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        follow_umask(temporary)
