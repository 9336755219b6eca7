"""Optimizer and learning-rate schedule with the published LLaVA recipe: AdamW groups, linear warm-up, cosine decay."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from pipeline.config import ConfigError, TrainingConfig
from pipeline.training.stochastic_adamw import StochasticAdamW

_TOWER_MARK = "vision_tower."
_PROJECTOR_MARKS = ("mm_projector", "image_newline")
_BETAS = (0.9, 0.999)
_EPS = 1e-8
BYTES: Final = {"float32": 4, "bfloat16": 2}
_QUANTIZED_MOMENT_NUMEL: Final = 4096
"""Moments of smaller tensors stay in float32 in 8-bit AdamW; larger ones have a float32 scale per 256 elements."""
_EIGHT_BIT_PACKAGE: Final = "bitsandbytes"


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Build AdamW (0.9, 0.999, 1e-8) over what requires gradients.

    Groups are {decay, no decay} x {base, projector, vision tower}, joined where rates are equal, as in LLaVA's
    `llava_trainer.py`; biases and the weights of normalisation layers, RMSNorm included, are exempt from weight decay.
    Each group carries its peak rate as `peak_lr`.
    Parameters stored in bfloat16 get the stochastically rounded variant, see `StochasticAdamW`.

    Raises:
        ValueError: nothing requires gradients.
        ConfigError: `optimizer: adamw_8bit` without its library.
    """
    check_optimizer(model, config)
    exempt = _exempt_from_decay(model)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_peak_lr(name, config), name in exempt), []).append(parameter)
    described = [
        {"params": parameters, "peak_lr": peak_lr, "weight_decay": 0.0 if is_exempt else config.weight_decay}
        for (peak_lr, is_exempt), parameters in sorted(groups.items(), key=lambda entry: entry[0])
    ]
    if config.optimizer == "adamw_8bit":
        return _eight_bit_adamw(described, config)
    if config.master_dtype == "bfloat16":
        return StochasticAdamW(described, lr=config.learning_rate, betas=_BETAS, eps=_EPS, compiled=config.compile)
    return torch.optim.AdamW(described, lr=config.learning_rate, betas=_BETAS, eps=_EPS, fused=True)


def check_optimizer(model: nn.Module, config: TrainingConfig) -> None:
    """Refuse what `build_optimizer` could not build; reads no values.

    Raises:
        ValueError: nothing requires gradients.
        ConfigError: `optimizer: adamw_8bit` without its library.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "nothing learns: no parameter requires gradients, such as in projector pretraining with "
            "mm_projector_type 'identity'; choose another projector, or finetune"
        )
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec(_EIGHT_BIT_PACKAGE) is None:
        raise ConfigError(
            f"training.optimizer=adamw_8bit needs {_EIGHT_BIT_PACKAGE}, which is not installed; install "
            "ray-llava[eightbit], or set training.optimizer=adamw"
        )


def checkpoint_bytes(model: nn.Module, config: TrainingConfig) -> int:
    """Return about how many bytes a checkpoint takes: everything that learns, and its moments.

    Args:
        model: may be without values.
        config: which optimizer, and in which type it keeps what.
    """
    sizes: list[int] = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return sum(sizes) * BYTES[config.master_dtype] + moment_bytes(sizes, config)


def moment_bytes(sizes: Sequence[int], config: TrainingConfig) -> int:
    """Return the bytes of both moments of parameters of so many elements each."""
    if config.optimizer == "adamw":
        return 2 * sum(sizes) * BYTES[config.master_dtype]
    return 2 * sum(size + size // 64 if size >= _QUANTIZED_MOMENT_NUMEL else 4 * size for size in sizes)


def _eight_bit_adamw(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Build bitsandbytes' AdamW: moments in 8 bits with a scale for every 256, those of small tensors in float32.

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022.
    """
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=config.learning_rate, betas=_BETAS, eps=_EPS)
    return optimizer


def _peak_lr(name: str, config: TrainingConfig) -> float:
    if _TOWER_MARK in name:
        return config.vision_tower_lr or config.learning_rate
    if any(mark in name for mark in _PROJECTOR_MARKS):
        return config.mm_projector_lr or config.learning_rate
    return config.learning_rate


def _exempt_from_decay(model: nn.Module) -> set[str]:
    """Names of biases, of normalisation weights (LayerNorm, every RMSNorm class of transformers), of lone embeddings.

    An embedding that learns while the rest of the language model does not gets gradients in two rows only, those of
    the tokens around images; decay would shrink all others.
    """
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = {
        name for name in learning - embeddings if not any(mark in name for mark in (*_PROJECTOR_MARKS, _TOWER_MARK))
    }
    exempt = set() if others else learning & embeddings
    for module_name, module in model.named_modules():
        is_norm = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
        for name, _ in module.named_parameters(recurse=False):
            if is_norm or name == "bias":
                exempt.add(f"{module_name}.{name}" if module_name else name)
    return exempt


def learning_rate_factor(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Return the share of the peak learning rate at a step, a pure function of the global step.

    The first of w warm-up steps runs at 1/w rather than at zero, so that no step is wasted.
    """
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to `factor` times its peak and return the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
