"""A function applied to many items, wherever that runs: the shape of every parallel map of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

_A = TypeVar("_A")
_B = TypeVar("_B")


class RunMap(Protocol):
    """Applies a picklable function to items and yields the results in order, as `map` does; may run in parallel."""

    def __call__(self, function: Callable[[_A], _B], items: Sequence[_A], /) -> Iterable[_B]:
        """Return an iterable of results in the order of `items`."""
        ...


def run_serially(function: Callable[[_A], _B], items: Sequence[_A], /) -> Iterable[_B]:
    """Run in this process: the `RunMap` for tests and small data."""
    return map(function, items)
