"""Measures a model on held-out samples: loss over the supervised tokens, and answers it writes itself.

Every question is asked after the conversation so far as in the data, and answered greedily. Works on one process
without Ray. Reading samples is left to `questions`, figures to `scores`.

Shapes: T text tokens, U tiles of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.fusion.feature_layout import layout_of
from model.fusion.packed import pack_images
from pipeline.assembly.folder import OpenedModel
from pipeline.errors import DataError
from pipeline.generation.generator import Generator
from pipeline.generation.requests import Prompt, Sampling
from pipeline.samples.encode import EncodedImage, EncodedSample, SampleEncoder
from pipeline.samples.prompt.conversation import Conversation
from pipeline.tools.evaluation.questions import EvaluationSample, questions_and_answers
from pipeline.tools.evaluation.scores import Answer, Evaluation


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate; the figures depend on `blank_images` and `max_new_tokens` only."""

    blank_images: bool = False
    """Replace every image by its mean colour: what is still answered right needs no image."""
    batch_size: int = 32
    """Prompts, or samples, per forward pass."""
    max_new_tokens: int = 16
    """Longest answer, tokens."""


@torch.no_grad()
def evaluate(
    opened: OpenedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[EvaluationSample],
    settings: EvaluationSettings = EvaluationSettings(),
) -> Evaluation:
    """Compute loss and answers.

    Args:
        opened: model and encoder, from `open_model`; evaluated on the model's device.
        tokenizer: reads the answers.
        samples: at least one.
        settings: how to evaluate.

    Raises:
        DataError: a sample cannot be decoded or encoded, or a prompt is longer than a training sample; names it.
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("nothing to evaluate: no samples; check the shards and max_samples")
    encoded = [_encode(opened.encoder, entry, settings.blank_images) for entry in samples]
    loss, num_targets = held_out_loss(opened, encoded, settings.batch_size)
    generator = Generator(opened, tokenizer)
    questions = [
        question
        for entry, arrays in zip(samples, encoded, strict=True)
        for question in _questions(generator, entry, arrays.images)
    ]
    sampling = Sampling(settings.max_new_tokens)
    prompts = [prompt for _, prompt in questions]
    replies = generator.generate(prompts, [sampling] * len(prompts), settings.batch_size)
    answers = (answer._replace(given=reply.text) for (answer, _), reply in zip(questions, replies, strict=True))
    return Evaluation(loss, num_targets, tuple(answers))


@torch.no_grad()
def held_out_loss(opened: OpenedModel, encoded: Sequence[EncodedSample], batch_size: int) -> tuple[float, int]:
    """Return the cross-entropy per supervised token in nats, and the number of those tokens."""
    model, resolution = opened.model, opened.encoder.resolution
    total, num_targets = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        images = [image for sample in batch for image in sample.images]
        layouts = [layout_of(resolution, image.view) for image in images]
        first_tiles = np.cumsum([0, *(layout.num_tiles for layout in layouts)])[:-1].tolist()
        samples_of_batch = [(sample.input_ids, sample.labels) for sample in batch]
        packed = pack_images(samples_of_batch, layouts, first_tiles, resolution.tile_features)
        features = model.encode_vision(torch.cat(_tiles(images))) if images else None
        total += float(model.packed_loss(packed.to(model.device), features))
        num_targets += len(packed.targets)
    return total / max(1, num_targets), num_targets


def _encode(encoder: SampleEncoder, entry: EvaluationSample, blank: bool) -> EncodedSample:
    encoded = encoder.encode(entry.sample)
    if not blank:
        return encoded
    color = np.array(encoder.image_spec.background, np.uint8)
    blanked = (image._replace(pixels=np.broadcast_to(color, image.pixels.shape).copy()) for image in encoded.images)
    return encoded._replace(images=tuple(blanked))


def _tiles(images: Sequence[EncodedImage]) -> list[Tensor]:
    """Return the tiles of each image, uint8 [U, P, P, 3]."""
    return [torch.from_numpy(image.pixels) for image in images]


def _questions(
    generator: Generator, entry: EvaluationSample, images: tuple[EncodedImage, ...]
) -> Iterator[tuple[Answer, Prompt]]:
    """Cut a conversation before each of its answers; nothing is given as an answer yet."""
    turns = entry.sample.conversation.turns
    first_answer = next(idx for idx, turn in enumerate(turns) if turn.role == "assistant")
    asked = questions_and_answers(entry.sample.conversation)
    for number, (kind, (question, expected)) in enumerate(zip(entry.kinds, asked, strict=True)):
        conversation = Conversation(turns[: first_answer + 2 * number])
        try:
            prompt = generator.prepare_encoded(conversation, images[: conversation.num_images])
        except DataError as error:
            raise error.at(key=entry.sample.key) from None
        num_images = len(entry.sample.images)
        yield Answer(entry.sample.key, number, kind, num_images, question.strip(), expected, given=""), prompt
