"""A covering array: few rows in which every pair of values of two options occurs, by greedy search."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

_TRIES = 100
Pair = tuple[tuple[str, int], tuple[str, int]]


def all_pairs(options: Mapping[str, Sequence[Any]], independent: Collection[tuple[str, str]] = ()) -> set[Pair]:
    """Return every pair of values of two different options, values by number, but for options named as independent."""
    apart = {tuple(sorted(names)) for names in independent}
    return {
        ((one, i), (other, j))
        for one, other in itertools.combinations(sorted(options), 2)
        if (one, other) not in apart
        for i in range(len(options[one]))
        for j in range(len(options[other]))
    }


def excluded_pairs(
    options: Mapping[str, Sequence[Any]], rules: Sequence[tuple[str, Any, str, Sequence[Any]]]
) -> set[Pair]:
    """Return the pairs that rules `(option, value, other option, its values)` name, and those that follow from them.

    A pair follows when another option has no value that goes with both.
    """
    found = set[Pair]()
    for name, value, other, others in rules:
        for own in others:
            first, second = (name, list(options[name]).index(value)), (other, list(options[other]).index(own))
            found.add((min(first, second), max(first, second)))
    while implied := {
        pair for pair in all_pairs(options) - found if not all(choices_left(dict(pair), options, found).values())
    }:
        found |= implied
    return found


def pairs_of(row: Mapping[str, int]) -> set[Pair]:
    """Return the pairs that occur in a row."""
    return {((one, row[one]), (other, row[other])) for one, other in itertools.combinations(sorted(row), 2)}


def covering_rows(
    options: Mapping[str, Sequence[Any]], wanted: Set[Pair], excluded: Set[Pair], seed: int, slow: Set[str]
) -> list[dict[str, int]]:
    """Return rows, option -> number of its value, in which every wanted pair occurs; by seed the same.

    Each row begins with a pair that is still missing, and takes for every other option the value that adds most among
    those that leave every further option a choice. A row that comes to a dead end is begun again in another order.

    Args:
        options: name -> values.
        wanted: pairs that some row must have; those excluded are not among them.
        excluded: pairs that no row may have.
        seed: decides between values that add as much as each other,
        slow: but for these options, which then take their first.

    Raises:
        ValueError: a pair goes with no values of the other options.
    """
    rng, missing, rows = random.Random(seed), set(wanted), list[dict[str, int]]()
    while missing:
        first = min(missing)
        tries = (_fill_row(dict(first), options, excluded, missing, slow, rng) for _ in range(_TRIES))
        row = next((row for row in tries if row is not None), None)
        if row is None:
            raise ValueError(f"no row has {first}: the other options exclude each other")
        missing -= pairs_of(row)
        rows.append(row)
    return rows


def _fill_row(
    row: dict[str, int],
    options: Mapping[str, Sequence[Any]],
    excluded: Set[Pair],
    missing: Set[Pair],
    slow: Set[str],
    rng: random.Random,
) -> dict[str, int] | None:
    """Return the row with a value for every option, None at a dead end."""
    # 1. What the pair that it begins with leaves.
    left = choices_left(row, options, excluded)
    if not all(left.values()):
        return None
    # 2. One option after the other, in random order.
    while left:
        name = rng.choice(sorted(left))
        further = {value: _without(left, name, value, excluded) for value in left[name]}
        gains = {value: _gain(row, name, value, missing) for value, rest in further.items() if all(rest.values())}
        if not gains:
            return None
        best = [value for value, gain in gains.items() if gain == max(gains.values())]
        row[name] = min(best) if name in slow else rng.choice(best)
        left = further[row[name]]
    return row


def choices_left(
    row: Mapping[str, int], options: Mapping[str, Sequence[Any]], excluded: Set[Pair]
) -> dict[str, list[int]]:
    """Return the values that go with a row, of each option that it lacks."""
    left = {name: list(range(len(values))) for name, values in options.items() if name not in row}
    for name, value in row.items():
        left = _without(left, name, value, excluded)
    return left


def _without(left: Mapping[str, list[int]], name: str, value: int, excluded: Set[Pair]) -> dict[str, list[int]]:
    """Return what other options can be once `name` has a value."""
    own = (name, value)
    return {
        other: [one for one in values if (min(own, (other, one)), max(own, (other, one))) not in excluded]
        for other, values in left.items()
        if other != name
    }


def _gain(row: Mapping[str, int], name: str, value: int, pairs: Set[Pair]) -> int:
    new = (name, value)
    return sum((min(new, own), max(new, own)) in pairs for own in row.items())
