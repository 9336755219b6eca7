"""Device memory that a rank needs at the peak of a step, part by part.

Weights, gradients and optimizer state are exact. What a decoder layer keeps for backward is counted in elements per
token; the counts were fitted to peaks measured on H200 and H100 (docs/benchmarks), within 5 %.

h decoder width, V vocabulary.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import nn

from model.hub.weights import LlavaModel
from model.llava.loss import CHUNK_ROWS
from model.llava.packed_decoder import logit_cap_of
from model.vision.vision_tower import VisionTower
from pipeline.config import Recipe, TrainingConfig
from pipeline.training.optim import BYTES, moment_bytes

_QUANTIZED_BYTES: Final = {"nf4": 0.52, "int8": 1.01}  # with their scales
_VIT_WIDTHS: Final = 12
"""Elements that a layer of a ViT makes per patch, in widths: attention, norms and a fourfold MLP."""
_CLOSING: Final = ("o_proj", "out_proj", "down_proj")
"""Layers whose result returns to the residual stream; all others open a wider one."""
_RUNTIME_BYTES: Final = {True: 1 << 30, False: 400 << 20}
"""On a GPU: CUDA context, workspaces, fragments of torch's allocator. On a CPU: interpreter and libraries."""


class MemoryEstimate(NamedTuple):
    """Bytes of one rank at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    casts: int
    """Copies of weights in the type of the arithmetic, or gathered from other ranks."""
    activations: int
    """What the layers keep for backward, of the largest micro-batch."""
    loss: int
    """Logits of one chunk and the head's own gradient."""
    vision: int
    """Tower activations; they are gone before those of the decoder come."""
    runtime: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        held = self.weights + self.gradients + self.optimizer + self.casts + self.runtime
        return held + max(self.activations + self.loss, self.vision)


class LayerWidths(NamedTuple):
    """Sizes of one decoder layer, in elements per token."""

    hidden: int
    opening: int
    """Results of the linear layers that leave the residual stream: queries, keys, values, gate, up."""
    closing: int
    """Inputs of those that return to it: attention's result and the MLP's."""
    mlp: int
    """The MLP's alone."""

    @classmethod
    def of(cls, model: LlavaModel) -> LayerWidths:
        """Read them from a model's first layer."""
        layer = model.get_model().layers[0]
        linear = [(name, part) for name, part in layer.named_modules() if isinstance(part, nn.Linear)]
        own = [(name, part) for name, part in linear if "lora_" not in name]
        names = {name: name.removesuffix(".base_layer").endswith(_CLOSING) for name, _ in own}
        closing = [part.in_features for name, part in own if names[name]]
        return cls(
            hidden=model.get_model().embed_tokens.weight.shape[1],
            opening=sum(part.out_features for name, part in own if not names[name]),
            closing=sum(closing),
            mlp=max(closing),
        )


def kept_per_layer(widths: LayerWidths, training: TrainingConfig, *, trains_layers: bool) -> int:
    """Return the elements per token that a decoder layer keeps for backward, when it recomputes nothing by itself.

    `torch.compile` recomputes norms and activations from what they came from; without it each of them keeps its own,
    the norms in float32. With frozen weights the inputs of the first linear layers are not needed.
    """
    hidden, opening, closing, mlp = widths
    if training.gradient_checkpointing == "selective":
        return 4 * hidden + opening + closing - mlp
    if not trains_layers:
        return opening + closing if training.compile else 2 * hidden + opening + closing + mlp
    return 4 * hidden + opening + closing if training.compile else 11 * hidden + opening + closing + mlp


def estimate_memory(
    model: LlavaModel, recipe: Recipe, num_ranks: int, micro_batch_tokens: int, *, use_gpu: bool
) -> MemoryEstimate:
    """Estimate the peak of a rank.

    Args:
        model: a skeleton, with `requires_grad` set.
        recipe: of the run.
        num_ranks: number of workers W.
        micro_batch_tokens: tokens of the largest micro-batch.
        use_gpu: whether the rank runs on a GPU.
    """
    training = recipe.training
    compute, master = BYTES[training.precision], BYTES[training.master_dtype]
    shards = min(num_ranks, training.fsdp_group_size or num_ranks) if training.sharding == "fsdp" else 1
    on_device = 0 if training.cpu_offload else 1
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in _frozen_tower(model)) * compute
    return MemoryEstimate(
        weights=on_device * _weight_bytes(model, recipe) // shards + whole,
        gradients=on_device * trained * master // shards + _held_gradient_bytes(training, trained, shards),
        optimizer=on_device * _optimizer_bytes(model, training) // shards,
        casts=_cast_bytes(model, training, shards, compute, master),
        activations=_activation_bytes(model, training, micro_batch_tokens, compute),
        loss=_loss_bytes(model, compute),
        vision=_vision_bytes(model, training, compute),
        runtime=_RUNTIME_BYTES[use_gpu],
    )


def _held_gradient_bytes(training: TrainingConfig, trained: int, shards: int) -> int:
    """Return the bytes of whole gradients, which wait for the end of the step if they are only summed then."""
    return trained * BYTES[training.reduce_dtype] if shards > 1 and training.reduce_gradients == "step" else 0


def _optimizer_bytes(model: LlavaModel, training: TrainingConfig) -> int:
    """Return the bytes of both moments of everything that learns."""
    sizes: list[int] = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return moment_bytes(sizes, training)


def _weight_bytes(model: LlavaModel, recipe: Recipe) -> int:
    """Return the bytes of everything but a frozen tower, in the types they are stored in."""
    tower, total = set(_frozen_tower(model)), 0.0
    frozen, trained = BYTES[recipe.training.precision], BYTES[recipe.training.master_dtype]
    quantized = {
        id(part.weight)
        for layer in model.get_model().layers
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear) and "lora_" not in name and recipe.lora.quantize_base is not None
    }
    for parameter in model.parameters():
        if parameter in tower:
            continue
        size: float = trained if parameter.requires_grad else frozen
        if id(parameter) in quantized and recipe.lora.quantize_base is not None:
            size = _QUANTIZED_BYTES[recipe.lora.quantize_base]
        total += parameter.numel() * size
    return int(total)


def _cast_bytes(model: LlavaModel, training: TrainingConfig, shards: int, compute: int, master: int) -> int:
    """Return the bytes of weights in addition to their stored form."""
    body = model.get_model()
    layers: list[int] = [sum(parameter.numel() for parameter in layer.parameters()) for layer in body.layers]
    if shards > 1:  # two layers, since the next one is gathered ahead, and the root unit with its gradients
        parts = (_frozen_tower(model), *(layer.parameters() for layer in body.layers))
        root: int = sum(p.numel() for p in model.parameters()) - sum(p.numel() for part in parts for p in part)
        gradient_bytes = 4 if any(parameter.requires_grad for parameter in body.layers.parameters()) else 0
        return 2 * max(layers) * compute + root * (compute + gradient_bytes)
    inner = [part for part in body.layers.modules() if isinstance(part, nn.Linear) and part.weight.requires_grad]
    in_layers = sum(part.weight.numel() for part in inner)
    head = model.lm_head.weight.numel() if model.lm_head.weight.requires_grad else 0
    if training.linear_precision == "fp8":  # by row and by column, a byte each; adapters are few
        return 2 * in_layers + (0 if compute == master else head * compute)
    return 0 if compute == master else (in_layers + head) * compute


def _activation_bytes(model: LlavaModel, training: TrainingConfig, tokens: int, compute: int) -> int:
    body, widths = model.get_model(), LayerWidths.of(model)
    trains_layers = any(parameter.requires_grad for parameter in body.layers.parameters())
    num_layers = len(body.layers)
    kept = kept_per_layer(widths, training, trains_layers=trains_layers)
    per_token = num_layers * (widths.hidden if training.gradient_checkpointing is True else kept)
    if training.gradient_checkpointing is True:
        per_token += kept  # of the layer that is being recomputed
    return tokens * compute * (per_token + _trained_tower_elements(model))


def _loss_bytes(model: LlavaModel, compute: int) -> int:
    """Return a chunk's logits (float32 probabilities, logits and their gradient) and the head's float32 gradient."""
    vocabulary, hidden = model.lm_head.weight.shape
    per_logit = 4 + 2 * compute + (0 if logit_cap_of(model.config) is None else 8)  # capped, and the cap's slope
    chunk = CHUNK_ROWS * vocabulary * per_logit
    return int(chunk + (vocabulary * hidden * 4 if model.lm_head.weight.requires_grad else 0))


def _vision_bytes(model: LlavaModel, training: TrainingConfig, compute: int) -> int:
    """Return one layer's activations of a frozen tower over a batch of tiles, in the widths of a ViT."""
    per_tile = [member.num_features * _VIT_WIDTHS * member.hidden_size for member in _towers(model)]
    return training.vision_batch_size * max(per_tile, default=0) * compute


def _trained_tower_elements(model: LlavaModel) -> int:
    """Return the elements per token that a tower keeps when it learns, were every token a feature of an image."""
    return sum(
        0 if member.frozen else len(member.layers) * _VIT_WIDTHS * member.hidden_size for member in _towers(model)
    )


def _towers(model: LlavaModel) -> list[VisionTower]:
    tower = model.get_vision_tower()
    return [] if tower is None else [tower] if isinstance(tower, VisionTower) else list(tower.members)


def _frozen_tower(model: LlavaModel) -> list[nn.Parameter]:
    """Return the parameters that every rank holds whole."""
    return [parameter for member in _towers(model) if member.frozen for parameter in member.parameters()]
