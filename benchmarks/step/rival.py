"""The strongest stack that a user can put together today: transformers' Llava on packed rows.

Samples are packed greedily into rows, attention is torch's varlen kernel, or FlashAttention-4 through our
operator, which torch.compile keeps whole; the head runs through Liger's fused linear cross entropy, layers are Liger's
or compiled one by one, the optimizer is fused AdamW, adapters are peft's, FP8 is torchao's. Packing on the host,
normalising and the copy to the device happen before the clock starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from benchmarks.step.baseline import Baseline, StepResult
from benchmarks.step.measure import Timing, time_steps
from benchmarks.step.ours import samples_of
from benchmarks.step.scenarios import BaselineSettings, RivalSettings, Scenario
from benchmarks.step.shapes import IMAGE_MEAN, IMAGE_STD
from benchmarks.step.workloads import TextSize, build_rank_step
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.llava.flash_attention_4 import flash_attention_4
from pipeline.plan.plan import Plan
from pipeline.stream.rank_step import RankStep

_IMAGE_ID = 2
"""An id that random text never holds stands for an image feature."""


class Row(NamedTuple):
    """A packed row on the device."""

    input_ids: Tensor
    """int64 [1, S]."""
    labels: Tensor
    """int64 [1, S]; the first of every sample is ignored."""
    position_ids: Tensor
    """int64 [1, S]."""
    cu_seqlens: Tensor
    """int32 [B + 1]."""
    max_seqlen: int
    pixels: Tensor | None
    """float32 [N, 3, H, W]."""


class Rival:
    """Model and optimizer of the other side."""

    def __init__(self, scenario: Scenario, settings: RivalSettings, device: torch.device) -> None:
        """Build them with random weights, as `Baseline` does, and speed them up as the settings say."""
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        self._scenario, self._settings, self._device = scenario, settings, device
        base = Baseline(scenario, BaselineSettings(1, settings.gradient_checkpointing), device)
        self.model: Any = base.model
        decoder = self.model.model.language_model
        self._loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum")
        if scenario.lora_rank is not None:
            _add_adapters(self.model, scenario.lora_rank, _dtype(scenario.master_dtype))
        if settings.layers == "liger":
            _use_liger(decoder)
        if settings.fp8:
            _use_fp8(decoder)
        _register_attention()
        decoder.set_attn_implementation(f"rows_{settings.attention}")
        if settings.layers == "compiled":
            _compile_layers(decoder)
            _compile_layers(self.model.model.vision_tower)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=scenario.learning_rate, weight_decay=0.0, fused=True, eps=1e-8
        )

    def rows(self, plan: Plan, step: int, sizes: Sequence[TextSize]) -> list[Row]:
        """Draw the samples of a step and pack them, in order, into rows on the device."""
        rank_step = build_rank_step(plan, step, sizes, self._scenario.shape)
        packed = pack(rank_step, self._scenario.features_per_image, self._settings.row_tokens)
        return [_to_row(samples, self._device) for samples in packed]

    def step(self, rows: Sequence[Row]) -> StepResult:
        """Accumulate gradients over `rows` and update."""
        num_targets = sum(int((row.labels != IGNORE_INDEX).sum()) for row in rows)
        total = torch.zeros((), device=self._device)
        for row in rows:
            loss = self._forward(row) / num_targets
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(float(total), float(norm))

    def _forward(self, row: Row) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._scenario.precision == "bfloat16"):
            hidden = self.model.model(
                input_ids=row.input_ids,
                position_ids=row.position_ids,
                pixel_values=row.pixels,
                use_cache=False,
                cu_seq_lens_q=row.cu_seqlens,
                cu_seq_lens_k=row.cu_seqlens,
                max_length_q=row.max_seqlen,
                max_length_k=row.max_seqlen,
            ).last_hidden_state
            weight = self.model.lm_head.weight.to(torch.bfloat16)
            loss: Tensor = self._loss(weight, hidden[0, :-1].to(torch.bfloat16), row.labels[0, 1:])
        return loss


def time_rival(scenario: Scenario, settings: RivalSettings, device: torch.device) -> Timing:
    """Time optimizer steps over the same samples as our side's."""
    sizes = scenario.sizes()
    plan = scenario.plan(sizes, settings.row_tokens)
    rival = Rival(scenario, settings, device)
    computed_tokens: list[int] = []
    num_warmup = scenario.num_warmup_steps
    waiting = [rival.rows(plan, step, sizes) for step in reversed(range(plan.total_steps))]

    def one_step() -> float:
        rows = waiting.pop()
        computed_tokens.append(sum(row.input_ids.numel() for row in rows))
        return rival.step(rows).loss

    times, losses, peak = time_steps([one_step] * plan.total_steps, num_warmup, device)
    counted = range(num_warmup, plan.total_steps)
    return Timing(
        step_times_s=times,
        samples=tuple(samples_of(plan, step, sizes, scenario.features_per_image) for step in counted),
        computed_tokens=tuple(computed_tokens[num_warmup:]),
        losses=losses,
        memory_peak_bytes=peak,
    )


Sample = tuple[Tensor, Tensor, Tensor]
"""Ids with one image id per feature, labels, pixels."""


def pack(rank_step: RankStep, features_per_image: int, row_tokens: int) -> list[list[Sample]]:
    """Fill one row after the other with the samples of a step, in their order."""
    lengths, num_images = rank_step.text_lengths.tolist(), rank_step.num_images.tolist()
    columns = (rank_step.input_ids.split(lengths), rank_step.labels.split(lengths), rank_step.pixels.split(num_images))
    rows: list[list[Sample]] = [[]]
    filled = 0
    for ids, labels, pixels in zip(*columns, strict=True):
        repeats = torch.where(ids == IMAGE_TOKEN_INDEX, features_per_image, 1)
        long_ids = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, _IMAGE_ID).repeat_interleave(repeats).long()
        long_labels = labels.repeat_interleave(repeats).long()
        if rows[-1] and filled + len(long_ids) > row_tokens:
            rows.append([])
            filled = 0
        rows[-1].append((long_ids, long_labels, pixels))
        filled += len(long_ids)
    return rows


def _to_row(samples: Sequence[Sample], device: torch.device) -> Row:
    lengths = [len(ids) for ids, _, _ in samples]
    pixels = torch.cat([pixels for _, _, pixels in samples])
    mean, std = (torch.tensor(values, device=device) for values in (IMAGE_MEAN, IMAGE_STD))
    starts = torch.tensor([IGNORE_INDEX])
    return Row(
        input_ids=torch.cat([ids for ids, _, _ in samples]).to(device)[None],
        labels=torch.cat([torch.cat([starts, labels[1:]]) for _, labels, _ in samples]).to(device)[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths]).to(device)[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int().to(device),
        max_seqlen=max(lengths),
        pixels=((pixels.to(device) / 255.0 - mean) / std).movedim(-1, 1).contiguous() if len(pixels) else None,
    )


def _register_attention() -> None:
    for name, attend in (("rows_varlen", _attend_varlen), ("rows_fa4", _attend_fa4), ("rows_sdpa", _attend_sdpa)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, flash_attention_mask)


def _attend_varlen(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = _by_token(query, key, value)
    out: Any = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, window_size=(-1, 0), scale=scaling
    )
    return out[None], None


def _attend_fa4(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    q, k, v = _by_token(query, key, value)
    return flash_attention_4(q, k, v, cu_seq_lens_q, max_length_q, None, scaling)[None], None


def _attend_sdpa(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend sample by sample; for trying the rest on a CPU."""
    parts = zip(*(x.split(cu_seq_lens_q.diff().tolist(), dim=2) for x in (query, key, value)), strict=True)
    attend = nn.functional.scaled_dot_product_attention
    out = [attend(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _by_token(*states: Tensor) -> list[Tensor]:
    if torch.is_autocast_enabled("cuda"):
        states = tuple(state.to(torch.get_autocast_dtype("cuda")) for state in states)
    return [state[0].transpose(0, 1) for state in states]


def _dtype(name: Literal["float32", "bfloat16"]) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _compile_layers(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if name.rpartition(".")[2] == "layers":
            for layer in part.children():
                layer.compile(dynamic=True)


def _use_liger(decoder: nn.Module) -> None:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=decoder
    )


def _use_fp8(decoder: nn.Module) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name("rowwise")
    convert_to_float8_training(decoder, config=config, module_filter_fn=lambda _module, name: "lora_" not in name)


def _add_adapters(model: Any, rank: int, dtype: torch.dtype) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    decoder = model.model.language_model
    targets = [name for name, part in decoder.named_modules() if isinstance(part, nn.Linear)]
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=targets), decoder)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    model.model.multi_modal_projector.requires_grad_(True)
