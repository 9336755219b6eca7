"""Fast paths against plain computation in float32, on the device that is timed, on fresh random inputs.

Errors are norms of differences over norms of references. Bounds are what bfloat16 itself costs: for whole models the
error of plain padded computation in bfloat16, with some room; for single operations 1e-2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.step.shapes import build_model
from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.embedding import FusionSettings, fuse_inputs
from model.fusion.packed import PackedBatch, pack_samples
from model.llava.attention import AttentionKernel, attention_forward, enable_packed_attention, segments_of
from model.llava.loss import cross_entropy_sum
from pipeline.assembly.acceleration import accelerate
from pipeline.config import TrainingConfig
from pipeline.training.stochastic_adamw import StochasticAdamW

_OPERATION_BOUND: Final = 1e-2
_ROOM: Final = 1.5
"""Errors of two bfloat16 computations of the same thing differ this much by chance."""
LENGTHS: Final = (67, 1, 211, 31, 5, 127)


class Check(NamedTuple):
    """One comparison."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the bound."""
        return self.error <= self.bound


class ModelInputs(NamedTuple):
    """The same samples padded and packed."""

    input_ids: Tensor
    """[B, T]."""
    attention_mask: Tensor
    """[B, T]."""
    labels: Tensor
    """[B, T]."""
    pixels: Tensor
    """[N, 3, H, W], normalised."""
    packed: PackedBatch


def check_all(
    device: torch.device, kernels: Sequence[AttentionKernel], shape: str, seed: int, compiled: bool
) -> list[Check]:
    """Run every comparison.

    Args:
        device: where.
        kernels: attention choices to check.
        shape: named size of the model.
        seed: of weights and inputs.
        compiled: also check compiled layers and the compiled optimizer.
    """
    torch.manual_seed(seed)
    checks = [check_fusion(device), *check_chunked_loss(device), *check_optimizer(device, compiled)]
    for kernel in kernels:
        checks += check_kernel(device, kernel)
    return checks + check_models(device, kernels, shape, compiled)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over the norm of `wanted`, in float64."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm())


def check_fusion(device: torch.device) -> Check:
    """Compare vectorised fusion with splicing row by row; both copy, so they must be equal."""
    rows, text, features_per_image, width = 7, 61, 13, 32
    embed = nn.Embedding(97, width, device=device, dtype=torch.bfloat16)
    ids = torch.randint(0, 97, (rows, text))
    for row in range(rows):
        ids[row, torch.randperm(text)[: row % 4]] = IMAGE_TOKEN_INDEX
    num_images = int((ids == IMAGE_TOKEN_INDEX).sum())
    features = torch.randn(num_images, features_per_image, width, device=device, dtype=torch.bfloat16)
    settings = FusionSettings("right", None, False)
    sizes = (features_per_image,) * num_images
    got = fuse_inputs(embed, ids.to(device), None, None, features.flatten(0, 1), sizes, settings)
    images = iter(features)
    spliced = []
    for row_ids in ids:
        pieces = [next(images) if i == IMAGE_TOKEN_INDEX else embed(i.to(device))[None] for i in row_ids]
        spliced.append(torch.cat(pieces))
    wanted = nn.utils.rnn.pad_sequence(spliced, batch_first=True)
    return Check("fusion, against splicing row by row", relative_error(got.inputs_embeds, wanted), 0.0)


def check_chunked_loss(device: torch.device) -> list[Check]:
    """Compare the chunked loss and its gradients in bfloat16 with full float32 logits."""
    targets = torch.randint(0, 4099, (2503,), device=device)
    hidden, head = (torch.randn(n, 128, device=device) * 0.3 for n in (len(targets), 4099))
    exact = [tensor.bfloat16().float().requires_grad_() for tensor in (hidden, head)]
    wanted = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    rounded = [tensor.bfloat16().requires_grad_() for tensor in (hidden, head)]
    got = cross_entropy_sum(rounded[0], rounded[1], targets)
    pairs = [("value", got, wanted)]
    gradients = zip(torch.autograd.grad(got, rounded), torch.autograd.grad(wanted, exact), strict=True)
    pairs += [(name, *pair) for name, pair in zip(("gradient of hidden", "gradient of head"), gradients, strict=True)]
    return [Check(f"chunked loss, {name}", relative_error(a, b), _OPERATION_BOUND) for name, a, b in pairs]


def check_optimizer(device: torch.device, compiled: bool) -> list[Check]:
    """Compare bfloat16 with float32 AdamW over some steps: error of the mean movement, which rounding must keep."""
    start = torch.randn(1 << 20, device=device).bfloat16()
    ours, exact = nn.Parameter(start.clone()), nn.Parameter(start.float())
    group = [{"params": [ours], "weight_decay": 0.0}]
    optimizer = StochasticAdamW(group, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, compiled=compiled)
    reference = torch.optim.AdamW([exact], lr=1e-4, weight_decay=0.0)
    for _ in range(30):
        gradient = (torch.randn_like(exact) + 0.5).bfloat16()
        ours.grad, exact.grad = gradient, gradient.float()
        optimizer.step()
        reference.step()
    moved, wanted = (ours.float() - start.float()).mean(), (exact - start.float()).mean()
    return [Check("bfloat16 AdamW, mean movement of 30 steps", relative_error(moved, wanted), 0.05)]


def check_kernel(device: torch.device, kernel: AttentionKernel) -> list[Check]:
    """Compare a kernel on packed rows with dense masked attention in float32, values and gradients."""
    batch = pack_samples([(torch.ones(n, dtype=torch.int64),) * 2 for n in LENGTHS], []).to(device)
    total, heads, groups, width = sum(LENGTHS), 8, 2, 64
    inputs = [torch.randn(1, n, total, width, device=device).bfloat16() for n in (heads, groups, groups)]
    upstream = torch.randn(1, total, heads, width, device=device).bfloat16()

    def run(values: list[Tensor], attend: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [value.detach().clone().requires_grad_() for value in values]
        out = attend(*leaves)
        return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]

    segments = segments_of(batch, kernel, torch.bfloat16)
    got = run(inputs, lambda q, k, v: attention_forward(nn.Module(), q, k, v, None, segments=segments)[0])
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(device)
    steps = torch.arange(total, device=device)
    mask = (document[:, None] == document) & (steps[:, None] >= steps)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
        scores = (q @ k.transpose(2, 3) * width**-0.5).masked_fill(~mask, -torch.inf)
        out: Tensor = (scores.softmax(-1) @ v).transpose(1, 2)
        return out

    wanted = run([value.float() for value in inputs], dense)
    names = ("output", "query gradient", "key gradient", "value gradient")
    return [
        Check(f"attention {segments.kernel}, {name}", relative_error(a, b), _OPERATION_BOUND)
        for name, a, b in zip(names, got, wanted, strict=True)
    ]


def check_models(device: torch.device, kernels: Sequence[AttentionKernel], shape: str, compiled: bool) -> list[Check]:
    """Compare packed computation of a whole model with padded computation in float32: loss and two gradients."""
    model = build_model(shape, device, torch.bfloat16)
    inputs = _draw_inputs(model, device)
    exact = copy.deepcopy(model)
    nn.Module.float(exact)
    wanted = _padded(exact, inputs)
    bounds = [_ROOM * relative_error(a, b) + 1e-3 for a, b in zip(_padded(model, inputs), wanted, strict=True)]
    variants: list[tuple[str, AttentionKernel, dict[str, Any]]] = [(f"packed, {k}", k, {}) for k in kernels]
    variants += [
        (f"packed, {mode} recomputation", "auto", {"gradient_checkpointing": mode == "full" or "selective"})
        for mode in ("full", "selective")
    ]
    variants += [("packed, compiled", "auto", {"compile": True})] if compiled else []
    checks = []
    for name, kernel, options in variants:
        variant = copy.deepcopy(model)
        enable_packed_attention(variant, kernel)
        accelerate(variant, TrainingConfig(global_batch_size=1, learning_rate=1.0, **options))
        nn.Module.train(variant)
        for what, got, reference, bound in zip(_COMPARED, _packed(variant, inputs), wanted, bounds, strict=True):
            checks.append(Check(f"{name}, {what}", relative_error(got, reference), bound))
    return checks


_COMPARED: Final = ("loss", "projector gradient", "key gradient")


def _draw_inputs(model: LlavaLlamaForCausalLM, device: torch.device) -> ModelInputs:
    tower = model.get_vision_tower()
    assert tower is not None
    rows = [torch.randint(3, model.config.vocab_size, (length,)) for length in LENGTHS]
    for index, row in enumerate(rows):
        row[1 : 1 + (index % 2)] = IMAGE_TOKEN_INDEX
    labels = [row.masked_fill(row == IMAGE_TOKEN_INDEX, IGNORE_INDEX) for row in rows]
    num_images = sum(int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows)
    packed = pack_samples(list(zip(rows, labels, strict=True)), [tower.num_features] * num_images)

    def stack(values: list[Tensor], padding: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding).to(device)

    return ModelInputs(
        input_ids=stack(rows, 0),
        attention_mask=stack([torch.ones_like(row) for row in rows], 0),
        labels=stack(labels, IGNORE_INDEX),
        pixels=torch.randn(num_images, 3, tower.image_size, tower.image_size, device=device),
        packed=packed.to(device),
    )


def _padded(model: LlavaLlamaForCausalLM, inputs: ModelInputs) -> list[Tensor]:
    """Return the summed loss and gradients of padded computation."""
    model.zero_grad()
    loss = model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        labels=inputs.labels,
        images=inputs.pixels,
        num_items_in_batch=torch.ones((), device=inputs.pixels.device),
    ).loss
    loss.backward()
    return _compared(model, loss)


def _packed(model: LlavaLlamaForCausalLM, inputs: ModelInputs) -> list[Tensor]:
    model.zero_grad()
    features = model.encode_vision(inputs.pixels).flatten(0, 1)
    loss = model.packed_loss(inputs.packed, features)
    loss.backward()
    return _compared(model, loss)


def _compared(model: LlavaLlamaForCausalLM, loss: Tensor) -> list[Tensor]:
    body: Any = model.get_model()
    gradients = [body.mm_projector[0].weight.grad, body.layers[0].self_attn.k_proj.weight.grad]
    return [loss.detach(), *(gradient.detach().clone() for gradient in gradients)]
