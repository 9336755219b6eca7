"""Rank-steps on their way between processes: one row of an Arrow table, whose columns are the tensors' own memory.

A rank-step with pictures is ten megabytes and more, and every copy of it costs as much as decoding a few of them.
Neither writing nor reading copies anything. No pickle.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.stream.rank_step import RankStep, Rejected

_FACTS = "facts"


def to_row(rank_step: RankStep) -> pa.Table:
    """Return a table of one row that shares memory with the rank-step's tensors."""
    tensors = {name: value for name, value in rank_step._asdict().items() if isinstance(value, Tensor)}
    facts = {
        "step": rank_step.step,
        "rank": rank_step.rank,
        "checksum": rank_step.checksum,
        "rejected": rank_step.rejected,
        "tensors": {name: (str(value.dtype).removeprefix("torch."), *value.shape) for name, value in tensors.items()},
    }
    columns = {name: _column(value) for name, value in tensors.items()}
    return pa.table({**columns, _FACTS: pa.array([json.dumps(facts)])})


def from_row(row: pa.Table) -> RankStep:
    """Read what `to_row` wrote; the tensors keep the row's memory, and must not be written to."""
    facts: dict[str, Any] = json.loads(row[_FACTS][0].as_py())
    tensors: dict[str, Any] = {
        name: _tensor(row[name][0].as_buffer(), getattr(torch, dtype), shape)
        for name, (dtype, *shape) in facts.pop("tensors").items()
    }
    rejected = tuple(Rejected(*entry) for entry in facts.pop("rejected"))
    return RankStep(**facts, **tensors, rejected=rejected)


def _column(tensor: Tensor) -> pa.Array:
    """Return the tensor's bytes as the only value of an Arrow array, without copying them.

    As bytes, since numpy lacks types that torch has: bfloat16 and those of 8 bits.
    """
    values = tensor.contiguous().view(-1) if tensor.numel() else torch.empty(0)  # numpy's empty arrays have odd strides
    content = pa.py_buffer(values.view(torch.uint8).numpy())
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _tensor(content: pa.Buffer, dtype: torch.dtype, shape: list[int]) -> Tensor:
    content_bytes = pa.Array.from_buffers(pa.uint8(), content.size, [None, content])
    return from_dlpack(content_bytes).view(dtype).view(shape)
