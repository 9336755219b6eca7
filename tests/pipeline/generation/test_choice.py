"""Tokens are drawn from the probabilities of the row, cut at `top_p`, by the row's own generator."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.generation.choice import TokenChoice, choose_tokens
from pipeline.generation.requests import Sampling

PROBABILITIES = [0.05, 0.4, 0.25, 0.3]
LOGITS = torch.tensor([[math.log(p) for p in PROBABILITIES]])


def shares(**sampling: float) -> list[float]:
    choice, number = TokenChoice(Sampling(1, **sampling)), 4000  # type: ignore[arg-type]
    counts = [0] * 4
    for token in choose_tokens(LOGITS.expand(number, -1), [choice] * number):
        counts[token] += 1
    return [count / number for count in counts]


def test_tokens_come_with_their_probabilities() -> None:
    assert shares(temperature=1.0) == pytest.approx(PROBABILITIES, abs=0.03)


def test_temperature_sharpens() -> None:
    squares = [p * p for p in PROBABILITIES]
    assert shares(temperature=0.5) == pytest.approx([p / sum(squares) for p in squares], abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.39, [1]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    total = sum(PROBABILITIES[token] for token in kept)
    wanted = [p / total if token in kept else 0 for token, p in enumerate(PROBABILITIES)]
    found = shares(temperature=1.0, top_p=top_p)
    assert found == pytest.approx(wanted, abs=0.03)
    assert [token for token, share in enumerate(found) if share] == kept


def test_greedy_rows_use_no_random_numbers() -> None:
    greedy, drawing = TokenChoice(Sampling(1)), TokenChoice(Sampling(1, temperature=1.0, seed=5))
    first = choose_tokens(LOGITS.expand(2, -1), [greedy, drawing])
    assert first[0] == 1
    assert TokenChoice(Sampling(1, seed=5)).draw() != drawing.draw()
    again = TokenChoice(Sampling(1, seed=5))
    again.draw()
    assert greedy.draw() == TokenChoice(Sampling(1)).draw()


@pytest.mark.parametrize(
    "values", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0}, {"top_p": 1.1}, {"stop": ("",)}]
)
def test_sampling_outside_its_limits_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|empty"):
        Sampling(**{"max_new_tokens": 3, **values})  # type: ignore[arg-type]
