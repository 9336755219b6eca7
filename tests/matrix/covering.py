"""A covering array: few rows in which every pair of values of two options occurs, by greedy search."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence, Set
from typing import Any

Pair = tuple[tuple[str, int], tuple[str, int]]


def all_pairs(options: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Return every pair of values of two different options, values by number."""
    return {
        ((one, i), (other, j))
        for one, other in itertools.combinations(sorted(options), 2)
        for i in range(len(options[one]))
        for j in range(len(options[other]))
    }


def excluded_pairs(
    options: Mapping[str, Sequence[Any]], rules: Sequence[tuple[str, Any, str, Sequence[Any]]]
) -> set[Pair]:
    """Return the pairs that rules `(option, value, other option, its values)` name."""
    found = set[Pair]()
    for name, value, other, others in rules:
        for own in others:
            first, second = (name, list(options[name]).index(value)), (other, list(options[other]).index(own))
            found.add((min(first, second), max(first, second)))
    return found


def pairs_of(row: Mapping[str, int]) -> set[Pair]:
    """Return the pairs that occur in a row."""
    return {((one, row[one]), (other, row[other])) for one, other in itertools.combinations(sorted(row), 2)}


def covering_rows(options: Mapping[str, Sequence[Any]], excluded: Set[Pair], seed: int) -> list[dict[str, int]]:
    """Return rows, option -> number of its value, in which every pair occurs but those excluded; by seed the same.

    Each row begins with a pair that is still missing, and takes for every other option the value that adds most.

    Raises:
        ValueError: no value of an option goes with those that a row has already.
    """
    rng, missing, rows = random.Random(seed), all_pairs(options) - excluded, list[dict[str, int]]()
    while missing:
        first = min(missing)
        row = dict(first)
        rest = [name for name in options if name not in row]
        rng.shuffle(rest)
        rest.sort(key=lambda name: not any(name in dict(pair) for pair in excluded))  # while there is a choice
        for name in rest:
            allowed = [value for value in range(len(options[name])) if _gain(row, name, value, excluded) == 0]
            if not allowed:
                raise ValueError(f"no value of {name} goes with {row}")
            gains = {value: _gain(row, name, value, missing) for value in allowed}
            row[name] = rng.choice([value for value, gain in gains.items() if gain == max(gains.values())])
        missing -= pairs_of(row)
        rows.append(row)
    return rows


def _gain(row: Mapping[str, int], name: str, value: int, pairs: Set[Pair]) -> int:
    new = (name, value)
    return sum((min(new, own), max(new, own)) in pairs for own in row.items())
