"""Writing tensors in the safetensors layout as a stream, hashed on the way.

The library's own writer copies every tensor into Python bytes while it holds the interpreter's lock, which would stop a
training thread for as long; this one hands out memory views, so writing and hashing run during training. A tensor may
be a piece of a larger one: its offsets go into the header as torch.distributed.checkpoint's Hugging Face format has
them, so that its reader puts the pieces together for any number of ranks.
Layout: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from pipeline.checkpoint.manifest import FileProof

_CHUNK_BYTES = 16 << 20
_DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Piece(NamedTuple):
    """A tensor on the CPU, and its position in the whole tensor of its name."""

    tensor: Tensor
    offsets: tuple[int, ...]
    """First index in each dimension; zeros for a whole tensor."""


def whole(tensor: Tensor) -> Piece:
    """Return a tensor as the one piece of itself."""
    return Piece(tensor, (0,) * tensor.ndim)


def write_tensors(stream: BinaryIO, pieces: Mapping[str, Piece]) -> FileProof:
    """Write a group of tensors; returns size and digest of what was written.

    Raises:
        OSError: the storage refused.
    """
    digest, size = hashlib.sha256(), 0
    # wide types first: every tensor then starts at a multiple of its element size
    ordered = sorted(pieces.items(), key=lambda item: (-item[1].tensor.element_size(), item[0]))
    for chunk in _chunks(dict(ordered)):
        stream.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return FileProof(size, digest.hexdigest())


def _chunks(pieces: Mapping[str, Piece]) -> Iterator[bytes | memoryview]:
    yield _header(pieces)
    for piece in pieces.values():
        content = piece.tensor.contiguous().reshape(-1).view(torch.uint8)
        view = memoryview(content.numpy())  # type: ignore[arg-type]  # numpy's arrays are buffers
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _header(pieces: Mapping[str, Piece]) -> bytes:
    sharding = {name: {"saved_offsets": list(piece.offsets)} for name, piece in pieces.items()}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(sharding)}
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, (tensor, _) in pieces.items():
        end = position + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content
