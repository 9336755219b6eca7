"""Sample lengths like those of the published LLaVA-1.5 data, drawn from a seed, and rank-steps made of them.

Only what decides cost is modelled: tokens, images, supervised tokens. Ids and pixels are random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.benchmark.flops import SampleSize
from pipeline.benchmark.shapes import LANGUAGE_MODELS, image_size
from pipeline.loader import RankStep
from pipeline.plan.plan import Plan, build_plan

MAX_LENGTH: Final = 2048
"""Longest fused sample, tokens, as in the published scripts."""


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


class _Component(NamedTuple):
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
    "conversation": _Component(58, 380, 0.30, 0.65),
    "detail": _Component(23, 160, 0.25, 0.70),
    "reasoning": _Component(77, 270, 0.20, 0.80),
    "text only": _Component(40, 900, 0.80, 0.70, num_images=0),
    "vqa v2": _Component(83, 200, 0.35, 0.15),
    "gqa": _Component(72, 290, 0.45, 0.15),
    "ok-vqa": _Component(9, 75, 0.20, 0.08),
    "ocr-vqa": _Component(80, 210, 0.25, 0.35),
    "a-okvqa": _Component(66, 110, 0.20, 0.04),
    "text captions": _Component(22, 75, 0.20, 0.20),
    "referring": _Component(48, 430, 0.50, 0.55),
    "regions": _Component(86, 470, 0.50, 0.55),
}
"""The 665k samples of LLaVA-1.5's second stage by origin. Shares are published; lengths are estimates of ours from the
kind of data, many short answers and a long tail of text-only conversations, not measurements of the files."""


def caption_sizes(count: int, seed: int) -> list[TextSize]:
    """Draw samples like the 558k captions of LLaVA-1.5's first stage: one image and about 16 tokens of caption."""
    rng = np.random.default_rng(seed)
    captions = np.clip(rng.lognormal(math.log(16), 0.5, count), 5, 128).astype(int)
    return [TextSize(int(caption) + 1, 1, int(caption)) for caption in captions]  # and the start token


def instruction_sizes(count: int, seed: int, features_per_image: int) -> list[TextSize]:
    """Draw samples like the 665k conversations of LLaVA-1.5's second stage, cut to `MAX_LENGTH`."""
    rng = np.random.default_rng(seed)
    components = list(INSTRUCTION_MIXTURE.values())
    shares = np.array([component.share for component in components])
    sizes = []
    for choice in rng.choice(len(components), count, p=shares / shares.sum()):
        part = components[int(choice)]
        room = MAX_LENGTH - part.num_images * features_per_image
        text = int(np.clip(rng.lognormal(math.log(part.median_tokens), part.sigma), 24, room))
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


def build_rank_step(plan: Plan, step: int, sizes: Sequence[TextSize], shape: str) -> RankStep:
    """Build one step of a single rank with random ids and pixels for the model of a named size."""
    vocab_size, side = LANGUAGE_MODELS[shape]["vocab_size"], image_size(shape)
    entry = plan.split(step, 1)[0]
    ids = [sample_id for batch in entry.micro_batches for sample_id in batch]
    rng = np.random.default_rng(step)
    texts = [random_text(sizes[sample_id], vocab_size, rng) for sample_id in ids]
    num_images = sum(sizes[sample_id].num_images for sample_id in ids)
    return RankStep(
        step=step,
        rank=0,
        checksum=entry.checksum,
        sample_ids=torch.tensor(ids),
        batch_sizes=torch.tensor([len(batch) for batch in entry.micro_batches], dtype=torch.int32),
        text_lengths=torch.tensor([len(input_ids) for input_ids, _ in texts], dtype=torch.int32),
        num_images=torch.tensor([sizes[sample_id].num_images for sample_id in ids], dtype=torch.int32),
        input_ids=torch.from_numpy(np.concatenate([input_ids for input_ids, _ in texts])),
        labels=torch.from_numpy(np.concatenate([labels for _, labels in texts])),
        pixels=torch.from_numpy(rng.integers(0, 256, (num_images, 3, side, side), dtype=np.uint8)),
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
