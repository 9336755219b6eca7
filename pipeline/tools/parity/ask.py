"""The model that was exported, asked here: ids, pixels, logits and answers that transformers must repeat.

Shapes: U tiles of an image, P their side, S tokens of a prompt with its images, V words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.feature_layout import layout_of
from model.hub.weights import LlavaModel
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import OpenedModel, build_folder_encoder
from pipeline.assembly.merge import find_model_folder, load_merged
from pipeline.generation.generator import Generator
from pipeline.generation.requests import Sampling
from pipeline.samples.encode import SampleEncoder
from pipeline.tools.parity.questions import ParityQuestion
from pipeline.tools.parity.transformers_child import NUM_LOGITS

MAX_NEW_TOKENS = 16
"""Longest answer that is compared."""


class Opened(NamedTuple):
    """A model with everything needed to ask it something."""

    model: LlavaModel
    encoder: SampleEncoder
    tokenizer: PreTrainedTokenizerFast


class Asked(NamedTuple):
    """A question as it is asked here."""

    question: ParityQuestion
    ids: list[int]
    """S ids, `<image>` once per feature."""
    tiles: list[Tensor]
    """Per image, normalised float32 [U, 3, P, P]."""
    logits: Tensor
    """float32 [up to NUM_LOGITS, V], of the last tokens."""
    answer_ids: list[int]
    answer: str


def open_rounded(source: Path, written: torch.dtype, computed: torch.dtype) -> Opened:
    """Open the model of a run or model folder with its weights rounded as they were exported.

    Args:
        source: folder of a run, or a model folder.
        written: type of the exported weights.
        computed: type to compute in.
    """
    folder = find_model_folder(source)
    model = load_merged(folder, written)
    nn.Module.to(model, dtype=computed)
    nn.Module.eval(model)
    return Opened(model, build_folder_encoder(folder), load_tokenizer(str(folder)))


@torch.no_grad()
def ask(opened: Opened, question: ParityQuestion, image_id: int) -> Asked:
    """Ask a question greedily.

    Args:
        opened: the model.
        question: the question.
        image_id: of `<image>` in the exported folder.

    Raises:
        DataError: the model cannot be asked that.
    """
    model, encoder, tokenizer = opened
    roles = encoder.resolution.roles(len(question.images), is_video=False)
    encoded = [encoder.encode_image(data, role) for data, role in zip(question.images, roles, strict=True)]
    views = [image.view for image in encoded]
    prompt = torch.from_numpy(encoder.encode_prompt(question.conversation, views))
    stats = pixel_stats_of(model.config)
    tiles = [normalize_pixels(torch.from_numpy(image.pixels), stats, torch.float32) for image in encoded]
    given: dict[str, Any] = {"images": [tile.to(model.dtype) for tile in tiles] or None, "image_sizes": views or None}
    logits = model(prompt[None], **given).logits[0, -NUM_LOGITS:].float()
    generator = Generator(OpenedModel(model, encoder), tokenizer)
    asked = generator.prepare_encoded(question.conversation, encoded)
    reply = generator.generate([asked], [Sampling(MAX_NEW_TOKENS)])[0]
    counts = iter([layout_of(encoder.resolution, view).num_features for view in views])
    ids = [
        repeated
        for token in prompt.tolist()
        for repeated in ([image_id] * next(counts) if token == IMAGE_TOKEN_INDEX else [token])
    ]
    return Asked(question, ids, tiles, logits, list(reply.token_ids), reply.text)
