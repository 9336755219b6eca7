"""Writing WebDataset shards with the `webdataset` library's own tar writer, byte for byte reproducible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from webdataset import TarWriter

from model.files.atomic import replacing

_TAR_BLOCK = 512
_NUMBER_FIELD = re.compile(r"%\d*d")


def write_shards(
    samples: Iterable[Mapping[str, str | bytes]],
    pattern: str | Path,
    *,
    max_samples: int | None = None,
    max_bytes: int | None = None,
) -> list[str]:
    """Write samples in order, a new shard whenever a limit is reached.

    Args:
        samples: `{"__key__": key, "0.png": bytes, "json": bytes, ...}` in the `webdataset` convention; text may be str.
        pattern: path with one number field, `data/train-%06d.tar`.
        max_samples: most samples in a shard.
        max_bytes: size at which no further sample is added to a shard, bytes of content and headers.

    Returns:
        Paths of the shards; a shard appears under its name only when it is complete.

    Raises:
        ValueError: a pattern without number field, a key with a dot in its last part, or a limit below 1.
    """
    if any(limit is not None and limit < 1 for limit in (max_samples, max_bytes)):
        raise ValueError(f"max_samples {max_samples} and max_bytes {max_bytes}: expected at least 1")
    target = Path(pattern)
    if len(_NUMBER_FIELD.findall(target.name)) != 1 or target.name.count("%") != 1:
        raise ValueError(f"shard pattern {pattern}: expected a number field such as %06d")
    pending = iter(samples)
    sample = next(pending, None)
    shards: list[str] = []
    while sample is not None:
        path = target.with_name(target.name % len(shards))
        with open_shard_writer(path) as writer:
            num_samples = num_bytes = 0
            while sample is not None and not _is_full(num_samples, num_bytes, max_samples, max_bytes):
                writer.write(_checked(sample))
                num_samples += 1
                num_bytes += _stored_bytes(sample)
                sample = next(pending, None)
        shards.append(str(path))
    return shards


@contextmanager
def open_shard_writer(path: Path) -> Iterator[TarWriter]:
    """Open a shard for writing; it appears under its name, synced to disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # webdataset's own file opener also runs commands and fetches URLs: it is given an open file instead
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        TarWriter(file, encoder=False, compress=False, mtime=0) as writer,
    ):
        yield writer


def _checked(sample: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    key = sample.get("__key__")
    if not isinstance(key, str) or "." in key.rpartition("/")[2] or not key.rpartition("/")[2]:
        raise ValueError(f"sample key {key!r}: expected a name without dots, since a key ends at its first dot")
    return {
        name: value.encode() if isinstance(value, str) and name != "__key__" else value
        for name, value in sample.items()
    }


def _is_full(num_samples: int, num_bytes: int, max_samples: int | None, max_bytes: int | None) -> bool:
    return (max_samples is not None and num_samples >= max_samples) or (
        max_bytes is not None and num_bytes >= max_bytes
    )


def _stored_bytes(sample: Mapping[str, str | bytes]) -> int:
    sizes = [len(value) for name, value in sample.items() if not name.startswith("_")]
    return sum(size + _TAR_BLOCK + -size % _TAR_BLOCK for size in sizes)
