"""A fingerprint of a model folder: config.json and samples of every tensor, so that another base is noticed.

Samples, not all of it: training changes nearly every byte of a tensor, and opening adapters must not read 14 GB twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO, Final

_SAMPLE_BYTES: Final = 4096
_SAMPLES_OF_PICKLE: Final = 256
_IGNORED: Final = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
"""Fields of config.json that change nothing that is computed."""


def fingerprint(folder: str | Path) -> str:
    """Return the fingerprint of a folder's config.json and weight files."""
    digest, path = hashlib.sha256(), Path(folder)
    config = path / "config.json"
    if config.is_file():
        values: dict[str, Any] = json.loads(config.read_bytes())
        kept = {name: value for name, value in values.items() if name not in _IGNORED}
        digest.update(json.dumps(kept, sort_keys=True).encode())
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            places = _tensor_places(opened) if file.suffix == ".safetensors" else _even_places(size)
            for place in places:
                opened.seek(place)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


@functools.cache
def fingerprint_at_start(folder: str) -> str:
    """Return the fingerprint as it was when this process first asked: of what its model was built from."""
    return fingerprint(folder)


def _tensor_places(opened: BinaryIO) -> list[int]:
    """Return where to read in a safetensors file: its header, and start, middle and end of each tensor."""
    length = int.from_bytes(opened.read(8), "little")
    header: dict[str, Any] = json.loads(opened.read(length))
    places = [8, 0]
    for name in sorted(header):
        if name != "__metadata__":
            start, end = header[name]["data_offsets"]
            last = max(start, end - _SAMPLE_BYTES)
            places += [8 + length + place for place in (start, (start + last) // 2, last)]
    return places


def _even_places(size: int) -> list[int]:
    return [max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES_OF_PICKLE - 1) for number in range(_SAMPLES_OF_PICKLE)]
