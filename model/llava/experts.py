"""Mixture of experts: all experts of a layer in one grouped matrix product, in the precision that autocast asks for.

transformers' grouped product does not follow autocast: with weights trained in float32 it would compute in float32.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

_NAME: Final = "autocast_grouped_mm"


def enable_grouped_experts(model: PreTrainedModel) -> None:
    """Compute the experts of `model`, if it has any, in grouped products that follow autocast."""
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _experts_forward)
    if experts_of(model):
        model.config._experts_implementation = _NAME


def experts_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold the experts of a layer; transformers notes there how their weights are laid out."""
    return [part for part in model.modules() if hasattr(part, "is_transposed") and hasattr(part, "num_experts")]


def num_experts(model: nn.Module) -> int:
    """Return the experts of each layer, 0 without any."""
    found: Any = experts_of(model)
    return int(found[0].num_experts) if found else 0


class _Cast:
    """An experts module whose weights are read in another type."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute [N, D] tokens by the experts [N, K] with weights [N, K]; returns [N, D] in the tokens' type."""
    if not torch.is_autocast_enabled(hidden_states.device.type):
        return grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    dtype = torch.get_autocast_dtype(hidden_states.device.type)
    cast: Any = _Cast(module, dtype)
    out = grouped_mm_experts_forward(cast, hidden_states.to(dtype), top_k_index, top_k_weights)
    return out.to(hidden_states.dtype)
