"""Model FLOPs of an optimizer step, from the model's modules and the step's counts, and devices' peak rates.

Counted is what the stage needs, one multiply-add as two: matrix products of the layers, causal attention within each
sample, the head on supervised positions, projector, tower. Not counted: padding, recomputation, weight gradients of
frozen weights, norms and other elementwise work. MFU = these FLOPs / time / peak (Chowdhery et al., "PaLM", 2022, B).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.hub.weights import LlavaModel
from model.llava.fp8_linear import Fp8Linear, learns, linear_layers
from model.vision.joined_towers import JoinedTowers
from model.vision.native_tower import NativeTower
from model.vision.tower_builder import AnyTower
from model.vision.vision_tower import VisionTower
from pipeline.training.measures.metrics import StepCounts

PEAK_BFLOAT16_FLOPS: Final = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A40": 150e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
"""Dense bfloat16 peak of the vendor's datasheet (SXM where it exists), FLOP/s, by part of the device's name; the first
that fits counts."""


def peak_flops(device: torch.device) -> float | None:
    """Return the bfloat16 peak of a device, FLOP/s, or None for a CPU and for devices that are not listed."""
    return None if device.type != "cuda" else peak_of(torch.cuda.get_device_name(device))


def peak_of(device_name: str) -> float | None:
    """Return the bfloat16 peak of a device by its name, FLOP/s, or None when it is not listed."""
    return next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in device_name), None)


@dataclass(frozen=True)
class FlopModel:
    """FLOPs of forward and backward of the parts of a LLaVA model, as its `requires_grad` flags ask for."""

    per_token: int
    """All matrix products of the decoder's layers."""
    per_pair: int
    """Scores and weighted sums of all layers and heads for one (query, key) pair."""
    per_target: int
    """The output head at one supervised position."""
    per_tile: int
    """Tower (forward only) and projector for one tile."""
    tower_per_tile: int = 0
    """The tower's part of it."""

    @classmethod
    def of(cls, model: LlavaModel) -> FlopModel:
        """Read the sizes from a model with `requires_grad` set; its weights are not touched, so `meta` will do.

        Backward of a matrix product costs as much as forward for the gradient of its input, and again for that of its
        weight where it is trained; of attention, twice its forward. The projector's first input needs no gradient.
        """
        config, body = model.config, model.get_model()
        head_dim = config.head_dim if hasattr(config, "head_dim") else None
        width = config.num_attention_heads * (head_dim or config.hidden_size // config.num_attention_heads)
        tower, per_tile, in_tower = model.get_vision_tower(), 0, 0
        if tower is not None:
            first, *rest = [*linear_layers(body.mm_projector), None]
            unneeded = 0 if first is None else 2 * first.in_features * first.out_features
            projector = sum(_passes(layer) for layer in (first, *rest) if layer is not None) - unneeded
            in_tower = _tower_forward(tower) * (1 if tower.frozen else 3)
            per_tile = projector * tower.num_features + in_tower
        return cls(
            per_token=sum(_passes(layer) for decoder_layer in body.layers for layer in linear_layers(decoder_layer)),
            per_pair=3 * 4 * width * len(body.layers),
            per_target=_passes(model.lm_head),
            per_tile=per_tile,
            tower_per_tile=in_tower,
        )

    def without_tower(self) -> FlopModel:
        """Return the model of steps whose tower features are read from a cache."""
        return dataclasses.replace(self, per_tile=self.per_tile - self.tower_per_tile, tower_per_tile=0)

    def step(self, counts: StepCounts) -> float:
        """Return the FLOPs of an optimizer step."""
        return (
            self.per_token * counts.tokens
            + self.per_pair * counts.pairs
            + self.per_target * counts.targets
            + self.per_tile * counts.tiles
        )


def _passes(layer: nn.Linear | Fp8Linear) -> int:
    """Return the FLOPs of one row through a layer, forward and backward."""
    return 2 * layer.in_features * layer.out_features * (3 if learns(layer) else 2)


def _tower_forward(tower: AnyTower) -> int:
    """Count the operations of one image, on a twin without weights: a sharded tower may not run before its root.

    Of a tower of native resolution, those of one cell; attention is left out, for it depends on the image.
    """
    if isinstance(tower, NativeTower):
        twin = _twin_of(tower)
        assert isinstance(twin, NativeTower)
        matrices = [weight for layer in twin.layers for weight in layer.parameters() if weight.ndim > 1]
        return 2 * twin.side**2 * sum(weight.numel() for weight in matrices)
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),  # not every device's own kernel is known to the counter
        torch.device("meta"),
        FlopCounterMode(display=False) as counter,
    ):
        _twin_of(tower)(torch.empty(1, 3, tower.input_size, tower.input_size))
    return int(counter.get_total_flops())


def _twin_of(tower: AnyTower) -> AnyTower:
    if isinstance(tower, JoinedTowers):
        twin: AnyTower = JoinedTowers([VisionTower(one.spec, one.config) for one in tower.members], tower.stats)
    else:
        twin = type(tower)(tower.spec, tower.config)
    with torch.device("meta"):
        twin.build()
    return twin
