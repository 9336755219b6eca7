"""In which types a run's weights are read, kept and computed with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from pipeline.config import Recipe

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_dtype(recipe: Recipe) -> torch.dtype:
    """Return the type that weights are read in: what is trained must not pass through a narrower one on its way."""
    trains_all = recipe.stage == "finetune" and recipe.lora.rank is None
    return DTYPES[recipe.training.master_dtype if trains_all else recipe.training.precision]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of every forward pass: bfloat16 matrix products where `training.precision` asks for them."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
