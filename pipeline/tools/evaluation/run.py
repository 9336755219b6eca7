"""Measures a model on held-out samples: loss over the supervised tokens, and answers it writes itself.

Every question is asked after the conversation so far as in the data, and answered greedily. Works on one process
without Ray. Reading samples is left to `questions`, figures to `scores`.

Shapes: T text tokens, U tiles of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.fusion.feature_layout import layout_of
from model.fusion.packed import pack_images
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.assembly.folder import OpenedModel
from pipeline.errors import DataError
from pipeline.samples.encode import EncodedImage, EncodedSample, SampleEncoder
from pipeline.samples.prompt.conversation import Conversation
from pipeline.samples.prompt.ending import answer_as_trained
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


class _Prompt(NamedTuple):
    """A question ready to be asked; `answer.given` is still empty."""

    answer: Answer
    input_ids: Tensor
    """int64 [T], one placeholder per image."""
    images: tuple[EncodedImage, ...]
    """Those mentioned so far."""
    num_tokens: int
    """Length with its image features."""


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
    prompts = [
        prompt
        for entry, arrays in zip(samples, encoded, strict=True)
        for prompt in _prompts(opened.encoder, entry, arrays.images)
    ]
    return Evaluation(loss, num_targets, tuple(_ask(opened, tokenizer, prompts, settings)))


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


def _prompts(encoder: SampleEncoder, entry: EvaluationSample, images: tuple[EncodedImage, ...]) -> Iterator[_Prompt]:
    """Cut a conversation before each of its answers."""
    turns = entry.sample.conversation.turns
    first_answer = next(idx for idx, turn in enumerate(turns) if turn.role == "assistant")
    asked = questions_and_answers(entry.sample.conversation)
    for number, (kind, (question, expected)) in enumerate(zip(entry.kinds, asked, strict=True)):
        conversation = Conversation(turns[: first_answer + 2 * number])
        shown = images[: conversation.num_images]
        try:
            input_ids = torch.from_numpy(encoder.encode_prompt(conversation, [image.view for image in shown]))
        except DataError as error:
            raise error.at(key=entry.sample.key) from None
        answer = Answer(entry.sample.key, number, kind, len(entry.sample.images), question.strip(), expected, given="")
        features = sum(layout_of(encoder.resolution, image.view).num_features for image in shown)
        yield _Prompt(answer, input_ids, shown, len(input_ids) + features)


def _ask(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[_Prompt], settings: EvaluationSettings
) -> list[Answer]:
    """Generate the answers, prompts of similar length together, and return them in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].num_tokens)
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        texts = _generate(opened, tokenizer, [prompts[idx] for idx in chosen], settings.max_new_tokens)
        answers.update((idx, prompts[idx].answer._replace(given=text)) for idx, text in zip(chosen, texts, strict=True))
    return [answers[idx] for idx in range(len(prompts))]


def _generate(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[_Prompt], max_new_tokens: int
) -> list[str]:
    model = opened.model
    ending = answer_as_trained(model, opened.encoder.template, tokenizer)
    options = ending.generation_options(tokenizer)
    rows = [prompt.input_ids for prompt in prompts]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float(options["pad_token_id"]))
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    images = [image for prompt in prompts for image in prompt.images]
    stats = pixel_stats_of(model.config)
    tiles = [normalize_pixels(pixels.to(model.device), stats, model.dtype) for pixels in _tiles(images)]
    tokens = model.generate(
        input_ids.to(model.device),
        images=tiles or None,
        image_sizes=[image.view for image in images] or None,
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        **options,
    )
    return [ending.read_answer(tokenizer, row) for row in tokens]
