"""Weight files without their values: whether one is whole, and the names and shapes of its tensors.

What a download or a copy leaves behind is named with its file: Git LFS pointers, cut files, pages of HTML.
"""

import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, Final

import torch

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape."""

_LFS: Final = b"version https://git-lfs"
_PICKLE_START: Final = b"\x80"
_MAX_HEADER_BYTES: Final = 100_000_000
"""Of the safetensors library."""
_ELEMENT_BYTES: Final = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2}
_FETCH: Final = "fetch or copy it again"


def check_not_pointer(file: Path) -> None:
    """Refuse a placeholder for a file.

    Raises:
        ValueError: it is a Git LFS pointer, a page of HTML, or empty.
    """
    with file.open("rb") as opened:
        start = opened.read(64)
    if start.startswith(_LFS):
        raise ValueError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` there, or {_FETCH}")
    if not start:
        raise ValueError(f"{file} is empty; {_FETCH}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{file} is a page of HTML, not the file itself; {_FETCH}")


def read_shapes(file: Path) -> Shapes:
    """Return the tensors of a weight file by its header, values unread; also finds files that end early.

    Raises:
        ValueError: the file is damaged, or no weight file; names it and what is wrong.
    """
    check_not_pointer(file)
    return _safetensors_shapes(file) if file.suffix == ".safetensors" else _pickle_shapes(file)


def _safetensors_shapes(file: Path) -> Shapes:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            header_bytes = int.from_bytes(opened.read(8), "little")
            if size < 8 or header_bytes > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {header_bytes} bytes in a file of {size}")
            header: dict[str, Any] = json.loads(opened.read(header_bytes))
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        short = [name for name, entry in header.items() if not _spans_its_shape(entry)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} has no readable safetensors header ({error}); {_FETCH}") from error
    if size != 8 + header_bytes + end:
        raise ValueError(f"{file} is cut: {size} bytes, its header announces {8 + header_bytes + end}; {_FETCH}")
    if short:
        raise ValueError(f"{file}: the header gives {short[0]} other bytes than its shape needs; {_FETCH}")
    return shapes


def _spans_its_shape(entry: dict[str, Any]) -> bool:
    start, end = entry["data_offsets"]
    width = _ELEMENT_BYTES.get(entry["dtype"])
    return width is None or end - start == width * math.prod(entry["shape"])


def _pickle_shapes(file: Path) -> Shapes:
    with file.open("rb") as opened:
        is_old = opened.read(1) == _PICKLE_START  # torch before 1.6: one pickle, no archive
    if not is_old and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is cut, or not a file of torch.save; {_FETCH}")
    try:
        state = torch.load(file, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in dict(state).items()}
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} holds something other than tensors and is not read: {error}") from error
    except (RuntimeError, EOFError, ValueError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as tensors ({error}); {_FETCH}") from error
