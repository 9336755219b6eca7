"""What makes a step fast or small without changing its result: compiled layers, activations recomputed in backward.

Measured on one H200 in docs/benchmarks; attention kernels are chosen in `model.llava.attention`.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any, Final

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.hub.weights import LlavaModel
from pipeline.config import TrainingConfig

_aten = torch.ops.aten
_KEPT_OPERATIONS: Final = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten._scaled_mm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Results worth their memory: one costs thousands of operations per element, all others a few."""
_KEPT_NAMESPACES: Final = frozenset({"torch_attn", "flash_attn", "ray_llava"})
"""Custom operators for packed attention, which exist only once their module was imported."""


def accelerate(model: LlavaModel, config: TrainingConfig) -> None:
    """Set up recomputation and compilation of `model` in place; call it before sharding.

    Layers are compiled one by one: all decoder layers share one compiled function, so compiling takes seconds instead
    of minutes, and shapes are dynamic, so that packed rows of any length run without padding.
    """
    if config.gradient_checkpointing:
        forward = _forward_keeping_products if config.gradient_checkpointing == "selective" else _forward_keeping_input
        for layer in trained_layers(model):
            # `forward`, not the call: hooks, such as those of FSDP, must not run again when it is recomputed.
            layer.forward = MethodType(forward, layer)
    if config.compile:
        for layer in compiled_layers(model):
            layer.compile(dynamic=True)


def trained_layers(model: LlavaModel) -> list[nn.Module]:
    """Return the layers whose activations backward needs: the decoder's, and the tower's if it learns."""
    tower = model.get_vision_tower()
    return [*model.get_model().layers, *([] if tower is None or tower.frozen else tower.layers)]


def compiled_layers(model: LlavaModel) -> list[nn.Module]:
    """Return the layers that make up nearly all of a step: the decoder's, and those of the tower that are used."""
    layers: list[nn.Module] = list(model.get_model().layers)
    tower = model.get_vision_tower()
    if tower is not None:
        layers += tower.layers
    return layers


def _forward_keeping_input(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(type(layer).forward, layer, *args, use_reentrant=False, **kwargs)


def _forward_keeping_products(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _keep_what_is_expensive)
    return checkpoint(type(layer).forward, layer, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _keep_what_is_expensive(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep results of matrix products and attention; recompute norms, rotations, activations and sums."""
    kept = operation in _KEPT_OPERATIONS or operation.namespace in _KEPT_NAMESPACES
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
