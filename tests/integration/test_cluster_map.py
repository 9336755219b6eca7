"""A function over items as a Ray Data job: order, errors, lost processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError, Reason
from pipeline.parallel.ray_map import map_on_cluster

pytestmark = pytest.mark.ray


class Squares(Sequence[int]):
    """Items made where they are asked for; they cannot be listed."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, place: Any) -> Any:
        return place**2

    def __iter__(self) -> Any:
        raise AssertionError("listed")


def negate(item: int) -> int:
    return -item


def refuse_seven(item: int) -> int:
    if item == 7:
        raise DataError(Reason.SHARD_TRUNCATED, "cut short", shard="seven.tar")
    return item


def die_once(item: str) -> str:
    path = Path(item)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def test_results_come_in_the_order_of_items_that_are_made_on_demand(local_ray: None) -> None:
    assert list(map_on_cluster(negate, Squares())) == [-(number**2) for number in range(9)]


def test_no_items_need_no_cluster() -> None:
    assert list(map_on_cluster(negate, [])) == []


def test_error_keeps_its_class_and_comes_after_the_results_before_it(local_ray: None) -> None:
    results = map_on_cluster(refuse_seven, range(9))
    assert [next(results) for _ in range(7)] == [*range(7)]
    with pytest.raises(DataError, match="cut short") as caught:
        next(results)
    assert (type(caught.value), caught.value.reason) == (DataError, Reason.SHARD_TRUNCATED)


def test_item_whose_process_is_lost_is_done_again(tmp_path: Path, local_ray: None) -> None:
    items = [str(tmp_path / name) for name in "abc"]
    assert list(map_on_cluster(die_once, items)) == ["a", "b", "c"]
