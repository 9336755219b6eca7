"""A prompt as the model gets it, for people to read: control tokens, placeholders, tiles, numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model.fusion.constants import IGNORE_INDEX
from model.fusion.feature_layout import layout_of
from pipeline.samples.prompt.conversation import Conversation
from pipeline.tools.inspect.prompt import read_prompt

if TYPE_CHECKING:
    from pipeline.generation.generator import Generator


class ShownImage(NamedTuple):
    """What becomes of an image."""

    width: int
    """Pixels, as for the next."""
    height: int
    num_tiles: int
    num_tokens: int
    """That take the place of its placeholder."""


class PromptView(NamedTuple):
    """A prompt in pieces."""

    pieces: tuple[tuple[str, str], ...]
    """Kind (`text`, `special`, `image`) and what it spells; neighbours of one kind are joined."""
    num_tokens: int
    """With the images' tokens."""
    images: tuple[ShownImage, ...]


def view_prompt(generator: Generator, conversation: Conversation, images: Sequence[bytes]) -> PromptView:
    """Encode a conversation and spell what came of it; raises as `Generator.prepare` does."""
    prompt, encoder = generator.prepare(conversation, images), generator.encoder
    labels = np.full_like(prompt.input_ids, IGNORE_INDEX)
    pieces: list[tuple[str, str]] = []
    for kind, text, _ in read_prompt(prompt.input_ids, labels, encoder.tokenizer):
        if pieces and kind == pieces[-1][0] == "text":
            pieces[-1] = (kind, pieces[-1][1] + text)
        else:
            pieces.append((kind, text))
    shown = []
    for image in prompt.images:
        layout = layout_of(encoder.resolution, image.view)
        shown.append(ShownImage(image.view.width, image.view.height, layout.num_tiles, layout.num_features))
    return PromptView(tuple(pieces), prompt.num_tokens, tuple(shown))
