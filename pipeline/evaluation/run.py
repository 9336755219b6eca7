"""Measures a model on held-out samples: loss over the supervised tokens, and answers it writes itself.

Every question is asked with the conversation before it as the data says it, and answered greedily. Works on one process
without Ray. Reading samples is left to `pipeline.evaluation.questions`, figures to `pipeline.evaluation.scores`.

Shapes: B prompts, T text tokens, N images, P features per image, V vision width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.packed import pack_samples
from model.pixels import normalize_pixels, pixel_stats_of
from pipeline.evaluation.questions import EvaluationSample, questions_and_answers
from pipeline.evaluation.scores import Answer, Evaluation
from pipeline.model_folder import OpenedModel
from pipeline.samples.conversation import Conversation
from pipeline.samples.encode import EncodedSample, SampleEncoder


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
    pixels: Tensor
    """uint8 [N, 3, H, W] of the images mentioned so far."""


@torch.no_grad()
def evaluate(
    opened: OpenedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[EvaluationSample],
    settings: EvaluationSettings = EvaluationSettings(),
) -> Evaluation:
    """Compute loss and answers.

    Args:
        opened: model and encoder, as `pipeline.model_folder.open_model` returns them; evaluated on the model's device.
        tokenizer: reads the answers.
        samples: at least one.
        settings: how to evaluate.

    Raises:
        DataError: a sample cannot be decoded or encoded; names it.
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("nothing to evaluate: no samples; check the shards and max_samples")
    encoded = [_encode(opened.encoder, entry, settings.blank_images) for entry in samples]
    loss, num_targets = held_out_loss(opened, encoded, settings.batch_size)
    prompts = [
        prompt
        for entry, arrays in zip(samples, encoded, strict=True)
        for prompt in _prompts(opened.encoder, entry, torch.from_numpy(arrays.pixels))
    ]
    return Evaluation(loss, num_targets, tuple(_ask(opened, tokenizer, prompts, settings)))


@torch.no_grad()
def held_out_loss(opened: OpenedModel, encoded: Sequence[EncodedSample], batch_size: int) -> tuple[float, int]:
    """Return the cross-entropy per supervised token in nats, and the number of those tokens."""
    model, per_image = opened.model, opened.encoder.features_per_image
    total, num_targets = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        pixels = torch.from_numpy(np.concatenate([sample.pixels for sample in batch]))
        packed = pack_samples([(sample.input_ids, sample.labels) for sample in batch], [per_image] * len(pixels))
        features = model.encode_vision(pixels).flatten(0, 1) if len(pixels) else None
        total += float(model.packed_loss(packed.to(model.device), features))
        num_targets += len(packed.targets)
    return total / max(1, num_targets), num_targets


def _encode(encoder: SampleEncoder, entry: EvaluationSample, blank: bool) -> EncodedSample:
    encoded = encoder.encode(entry.sample)
    if not blank:
        return encoded
    color = np.array(encoder.image_spec.background, np.uint8)[:, None, None]
    return encoded._replace(pixels=np.broadcast_to(color, encoded.pixels.shape).copy())


def _prompts(encoder: SampleEncoder, entry: EvaluationSample, pixels: Tensor) -> Iterator[_Prompt]:
    """Cut a conversation before each of its answers."""
    turns = entry.sample.conversation.turns
    first_answer = next(idx for idx, turn in enumerate(turns) if turn.role == "assistant")
    asked = questions_and_answers(entry.sample.conversation)
    for number, (kind, (question, expected)) in enumerate(zip(entry.kinds, asked, strict=True)):
        conversation = Conversation(turns[: first_answer + 2 * number])
        input_ids = torch.from_numpy(encoder.encode_prompt(conversation))
        answer = Answer(entry.sample.key, number, kind, len(entry.sample.images), question.strip(), expected, given="")
        yield _Prompt(answer, input_ids, pixels[: conversation.num_images])


def _ask(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[_Prompt], settings: EvaluationSettings
) -> list[Answer]:
    """Generate the answers, prompts of similar length together, and return them in the order of the prompts."""
    width = opened.encoder.features_per_image - 1  # a placeholder is already one token
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids) + width * len(prompts[i].pixels))
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
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = [prompt.input_ids for prompt in prompts]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float(pad_id))
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    pixels = torch.cat([prompt.pixels for prompt in prompts]).to(model.device)
    images = normalize_pixels(pixels, pixel_stats_of(model.config), model.dtype) if len(pixels) else None
    tokens = model.generate(
        input_ids.to(model.device),
        images=images,
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]
