"""Model FLOPs of a training step, from shapes and lengths, and the peak rates to hold them against.

Counted is what the stage needs, one multiply-add as two: matrix products of the layers, causal attention within each
sample, the head on supervised positions, projector, tower. Not counted: padding, recomputation, weight gradients of
frozen weights, norms and other elementwise work. MFU = these FLOPs / time / peak (Chowdhery et al., "PaLM", 2022, B).

Shapes: L fused tokens of a sample, P features per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from model.llava_llama import LlavaConfig

PEAK_BFLOAT16_FLOPS: Final = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 peak of the vendor's datasheet (SXM where it exists), FLOP/s, by part of the device's name."""


class SampleSize(NamedTuple):
    """What a sample costs depends on."""

    num_tokens: int
    """Fused length L, image features included."""
    num_images: int
    num_targets: int
    """Supervised tokens."""


@dataclass(frozen=True)
class FlopModel:
    """Forward FLOPs of the parts of a LLaVA model."""

    layer_linear_per_token: int
    """All matrix products of one decoder layer."""
    layer_attention_per_pair: int
    """Scores and weighted sum of one decoder layer for one (query, key) pair over all heads."""
    num_layers: int
    head_per_target: int
    projector_first_per_image: int
    """First projector layer: its input needs no gradient."""
    projector_rest_per_image: int
    tower_per_image: int

    @classmethod
    def of(cls, config: LlavaConfig, num_tower_layers: int) -> FlopModel:
        """Read the sizes from a model's config.

        Args:
            config: of a model with a CLIP tower and an `mlp2x_gelu` projector.
            num_tower_layers: tower layers that run.
        """
        width, heads = config.hidden_size, config.num_attention_heads
        head_dim = config.head_dim or width // heads
        attention_width, shared_width = heads * head_dim, (config.num_key_value_heads or heads) * head_dim
        parameters = 2 * width * attention_width + 2 * width * shared_width + 3 * width * config.intermediate_size
        tower = dict(config.mm_vision_config or {})
        patches = (tower["image_size"] // tower["patch_size"]) ** 2
        return cls(
            layer_linear_per_token=2 * parameters,
            layer_attention_per_pair=4 * attention_width,
            num_layers=config.num_hidden_layers,
            head_per_target=2 * width * config.vocab_size,
            projector_first_per_image=2 * patches * tower["hidden_size"] * width,
            projector_rest_per_image=2 * patches * width * width,
            tower_per_image=_tower_flops(tower, patches, num_tower_layers),
        )

    def step(self, samples: Sequence[SampleSize], stage: Literal["pretrain", "finetune"]) -> float:
        """Return the FLOPs of forward and backward over `samples`.

        Backward of a matrix product costs as much as forward for the gradient of its input, and again for that of its
        weight; of attention, twice its forward.
        """
        tokens = sum(sample.num_tokens for sample in samples)
        pairs = sum(sample.num_tokens * (sample.num_tokens + 1) // 2 for sample in samples)
        images = sum(sample.num_images for sample in samples)
        targets = sum(sample.num_targets for sample in samples)
        linear = self.num_layers * tokens * self.layer_linear_per_token + targets * self.head_per_target
        attention = self.num_layers * pairs * self.layer_attention_per_pair
        projector = images * (2 * self.projector_first_per_image + 3 * self.projector_rest_per_image)
        passes = 3 if stage == "finetune" else 2
        return float(passes * linear + 3 * attention + projector + images * self.tower_per_image)


def peak_flops(device_name: str) -> float | None:
    """Return the bfloat16 peak of a device, FLOP/s, or None when it is not listed."""
    return next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in device_name), None)


def _tower_flops(tower: dict[str, int], patches: int, num_layers: int) -> int:
    width, tokens = tower["hidden_size"], patches + 1  # and the class token
    linear = 2 * tokens * (4 * width * width + 2 * width * tower["intermediate_size"])
    attention = 4 * tokens * tokens * width
    embedding = 2 * patches * width * 3 * tower["patch_size"] ** 2
    return num_layers * (linear + attention) + embedding
