"""Several models on one base: equal weights are kept once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config import ConfigError


def share_base(first: nn.Module, other: nn.Module, first_name: str, name: str) -> int:
    """Let a model use another's tensors wherever they are equal, in place.

    Args:
        first: keeps its tensors.
        other: gets them where names, shapes and values agree.
        first_name: of the first, for messages.
        name: of the other.

    Returns:
        Bytes that are kept once instead of twice.

    Raises:
        ConfigError: not one tensor of the language model agrees: the adapters belong to another base.
    """
    own = {_plain(key): tensor for key, tensor in _tensors(first).items()}
    num_bytes = num_shared = 0
    for key, tensor in _tensors(other).items():
        twin = own.get(_plain(key))
        if ".lora_" in key or twin is None or twin.shape != tensor.shape or twin.dtype != tensor.dtype:
            continue
        if torch.equal(twin, tensor):
            tensor.data = twin.data
            num_bytes += tensor.numel() * tensor.element_size()
            num_shared += ".layers." in key and "vision_tower" not in key
    if not num_shared:
        raise ConfigError(
            f"--adapter {name}: its base is another one than that of {first_name}, so nothing can be shared; serve it "
            "with a server of its own"
        )
    return num_bytes


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _plain(key: str) -> str:
    """Return the name that a weight has without adapters around it."""
    return key.replace(".base_layer.", ".")
