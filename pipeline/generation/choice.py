"""Choosing the next token of every row of a batch: the most likely one, or one drawn by the row's own generator.

Shapes: B rows, V words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.generation.requests import Sampling


class TokenChoice:
    """How one row chooses; holds the row's generator, so that other rows cannot change what it draws."""

    def __init__(self, sampling: Sampling) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def draw(self) -> float:
        """Return the next random number of the row, 0 up to 1."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def choose_tokens(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
    """Choose a token per row.

    Args:
        logits: [B, V], any type.
        choices: of the rows; those with a temperature advance their generators by one number.
    """
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, choice in enumerate(choices) if choice.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        tokens = tokens.index_copy(0, rows, _draw(logits.index_select(0, rows), [choices[row] for row in drawn]))
    return [int(token) for token in tokens.tolist()]


def _draw(logits: Tensor, choices: Sequence[TokenChoice]) -> Tensor:
    """Draw from the smallest sets of most likely tokens that reach `top_p`; int64 [B]."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    scaled = logits.float() / column([choice.temperature for choice in choices])
    probabilities, order = torch.softmax(scaled, dim=-1).sort(dim=-1, descending=True, stable=True)
    sums = probabilities.cumsum(dim=-1)
    num_kept = (sums - probabilities < column([choice.top_p for choice in choices])).sum(dim=-1, keepdim=True).clamp(1)
    reached = sums.gather(-1, num_kept - 1)
    places = torch.searchsorted(sums, column([choice.draw() for choice in choices]) * reached, right=True)
    return order.gather(-1, places.minimum(num_kept - 1)).squeeze(-1)
