"""From token ids and labels to pieces that a person can read: what is trained on, what is a control token, an image.

T text tokens with one placeholder per image.
"""

from __future__ import annotations

import unicodedata
from typing import Literal, NamedTuple

import numpy as np

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.samples.prompt.text_tokenizer import Ids, TextTokenizer


class Piece(NamedTuple):
    """A token of a prompt, or the few tokens that spell one character together."""

    kind: Literal["text", "special", "image"]
    """`special` is a control token, not text that looks like one."""
    text: str
    """What it spells; empty for an image. Characters that do not show are written as escapes, line breaks are kept."""
    trained: bool
    """Whether the model learns to produce it."""


def read_prompt(ids: Ids, labels: Ids, tokenizer: TextTokenizer) -> list[Piece]:
    """Spell an encoded sample, token by token.

    Args:
        ids: int64 `[T]`, IMAGE_TOKEN_INDEX for an image.
        labels: int64 `[T]`, IGNORE_INDEX where a token is not supervised.
        tokenizer: the one that made the ids.
    """
    pieces: list[Piece] = []
    images = np.flatnonzero(ids == IMAGE_TOKEN_INDEX).tolist()
    for start, end in zip([0, *(idx + 1 for idx in images)], [*images, len(ids)], strict=True):
        pieces += _read_run(ids[start:end], labels[start:end] != IGNORE_INDEX, tokenizer)
        if end < len(ids):
            pieces.append(Piece("image", "", False))
    return pieces


def _read_run(ids: Ids, trained: np.ndarray, tokenizer: TextTokenizer) -> list[Piece]:
    """Spell the tokens between two images."""
    pieces: list[Piece] = []
    pending = False
    for token_id, text, learnt in zip(ids.tolist(), tokenizer.spell(ids), trained.tolist(), strict=True):
        if text is None:
            pending = pending or learnt
            continue
        kind: Literal["text", "special"] = "special" if tokenizer.is_control(token_id) else "text"
        pieces.append(Piece(kind, visible(text), learnt or pending))
        pending = False
    return pieces


def visible(text: str) -> str:
    """Escape what does not show or would change how the text around it shows, such as right-to-left overrides."""
    return "".join(letter if letter in "\n\t" or _shows(letter) else ascii(letter)[1:-1] for letter in text)


def _shows(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
