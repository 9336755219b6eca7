"""One question, as asked here and as transformers asked it: what is equal, and how far apart the rest is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.tools.parity.ask import Asked

_GREY_LEVEL = 1.05
"""Resize filters round to whole grey levels, in two passes: values are one apart, very few two."""
_MAX_SHARE = 1e-3
"""Of values further apart. Measured: 6e-6 on pure noise; another filter, or another cut, puts most of them there."""
_NUM_SHOWN = 5


class Comparison(NamedTuple):
    """What was found for one question."""

    name: str
    num_ids: int
    ids_equal: bool
    image_tokens: tuple[int, int]
    """Here, and there."""
    grey_levels: float | None
    """Greatest difference of pixels; None without images."""
    share_apart: float
    """Of the pixels' values, those more than one grey level apart."""
    logits: float
    """Greatest difference, of the same ids and pixels."""
    answer: str
    """Here."""
    answers_equal: bool
    problems: tuple[str, ...]


def compare(ours: Asked, theirs: dict[str, Any], image_id: int, std: Tensor, limit: float) -> Comparison:
    """Compare one question.

    Args:
        ours: as asked here.
        theirs: what `transformers_child` wrote: `ids` [S], `pixels`, `logits` [N, V], `answer` [T].
        image_id: of `<image>`.
        std: [3], of the normalisation, to tell differences in grey levels.
        limit: greatest difference of logits, relative to the largest.
    """
    ids, answer = theirs["ids"].tolist(), theirs["answer"].tolist()
    image_tokens = ours.ids.count(image_id), ids.count(image_id)
    grey_levels, share = _grey_levels_apart(ours.tiles, theirs["pixels"], std)
    apart = _logits_apart(ours.logits, theirs["logits"])
    largest = max(1.0, float(ours.logits.abs().max()))
    problems = []
    if ids != ours.ids:
        problems.append(_first_difference(ours.ids, ids))
    if image_tokens[0] != image_tokens[1]:
        problems.append(f"{image_tokens[1]} image tokens, expected {image_tokens[0]}")
    if share > _MAX_SHARE:
        problems.append(f"pixels up to {grey_levels:.1f} grey levels apart, {share:.1%} of them more than one")
    if not apart <= limit * largest:
        problems.append(f"logits up to {apart:.2g} apart, of {largest:.2g}")
    if answer != ours.answer_ids:
        problems.append(f"another answer: tokens {answer}, expected {ours.answer_ids}")
    equal = ids == ours.ids, answer == ours.answer_ids
    return Comparison(
        ours.question.name, len(ours.ids), equal[0], image_tokens, grey_levels, share, apart, ours.answer, equal[1],
        tuple(problems),
    )  # fmt: skip


def _logits_apart(ours: Tensor, theirs: Tensor) -> float:
    """Compare the last rows that both have, over our words: the exported table has rows for `<image>` and more."""
    rows = min(len(ours), len(theirs))
    return float((ours[-rows:] - theirs[-rows:, : ours.shape[1]]).abs().max())


def _grey_levels_apart(tiles: Sequence[Tensor], pixels: Tensor | None, std: Tensor) -> tuple[float | None, float]:
    """Return how far pixels are apart at most, in grey levels, and the share of values more than one apart.

    Tiles of another number or size are infinitely far apart.
    """
    if not tiles and pixels is None:
        return None, 0.0
    if pixels is None or len(pixels) != len(tiles):
        return float("inf"), 1.0
    apart, num_far, num_values = 0.0, 0, 0
    for own, other in zip(tiles, pixels, strict=True):
        seen = (other if other.ndim == 4 else other[None])[: len(own)].float()
        if seen.shape != own.shape:
            return float("inf"), 1.0
        levels = (seen - own).abs() * std[:, None, None] * 255
        apart = max(apart, float(levels.max()))
        num_far, num_values = num_far + int((levels > _GREY_LEVEL).sum()), num_values + levels.numel()
    return apart, num_far / num_values


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> str:
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((number for number, (own, other) in pairs if own != other), min(len(ours), len(theirs)))
    end = place + _NUM_SHOWN
    return (
        f"other ids: {len(theirs)} of them, expected {len(ours)}; from place {place} on {list(theirs[place:end])}, "
        f"expected {list(ours[place:end])}"
    )
