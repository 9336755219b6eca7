"""The other side: `transformers.LlavaForConditionalGeneration` as its users train it.

Batches are padded to their longest sample, attention is sdpa, logits exist for every position, the loss is the model's
own; bfloat16 autocast, fused AdamW, gradient accumulation over the same samples per optimizer step as ours. Inputs are
collated, normalised and on the device before the clock starts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from model.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.benchmark.measure import Timing, time_steps
from pipeline.benchmark.ours import samples_of
from pipeline.benchmark.scenarios import BaselineSettings, Scenario
from pipeline.benchmark.shapes import created_as, language_config, vision_config
from pipeline.benchmark.workloads import MAX_LENGTH, build_rank_step
from pipeline.loader import RankStep

_IMAGE_ID = 2
"""An id that random text never holds stands for an image feature."""


class PaddedBatch(NamedTuple):
    """Arguments of the model, on the device."""

    input_ids: Tensor
    """[B, S] int64, one image id per feature."""
    attention_mask: Tensor
    """[B, S] int64."""
    labels: Tensor
    """[B, S] int64."""
    pixel_values: Tensor | None
    """[N, 3, H, W] bfloat16; None for a batch of texts."""


def build_baseline(
    scenario: Scenario, settings: BaselineSettings, device: torch.device
) -> LlavaForConditionalGeneration:
    """Build the model with random weights: frozen parts in bfloat16, trained ones in the scenario's type."""
    config = LlavaConfig(
        vision_config=vision_config(scenario.shape),
        text_config=language_config(scenario.shape),
        image_token_index=_IMAGE_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language_config(scenario.shape).tie_word_embeddings,
    )
    master = torch.float32 if scenario.master_dtype == "float32" else torch.bfloat16
    torch.manual_seed(0)
    with created_as(device, master if scenario.stage == "finetune" else torch.bfloat16):
        model = LlavaForConditionalGeneration(config)
    model.requires_grad_(scenario.stage == "finetune")
    model.model.vision_tower.requires_grad_(False).to(torch.bfloat16)
    model.model.multi_modal_projector.requires_grad_(True).to(master)
    model.train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def time_baseline(scenario: Scenario, settings: BaselineSettings, device: torch.device) -> Timing:
    """Time optimizer steps over the same samples as our side's."""
    sizes = scenario.sizes()
    plan = scenario.plan(sizes, MAX_LENGTH * settings.batch_size)
    model = build_baseline(scenario, settings, device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.0, fused=device.type == "cuda")
    computed_tokens: list[int] = []
    waiting: list[list[PaddedBatch]] = []

    def one_step() -> float:
        batches = waiting.pop()
        computed_tokens.append(sum(batch.input_ids.numel() for batch in batches))
        return _optimizer_step(model, optimizer, parameters, batches)

    steps = range(scenario.num_warmup_steps - 1, plan.total_steps)  # nothing is compiled: one step of warm-up will do
    for step in reversed(steps):
        rank_step = build_rank_step(plan, step, sizes, scenario.shape)
        waiting.append(collate(rank_step, plan.samples(step).tolist(), settings, scenario.features_per_image, device))
    times, losses, peak = time_steps([one_step] * len(steps), 1, device)
    counted = steps[1:]
    return Timing(
        step_times_s=times,
        samples=tuple(samples_of(plan, step, sizes, scenario.features_per_image) for step in counted),
        computed_tokens=tuple(computed_tokens[1:]),
        losses=losses,
        memory_peak_bytes=peak,
    )


def _optimizer_step(
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    batches: list[PaddedBatch],
) -> float:
    """Accumulate gradients over `batches` and update; returns the mean loss."""
    total = 0.0
    for batch in batches:
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):
            loss = model(**batch._asdict(), use_cache=False).loss / len(batches)
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total)


def collate(
    rank_step: RankStep,
    sample_ids: list[int],
    settings: BaselineSettings,
    features_per_image: int,
    device: torch.device,
) -> list[PaddedBatch]:
    """Cut the samples of a step into padded batches, in the order of the plan or by length."""
    lengths, num_images = rank_step.text_lengths.tolist(), rank_step.num_images.tolist()
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    columns = (rank_step.input_ids.split(lengths), rank_step.labels.split(lengths), rank_step.pixels.split(num_images))
    for sample_id, ids, labels, pixels in zip(rank_step.sample_ids.tolist(), *columns, strict=True):
        repeats = torch.where(ids == IMAGE_TOKEN_INDEX, features_per_image, 1)
        ids = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, _IMAGE_ID)
        parts[sample_id] = (ids.repeat_interleave(repeats), labels.repeat_interleave(repeats), pixels)
    if settings.group_by_length:
        sample_ids = sorted(sample_ids, key=lambda sample_id: len(parts[sample_id][0]))
    chunks = [
        sample_ids[start : start + settings.batch_size] for start in range(0, len(sample_ids), settings.batch_size)
    ]
    return [_pad([parts[sample_id] for sample_id in chunk], device) for chunk in chunks]


def _pad(samples: list[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> PaddedBatch:
    def stack(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True, padding_value=value)

    ids = stack([ids for ids, _, _ in samples], 0)
    mask = stack([torch.ones_like(ids) for ids, _, _ in samples], 0)
    labels = stack([labels for _, labels, _ in samples], IGNORE_INDEX)
    pixels = torch.cat([pixels for _, _, pixels in samples])
    normalised: Any = ((pixels.to(device) / 255.0 - 0.45) / 0.27).to(torch.bfloat16) if len(pixels) else None
    return PaddedBatch(ids.to(device), mask.to(device), labels.to(device), normalised)
