"""From rendered spans to token ids and labels: one placeholder per image, labels by construction.

Text between images is tokenized on its own, as LLaVA does, so ids equal the reference's wherever it is right.

T text tokens with one placeholder per image; S fused length, with every placeholder replaced by its image's features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.conversation import Span
from pipeline.samples.prompt.text_tokenizer import Ids, Mask, TextTokenizer


class EncodedText(NamedTuple):
    """Tokens of one sample."""

    input_ids: Ids
    """int64 `[T]`, exactly one IMAGE_TOKEN_INDEX per image."""
    labels: Ids
    """int64 `[T]`; label t belongs to token t, IGNORE_INDEX where a token is not supervised."""
    num_tokens: int
    """Fused length S."""
    num_supervised_tokens: int
    truncated_tokens: int
    """Tokens cut off the end."""


def encode_text(
    spans: Iterable[Span], tokenizer: TextTokenizer, max_length: int | None, features_per_image: int | Sequence[int]
) -> EncodedText:
    """Tokenize a rendered conversation for training.

    A token is supervised if it overlaps a supervised span, except the first token, which nothing predicts.

    Args:
        spans: rendered conversation.
        tokenizer: wrapped tokenizer.
        max_length: longest fused sample, tokens; text beyond it is cut, an image never is. None cuts nothing.
        features_per_image: features that replace each placeholder; one number when all have as many.

    Raises:
        DataError: the spans do not show every image once, an image does not fit, nothing to learn is left, or text
            that cannot be spelled.
    """
    ids, supervised = _tokenize(spans, tokenizer)
    supervised[:1] = False
    is_image = ids == IMAGE_TOKEN_INDEX
    # numpy would give a single number to any count of placeholders, none included
    if not isinstance(features_per_image, int) and len(features_per_image) != is_image.sum():
        raise DataError(
            Reason.IMAGE_TOKEN_MISMATCH, f"the prompt shows {is_image.sum()} of {len(features_per_image)} images"
        )
    widths = np.ones(len(ids), dtype=np.int64)
    widths[is_image] = features_per_image
    ends = np.cumsum(widths)
    fused = int(ends[-1]) if len(ends) else 0
    keep = len(ids) if max_length is None else int(np.searchsorted(ends, max_length, side="right"))
    if is_image[keep:].any():
        features = widths[is_image]
        raise DataError(
            Reason.TOO_LONG,
            f"{len(features)} images of {features.sum()} features and the text before the last take more than "
            f"{max_length} tokens ({fused} in all)",
        )
    ids, supervised = ids[:keep], supervised[:keep]
    num_supervised = int(supervised.sum())
    if num_supervised == 0:
        raise DataError(
            Reason.NO_SUPERVISED_TOKENS, f"no token of an answer among the first {max_length} of {fused} tokens"
        )
    num_tokens = int(widths[:keep].sum())
    labels = np.where(supervised, ids, IGNORE_INDEX)
    return EncodedText(ids, labels, num_tokens, num_supervised, fused - num_tokens)


def encode_prompt(spans: Iterable[Span], tokenizer: TextTokenizer) -> Ids:
    """Tokenize a rendered prompt for generation; int64 `[T]`, one IMAGE_TOKEN_INDEX per image.

    Raises:
        DataError: text that cannot be spelled.
    """
    return _tokenize(spans, tokenizer)[0]


def _tokenize(spans: Iterable[Span], tokenizer: TextTokenizer) -> tuple[Ids, Mask]:
    """Tokenize the text between images; BOS leads the whole, if the tokenizer has one."""
    leading = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [np.array(leading, dtype=np.int64)]
    supervised = [np.zeros(len(leading), dtype=np.bool_)]
    run: list[Span] = []

    def flush() -> None:
        if run:
            tokens = tokenizer.tokenize(run)
            ids.append(tokens.ids)
            supervised.append(tokens.supervised)
            run.clear()

    for span in spans:
        if span.kind != "image":
            run.append(span)
            continue
        flush()
        ids.append(np.array([IMAGE_TOKEN_INDEX], dtype=np.int64))
        supervised.append(np.zeros(1, dtype=np.bool_))
    flush()
    return np.concatenate(ids), np.concatenate(supervised)
