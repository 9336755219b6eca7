"""AdamW for weights and moments stored in bfloat16, computed in float32 and rounded stochastically.

bfloat16 has 8 significant bits, so rounding to nearest drops every update below 1/512 of a weight (at the published
2e-5 that is most of them) and freezes the second moment. Rounding up with the probability of the remainder keeps both
exact on average: Zamirai et al., "Revisiting BFloat16 Training", 2021.

The noise follows from the seed and the step alone, so that replicas stay equal even if ranks draw other random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_BLOCK_NUMEL = 1 << 26  # float32 temporaries of one block are 256 MiB each where the update is not compiled


class StochasticAdamW(torch.optim.AdamW):
    """AdamW with the state names of torch's own; 6 bytes per parameter for weight and moments."""

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, compiled: bool
    ) -> None:
        """Check the parameters' type; the seed of the noise is the one that torch was last given, equal on all ranks.

        Args:
            params: parameter groups as for `torch.optim.AdamW`.
            lr: learning rate of groups without one.
            betas: decay of the moments.
            eps: added to the root of the second moment.
            compiled: fuse the update into one kernel; otherwise about 20, a few percent of a step.

        Raises:
            ValueError: a parameter is not bfloat16.
        """
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=False, foreach=False)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dtype != torch.bfloat16:
                    raise ValueError(f"StochasticAdamW is for bfloat16 parameters, found {parameter.dtype}; use AdamW")
        self._update = _compiled_update() if compiled else _update
        self._seed = torch.initial_seed()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("StochasticAdamW takes no closure")
        learning = [
            parameter for group in self.param_groups for parameter in group["params"] if parameter.grad is not None
        ]
        if learning:
            with _seeded(self._seed + int(self._state_of(learning[0])["step"]), learning[0].device):
                self._update_all()

    def _update_all(self) -> None:
        for group in self.param_groups:
            scalars: dict[int, Tensor] = {}  # by step: one copy to the device, not one per parameter
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter)
                state["step"] += 1
                step = int(state["step"])
                if step not in scalars:
                    scalars[step] = _scalars(group, step).to(parameter.device)
                tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
                for weight, gradient, mean, square in zip(*map(_blocks, tensors), strict=True):
                    self._update(weight, gradient, mean, square, scalars[step])

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def round_stochastically(values: Tensor) -> Tensor:
    """Round float32 to one of the two nearest bfloat16 values, so that the expectation is the exact value."""
    bits = values.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)  # of the 16 bits that bfloat16 lacks; a carry rounds away from zero
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the generator of `device` as it was."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        generator = torch.cuda.default_generators[device.index] if on_gpu else torch.default_generator
        generator.manual_seed(seed % (1 << 63))
        yield


def _scalars(group: dict[str, Any], step: int) -> Tensor:
    """Return what `_update` needs of a group, as a tensor: numbers would be compiled in and recompiled every step."""
    beta1, beta2 = group["betas"]
    keep = 1.0 - group["lr"] * group["weight_decay"]
    rate, correction = group["lr"] / (1.0 - beta1**step), math.sqrt(1.0 - beta2**step)
    return torch.tensor([keep, rate, correction, beta1, beta2, group["eps"]])


def _update(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, scalars: Tensor) -> None:
    """Apply AdamW in float32 to flat bfloat16 tensors [n], in place; `scalars` [6] from `_scalars`."""
    keep, rate, correction, beta1, beta2, eps = scalars.unbind()
    grad = gradient.float()
    new_mean = torch.lerp(grad, mean.float(), beta1)
    new_square = torch.lerp(grad * grad, square.float(), beta2)
    new_weight = weight.float() * keep - rate * new_mean / (new_square.sqrt() / correction + eps)
    mean.copy_(round_stochastically(new_mean))
    square.copy_(round_stochastically(new_square))
    weight.copy_(round_stochastically(new_weight))


@lru_cache(maxsize=1)
def _compiled_update() -> Callable[..., None]:
    compiled: Callable[..., None] = torch.compile(_update, dynamic=True)
    return compiled


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    blocks: tuple[Tensor, ...] = local.view(-1).split(_BLOCK_NUMEL)
    return blocks
