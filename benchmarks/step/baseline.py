"""The other side: `transformers.LlavaForConditionalGeneration` as its users train it.

Batches are padded to their longest sample, attention is sdpa, logits exist for every position, the loss is the model's
own, divided by the targets of all accumulated batches as transformers' Trainer does; fused AdamW, gradient accumulation
over the same samples per optimizer step as ours. Inputs are collated, normalised and on the device before the clock
starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks.step.measure import Timing, time_steps
from benchmarks.step.ours import samples_of
from benchmarks.step.scenarios import BaselineSettings, Scenario
from benchmarks.step.shapes import IMAGE_MEAN, IMAGE_STD, created_as, language_config, vision_config
from benchmarks.step.workloads import MAX_LENGTH, TextSize, build_rank_step
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.hub.weights import LlavaModel
from pipeline.plan.plan import Plan
from pipeline.stream.rank_step import RankStep

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_IMAGE_ID: Final = 2
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
    """[N, 3, H, W] float32; None for a batch of texts."""


class StepResult(NamedTuple):
    """Numbers of one optimizer step."""

    loss: float
    """Mean over supervised tokens."""
    grad_norm: float


class Baseline:
    """Model and optimizer of the other side."""

    def __init__(self, scenario: Scenario, settings: BaselineSettings, device: torch.device) -> None:
        """Build them with random weights: frozen parts in the scenario's precision, trained ones in its master type."""
        self._scenario, self._settings, self._device = scenario, settings, device
        self.model = _build_model(scenario, settings, device)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=scenario.learning_rate, weight_decay=0.0, fused=True, eps=1e-8
        )

    def batches(self, plan: Plan, step: int, sizes: Sequence[TextSize]) -> list[PaddedBatch]:
        """Draw the samples of a step and cut them into padded batches on the device."""
        rank_step = build_rank_step(plan, step, sizes, self._scenario.shape)
        features_per_image, ids = self._scenario.features_per_image, plan.samples(step).tolist()
        return collate(rank_step, ids, self._settings, features_per_image, self._device)

    def forward(self, batch: PaddedBatch, num_targets: int) -> Tensor:
        """Return a batch's sum of cross-entropy divided by `num_targets`."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._scenario.precision == "bfloat16"):
            loss: Tensor = self.model(**batch._asdict(), use_cache=False, num_items_in_batch=num_targets).loss
        return loss

    def step(self, batches: Sequence[PaddedBatch]) -> StepResult:
        """Accumulate gradients over `batches` and update."""
        num_targets = sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches)
        total = torch.zeros((), device=self._device)
        for batch in batches:
            loss = self.forward(batch, num_targets)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(float(total), float(norm))


def _build_model(scenario: Scenario, settings: BaselineSettings, device: torch.device) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=vision_config(scenario.shape),
        text_config=language_config(scenario.shape),
        image_token_index=_IMAGE_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language_config(scenario.shape).tie_word_embeddings,
    )
    frozen, master = _DTYPES[scenario.precision], _DTYPES[scenario.master_dtype]
    torch.manual_seed(0)
    with created_as(device, master if scenario.stage == "finetune" else frozen):
        model = LlavaForConditionalGeneration(config)
    model.requires_grad_(scenario.stage == "finetune")
    model.model.vision_tower.requires_grad_(False).to(frozen)
    model.model.multi_modal_projector.requires_grad_(True).to(master)
    model.train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def copy_weights(model: LlavaModel, other: LlavaForConditionalGeneration) -> None:
    """Give the other side the weights of ours; both are LLaMA with a CLIP tower and a two-layer projector."""
    body: Any = model.get_model()
    weights = body.state_dict()
    own_parts = ("vision_tower.", "mm_projector.")
    other.model.language_model.load_state_dict(
        {name: tensor for name, tensor in weights.items() if not name.startswith(own_parts)}
    )
    other.model.vision_tower.load_state_dict(body.vision_tower.vision_tower.state_dict())
    other.model.multi_modal_projector.linear_1.load_state_dict(body.mm_projector[0].state_dict())
    other.model.multi_modal_projector.linear_2.load_state_dict(body.mm_projector[2].state_dict())
    other.lm_head.load_state_dict(model.lm_head.state_dict())


def time_baseline(scenario: Scenario, settings: BaselineSettings, device: torch.device) -> Timing:
    """Time optimizer steps over the same samples as our side's."""
    sizes = scenario.sizes()
    plan = scenario.plan(sizes, MAX_LENGTH * settings.batch_size)
    baseline = Baseline(scenario, settings, device)
    computed_tokens: list[int] = []
    waiting: list[list[PaddedBatch]] = []

    def one_step() -> float:
        batches = waiting.pop()
        computed_tokens.append(sum(batch.input_ids.numel() for batch in batches))
        return baseline.step(batches).loss

    steps = range(scenario.num_warmup_steps - 1, plan.total_steps)  # nothing is compiled: one step of warm-up will do
    for step in reversed(steps):
        waiting.append(baseline.batches(plan, step, sizes))
    times, losses, peak = time_steps([one_step] * len(steps), 1, device)
    counted = steps[1:]
    return Timing(
        step_times_s=times,
        samples=tuple(samples_of(plan, step, sizes, scenario.features_per_image) for step in counted),
        computed_tokens=tuple(computed_tokens[1:]),
        losses=losses,
        memory_peak_bytes=peak,
    )


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
    mean, std = (torch.tensor(values, device=device) for values in (IMAGE_MEAN, IMAGE_STD))
    normalised = ((pixels.to(device) / 255.0 - mean) / std).movedim(-1, 1).contiguous() if len(pixels) else None
    return PaddedBatch(ids.to(device), mask.to(device), labels.to(device), normalised)
