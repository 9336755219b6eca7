"""Asks a model about samples: loss over the supervised tokens, and answers it writes itself.

Every question is asked after the conversation so far as in the data, and answered greedily. Reading samples is left to
`questions`, figures to `metrics`. Nothing here draws random numbers or changes the model.

Shapes: U tiles of an image, P their side, K targets of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.fusion.feature_layout import layout_of
from model.fusion.packed import pack_images
from model.fusion.resolution import grids_of
from pipeline.assembly.folder import OpenedModel
from pipeline.errors import DataError, Reason
from pipeline.evaluation.questions import EvaluationSample, questions_and_answers
from pipeline.evaluation.scores import Answer, Evaluation
from pipeline.generation.generator import Generator
from pipeline.generation.requests import Prompt, Sampling
from pipeline.samples.encode import EncodedImage, EncodedSample, SampleEncoder
from pipeline.samples.prompt.conversation import Conversation

Images = Literal["shown", "blanked", "shuffled"]
"""As they are; each replaced by the tower's mean colour; or those of another sample with as many images."""
_BATCHES_IN_MEMORY = 4
"""Encoded samples that are kept at a time: tiles of many samples would fill the memory."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate; the figures depend on `images` and `max_new_tokens` only."""

    images: Images = "shown"
    """What is still answered right with blanked or shuffled images needs no image."""
    batch_size: int = 32
    """Prompts, or samples, per forward pass."""
    max_new_tokens: int = 16
    """Longest answer, tokens."""
    answers: bool = True
    """Write answers; False computes the loss only."""


class SampleLoss(NamedTuple):
    """Cross-entropy of one sample."""

    loss: float
    """Sum over its supervised tokens, nats."""
    num_targets: int


@torch.no_grad()
def evaluate(
    opened: OpenedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[EvaluationSample],
    settings: EvaluationSettings = EvaluationSettings(),
) -> Evaluation:
    """Compute loss and answers.

    Args:
        opened: model in evaluation mode and encoder, from `open_model`; evaluated on the model's device.
        tokenizer: reads the answers.
        samples: at least one.
        settings: how to evaluate.

    Raises:
        DataError: a sample cannot be decoded or encoded, or a prompt is longer than a training sample; names it.
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("nothing to evaluate: no samples; check the shards and max_samples")
    generator = Generator(opened, tokenizer)
    partners = other_samples(samples) if settings.images == "shuffled" else list(range(len(samples)))
    answers: list[Answer] = []
    step = settings.batch_size * _BATCHES_IN_MEMORY
    for start in range(0, len(samples), step):
        chunk = samples[start : start + step]
        encoded = [
            _encode(opened.encoder, entry, samples[partner], settings.images)
            for entry, partner in zip(chunk, partners[start : start + step], strict=True)
        ]
        losses = sample_losses(opened, encoded, settings.batch_size)
        answers += _ask(generator, chunk, encoded, losses, settings)
    num_targets = sum(answer.num_targets for answer in answers)
    return Evaluation(sum(answer.loss for answer in answers) / max(1, num_targets), num_targets, tuple(answers))


@torch.no_grad()
def sample_losses(opened: OpenedModel, encoded: Sequence[EncodedSample], batch_size: int) -> list[SampleLoss]:
    """Return the cross-entropy of every sample."""
    model, resolution = opened.model, opened.encoder.resolution
    found: list[SampleLoss] = []
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        images = [image for sample in batch for image in sample.images]
        layouts = [layout_of(resolution, image.view) for image in images]
        first_tiles = np.cumsum([0, *(layout.num_tiles for layout in layouts)])[:-1].tolist()
        samples_of_batch = [(sample.input_ids, sample.labels) for sample in batch]
        packed = pack_images(samples_of_batch, layouts, first_tiles, resolution.tile_features)
        views = [image.view for image in images]
        grids = grids_of(views, resolution) if resolution.sizing is not None else None
        features = model.encode_vision(torch.cat(_tiles(images)), grids=grids) if images else None
        losses = torch.zeros(len(packed.targets), dtype=torch.float32, device=model.device)
        model.packed_loss(packed.to(model.device), features, losses)
        owners = torch.searchsorted(packed.cu_seqlens.long(), packed.target_positions, right=True) - 1
        sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owners, losses.double().cpu())
        counts = torch.bincount(owners, minlength=len(batch))
        found += [SampleLoss(*pair) for pair in zip(sums.tolist(), counts.tolist(), strict=True)]
    return found


def other_samples(samples: Sequence[EvaluationSample]) -> list[int]:
    """Return, for every sample, which one's images it is shown instead: of as many images, the same every time.

    A sample that is alone with its number of images keeps them.
    """
    groups: dict[int, list[int]] = {}
    for idx, entry in enumerate(samples):
        groups.setdefault(len(entry.sample.images), []).append(idx)
    partners = list(range(len(samples)))
    for members in groups.values():
        shift = max(1, len(members) // 2)  # neighbours are often about the same picture
        for place, idx in enumerate(members):
            partners[idx] = members[(place + shift) % len(members)]
    return partners


def _encode(encoder: SampleEncoder, entry: EvaluationSample, other: EvaluationSample, images: Images) -> EncodedSample:
    if images == "shuffled":
        try:
            return encoder.encode(entry.sample._replace(images=other.sample.images))
        except DataError as error:
            if error.reason is not Reason.NO_SUPERVISED_TOKENS:  # the other images may take more room
                raise
            images = "blanked"
    encoded = encoder.encode(entry.sample)
    if images == "shown":
        return encoded
    color = np.array(encoder.image_spec.background, np.uint8)
    blanked = (image._replace(pixels=np.broadcast_to(color, image.pixels.shape).copy()) for image in encoded.images)
    return encoded._replace(images=tuple(blanked))


def _tiles(images: Sequence[EncodedImage]) -> list[Tensor]:
    """Return the tiles of each image, uint8 [U, P, P, 3]."""
    return [torch.from_numpy(image.pixels) for image in images]


def _ask(
    generator: Generator,
    samples: Sequence[EvaluationSample],
    encoded: Sequence[EncodedSample],
    losses: Sequence[SampleLoss],
    settings: EvaluationSettings,
) -> list[Answer]:
    """Ask every question of some samples; the first answer of each carries the sample's loss."""
    questions = [
        question
        for entry, arrays, loss in zip(samples, encoded, losses, strict=True)
        for question in _questions(generator, entry, arrays.images, loss, settings)
    ]
    asked = [(place, prompt) for place, (_, prompt) in enumerate(questions) if prompt is not None]
    answers = [answer for answer, _ in questions]
    if settings.answers:
        prompts = [prompt for _, prompt in asked]
        sampling = Sampling(settings.max_new_tokens)
        replies = generator.generate(prompts, [sampling] * len(prompts), settings.batch_size)
        for (place, _), reply in zip(asked, replies, strict=True):
            answers[place] = answers[place]._replace(given=reply.text)
    return answers


def _questions(
    generator: Generator,
    entry: EvaluationSample,
    images: tuple[EncodedImage, ...],
    loss: SampleLoss,
    settings: EvaluationSettings,
) -> Iterator[tuple[Answer, Prompt | None]]:
    """Cut a conversation before each of its answers; nothing is given as an answer yet.

    A prompt that the images of another sample make too long is None: it has no answer.
    """
    turns = entry.sample.conversation.turns
    first_answer = next(idx for idx, turn in enumerate(turns) if turn.role == "assistant")
    asked = questions_and_answers(entry.sample.conversation)
    for number, (kind, (question, expected)) in enumerate(zip(entry.kinds, asked, strict=True)):
        conversation = Conversation(turns[: first_answer + 2 * number])
        try:
            prompt = generator.prepare_encoded(conversation, images[: conversation.num_images])
        except DataError as error:
            if settings.images != "shuffled" or error.reason is not Reason.TOO_LONG:
                raise error.at(key=entry.sample.key) from None
            prompt = None
        yield (
            Answer(
                key=entry.sample.key,
                turn=number,
                kind=kind,
                num_images=len(entry.sample.images),
                question=question.strip(),
                expected=expected,
                given="",
                references=entry.references,
                options=entry.options,
                group=entry.group,
                loss=0.0 if number else loss.loss,
                num_targets=0 if number else loss.num_targets,
            ),
            prompt,
        )
