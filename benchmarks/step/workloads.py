"""Sample lengths like those of the published LLaVA-1.5 data, drawn from a seed, and rank-steps made of them.

Only what decides cost is modelled: tokens, images, supervised tokens. Ids and pixels are random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.step.shapes import LANGUAGE_MODELS, image_size
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.resolution import ROLES
from pipeline.plan.plan import Plan, build_plan
from pipeline.stream.rank_step import RankStep
from pipeline.training.measures.metrics import StepCounts

MAX_LENGTH: Final = 2048
"""Longest fused sample, tokens, as in the published scripts."""


class SampleSize(NamedTuple):
    """What a sample costs depends on."""

    num_tokens: int
    """Fused length, image features included."""
    num_images: int
    num_targets: int
    """Supervised tokens."""


def counts_of(samples: Sequence[SampleSize]) -> StepCounts:
    """Return what a step over `samples`, each image in one tile, amounts to."""
    return StepCounts(
        samples=len(samples),
        images=sum(sample.num_images for sample in samples),
        tiles=sum(sample.num_images for sample in samples),
        tokens=sum(sample.num_tokens for sample in samples),
        pairs=sum(sample.num_tokens * (sample.num_tokens + 1) // 2 for sample in samples),
        targets=sum(sample.num_targets for sample in samples),
    )


class TextSize(NamedTuple):
    """A sample without its pixels."""

    num_text_tokens: int
    num_images: int
    num_targets: int
    """Supervised tokens, the last ones of the text."""

    def fused(self, features_per_image: int) -> SampleSize:
        """Return the size with image features in the places of the placeholders."""
        return SampleSize(
            self.num_text_tokens + self.num_images * features_per_image, self.num_images, self.num_targets
        )


class Component(NamedTuple):
    """One data set of the instruction mixture: log-normal text length."""

    share: float
    """Relative number of samples (thousands)."""
    median_tokens: float
    sigma: float
    """Standard deviation of the logarithm."""
    supervised: float
    """Share of the text that is supervised."""
    num_images: int = 1


INSTRUCTION_MIXTURE: Final = {
    "conversation": Component(58, 380, 0.30, 0.65),
    "detail": Component(23, 160, 0.25, 0.70),
    "reasoning": Component(77, 270, 0.20, 0.80),
    "text only": Component(40, 900, 0.80, 0.70, num_images=0),
    "vqa v2": Component(83, 200, 0.35, 0.15),
    "gqa": Component(72, 290, 0.45, 0.15),
    "ok-vqa": Component(9, 75, 0.20, 0.08),
    "ocr-vqa": Component(80, 210, 0.25, 0.35),
    "a-okvqa": Component(66, 110, 0.20, 0.04),
    "text captions": Component(22, 75, 0.20, 0.20),
    "referring": Component(48, 430, 0.50, 0.55),
    "regions": Component(86, 470, 0.50, 0.55),
}
"""The 665k samples of LLaVA-1.5's second stage by origin. Shares are published; lengths are estimates of ours from the
kind of data, many short answers and a long tail of text-only conversations, not measurements of the files."""


WITH_SEVERAL_IMAGES: Final = {**INSTRUCTION_MIXTURE, "several images": Component(66, 250, 0.40, 0.30, num_images=3)}
"""The same with a tenth of samples that hold three images each, as later mixtures do."""


def caption_sizes(count: int, seed: int) -> list[TextSize]:
    """Draw samples like the 558k captions of LLaVA-1.5's first stage: one image and about 16 tokens of caption."""
    rng = np.random.default_rng(seed)
    captions = np.clip(rng.lognormal(math.log(16), 0.5, count), 5, 128).astype(int)
    return [TextSize(int(caption) + 1, 1, int(caption)) for caption in captions]  # and the start token


def instruction_sizes(
    count: int,
    seed: int,
    features_per_image: int,
    mixture: Mapping[str, Component] = INSTRUCTION_MIXTURE,
    text_scale: float = 1.0,
) -> list[TextSize]:
    """Draw samples like the 665k conversations of LLaVA-1.5's second stage, cut to `MAX_LENGTH`.

    Args:
        count: number of samples.
        seed: of the draw.
        features_per_image: tokens that an image takes.
        mixture: origins of the samples.
        text_scale: factor on text lengths and on `MAX_LENGTH`, for small machines.
    """
    rng = np.random.default_rng(seed)
    components = list(mixture.values())
    shares = np.array([component.share for component in components])
    sizes = []
    for choice in rng.choice(len(components), count, p=shares / shares.sum()):
        part = components[int(choice)]
        room = int(text_scale * MAX_LENGTH) - part.num_images * features_per_image
        drawn = text_scale * rng.lognormal(math.log(part.median_tokens), part.sigma)
        text = int(np.clip(drawn, text_scale * 24, room))
        sizes.append(TextSize(text, part.num_images, max(1, round(text * part.supervised))))
    return sizes


def plan_of(sizes: Sequence[TextSize], features_per_image: int, global_batch_size: int, token_budget: int) -> Plan:
    """Plan the steps of a run over `sizes`, exactly as a training run would."""
    num_tokens = np.array([size.fused(features_per_image).num_tokens for size in sizes], dtype=np.int32)
    return build_plan(
        num_tokens,
        data_fingerprint="benchmark",
        seed=0,
        global_batch_size=global_batch_size,
        num_epochs=1,
        max_steps=None,
        micro_batch_tokens=token_budget,
    )


def build_rank_step(
    plan: Plan, step: int, sizes: Sequence[TextSize], shape: str, rank: int = 0, num_ranks: int = 1
) -> RankStep:
    """Build one rank's part of a step with random ids and pixels for the model of a named size.

    A sample is drawn from its own seed, so that it is the same however the plan cuts the step.
    """
    vocab_size, side = LANGUAGE_MODELS[shape]["vocab_size"], image_size(shape)
    entry = plan.split(step, num_ranks)[rank]
    ids = [sample_id for batch in entry.micro_batches for sample_id in batch]
    texts, images = [], [np.zeros((0, side, side, 3), dtype=np.uint8)]
    for sample_id in ids:
        rng = np.random.default_rng((step, sample_id))
        texts.append(random_text(sizes[sample_id], vocab_size, rng))
        images.append(rng.integers(0, 256, (sizes[sample_id].num_images, side, side, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.concatenate(images))
    return RankStep(
        step=step,
        rank=rank,
        checksum=entry.checksum,
        sample_ids=torch.tensor(ids),
        batch_sizes=torch.tensor([len(batch) for batch in entry.micro_batches], dtype=torch.int32),
        text_lengths=torch.tensor([len(input_ids) for input_ids, _ in texts], dtype=torch.int32),
        num_images=torch.tensor([sizes[sample_id].num_images for sample_id in ids], dtype=torch.int32),
        input_ids=torch.from_numpy(np.concatenate([input_ids for input_ids, _ in texts])),
        labels=torch.from_numpy(np.concatenate([labels for _, labels in texts])),
        image_ids=torch.arange(len(pixels), dtype=torch.int32),
        views=torch.tensor([[side, side, ROLES.index("image")]], dtype=torch.int32).repeat(len(pixels), 1),
        pixels=pixels,
        rejected=(),
    )


def random_text(
    size: TextSize, vocab_size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Draw ids and labels, int32 `[T]`: a token, one placeholder per image, random text supervised at its end."""
    text = rng.integers(3, vocab_size, size.num_text_tokens).astype(np.int32)
    input_ids = np.insert(text, [1] * size.num_images, IMAGE_TOKEN_INDEX)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[-size.num_targets :] = input_ids[-size.num_targets :]
    return input_ids, labels
