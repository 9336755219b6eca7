"""Budgets for rejected samples: each limit alone, and a message that says where to look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import ConfigError, DataConfig
from pipeline.index.budget import Exceeded, check_rejected, describe_excess, find_exceeded
from pipeline.index.build import build_index
from pipeline.index.dataset import IndexedData, SourceRows
from pipeline.index.scan import Checks
from tests.pipeline.shards.archives import caption_files, write_tar


def limits(**values: Any) -> DataConfig:
    return DataConfig(shards=("a.tar",), **values)


def rows(num_samples: int, *rejected: int) -> np.ndarray:
    flags = np.zeros(num_samples, bool)
    flags[list(rejected)] = True
    return flags


SHARDS = np.repeat(np.arange(7, dtype=np.int32), 500)


def test_find_exceeded_within_all_limits_is_none() -> None:
    assert find_exceeded(rows(3500), SHARDS, limits()) is None
    assert find_exceeded(rows(3500, *range(20)), SHARDS, limits()) is None


@pytest.mark.parametrize(
    ("rejected", "values", "expected"),
    [
        (range(0, 3500, 160), {}, ("max_rejected_fraction", 22, 20, 0)),
        (range(700, 721), {"max_rejected_fraction": 1}, None),
        (range(490, 595), {"max_rejected_fraction": 1}, ("max_rejected_in_a_row", 105, 100, 490)),
        (range(501, 999, 9), {"max_rejected_fraction": 1}, ("max_rejected_per_shard", 56, 50, 501)),
        (range(501, 999, 9), {"max_rejected_fraction": 1, "max_rejected_per_shard": None}, None),
        (
            range(490, 595),
            {"max_rejected_fraction": 1, "max_rejected_in_a_row": None, "max_rejected_per_shard": 99},
            None,
        ),
    ],
)
def test_find_exceeded_names_limit_and_first_row(
    rejected: range, values: dict[str, Any], expected: tuple[str, int, int, int] | None
) -> None:
    found = find_exceeded(rows(3500, *rejected), SHARDS, limits(**values))
    assert found == (None if expected is None else Exceeded(*expected))


def test_check_rejected_names_sample_shard_and_field(tmp_path: Path) -> None:
    files = [*caption_files("good"), *((f"k{idx:02d}.txt", b"x") for idx in range(23))]
    shard = write_tar(tmp_path / "bad.tar", files)
    index = build_index([shard], tmp_path / "index")
    tokens = pa.table({"reason": index.samples["reason"]})
    data = IndexedData(index, tokens, (SourceRows("", 0, index.num_samples),))
    with pytest.raises(ConfigError) as caught:
        check_rejected(data, limits())
    for part in (
        "23 of 24",
        "missing_image 23",
        "23 in all, more than the 20",
        "'k00'",
        shard,
        "data.max_rejected_fraction",
        "--report",
    ):
        assert part in str(caught.value)
    check_rejected(data, limits(max_rejected_fraction=0.99))


def test_check_rejected_counts_defective_shards_by_themselves(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{idx}.tar", caption_files(f"key{idx}")) for idx in range(3)]
    cut = [tmp_path / f"cut{idx}.tar" for idx in range(2)]
    for path in cut:
        path.write_bytes(b"")

    def data_of(*urls: str) -> IndexedData:
        index = build_index(urls, tmp_path / "index", on_bad_shard="quarantine")
        return IndexedData(
            index, pa.table({"reason": index.samples["reason"]}), (SourceRows("", 0, index.num_samples),)
        )

    check_rejected(data_of(*shards, str(cut[0])), limits())
    with pytest.raises(ConfigError) as caught:
        check_rejected(data_of(*shards, *map(str, cut)), limits())
    for part in ("2 of 5 shards are defective (shard_empty 2), more than the 1", str(cut[0]), "max_rejected_fraction"):
        assert part in str(caught.value)
    check_rejected(data_of(*shards, *map(str, cut)), limits(max_rejected_fraction=0.4))


@pytest.mark.parametrize(
    ("sources", "is_refused"),
    [
        ({"good": {}, "bad": {}}, True),
        ({"good": {"epochs": 1}, "bad": {"epochs": 2}}, True),
        ({"good": {"weight": 1}, "bad": {"weight": 1}}, True),
        ({"good": {"weight": 1}, "bad": {"weight": 0}}, False),
    ],
)
def test_source_of_a_mix_without_a_usable_sample_is_refused_however_small(
    sources: dict[str, dict[str, float]], is_refused: bool, tmp_path: Path
) -> None:
    paths = {"good": write_tar(tmp_path / "good.tar", caption_files("k")),
             "bad": write_tar(tmp_path / "bad.tar", [("k.txt", b"x")])}  # fmt: skip
    mix = DataConfig.model_validate(
        {"sources": {name: {"shards": (paths[name],), **how} for name, how in sources.items()}}
    )
    index = build_index(list(paths.values()), tmp_path / "index", checks=Checks(allow_duplicate_keys=True))
    data = IndexedData(
        index, pa.table({"reason": index.samples["reason"]}), (SourceRows("good", 0, 1), SourceRows("bad", 1, 2))
    )
    found = describe_excess(data, mix)
    assert (found is not None and "source 'bad' has no usable sample (missing_image 1)" in found) is is_refused


@pytest.mark.parametrize(
    ("rejected", "values", "expected"),
    [
        ((3, 4, 5, 9), {"max_rejected_in_a_row": 3}, None),
        ((3, 4, 5, 6, 9), {"max_rejected_in_a_row": 3}, ("max_rejected_in_a_row", 4, 3, 3)),
        ((1, 4, 5, 7, 8, 9, 11), {"max_rejected_in_a_row": 2}, ("max_rejected_in_a_row", 3, 2, 7)),
        ((3, 4, 5, 9), {"max_rejected_in_a_row": 0}, ("max_rejected_in_a_row", 3, 0, 3)),
        ((0, 2, 5, 9, 13), {"max_rejected_per_shard": 3}, None),
        ((0, 2, 5, 9, 11, 13), {"max_rejected_per_shard": 2}, ("max_rejected_per_shard", 3, 2, 0)),
        ((1, 7, 9, 11), {"max_rejected_per_shard": 2}, ("max_rejected_per_shard", 3, 2, 7)),
        ((3499,), {"max_rejected_per_shard": 0, "max_rejected_in_a_row": 1}, ("max_rejected_per_shard", 1, 0, 3499)),
        (range(0, 3500, 175), {}, None),
        (range(5, 3500, 175), {"max_rejected_fraction": 0.0}, None),
        (range(5, 3499, 166), {"max_rejected_fraction": 0.006}, ("max_rejected_fraction", 22, 21, 5)),
    ],
)
def test_find_exceeded_at_the_limits(
    rejected: Sequence[int], values: dict[str, Any], expected: tuple[str, int, int, int] | None
) -> None:
    shards = SHARDS if max(rejected) > 13 else np.repeat(np.arange(2, dtype=np.int32), 7)
    found = find_exceeded(rows(len(shards), *rejected), shards, limits(**values))
    assert found == (None if expected is None else Exceeded(*expected))
    assert found is None or all(type(number) is int for number in found[1:])


def test_describe_excess_says_what_how_many_and_where(tmp_path: Path) -> None:
    files = [*caption_files("a"), ("b.txt", b"x"), ("c.txt", b"x"), *caption_files("d"), ("e.npy", b"x")]
    shards = [write_tar(tmp_path / "good.tar", caption_files("z")), write_tar(tmp_path / "bad.tar", files)]
    index = build_index(shards, tmp_path / "index")
    tokens = pa.table({"reason": index.samples["reason"]})
    data = IndexedData(index, tokens, (SourceRows("", 0, index.num_samples),))
    assert describe_excess(data, limits()) is None
    in_a_row = describe_excess(data, limits(max_rejected_in_a_row=1))
    assert in_a_row is not None
    assert in_a_row.startswith(
        "3 of 6 samples are unusable (missing_image 2, unknown_member 1): 2 one after the other, more than the 1 that "
        f"data.max_rejected_in_a_row allows; begin with sample 'b' of {shards[1]} (missing_image). "
    )
    per_shard = describe_excess(data, limits(max_rejected_per_shard=2))
    assert per_shard is not None
    assert (
        "): 3 in one shard, more than the 2 that data.max_rejected_per_shard allows; begin with sample 'b'" in per_shard
    )


def test_describe_excess_of_a_source_without_shards_says_so(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "good.tar", caption_files("k"))
    index = build_index([shard], tmp_path / "index")
    mix = DataConfig.model_validate({"sources": {name: {"shards": (shard,)} for name in ("good", "none")}})
    tokens = pa.table({"reason": index.samples["reason"]})
    data = IndexedData(index, tokens, (SourceRows("good", 0, 1), SourceRows("none", 1, 1)))
    found = describe_excess(data, mix)
    assert found is not None
    assert "source 'none' has no usable sample (its shards are empty)" in found


def test_describe_excess_of_a_source_with_some_usable_samples_is_none(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "mixed.tar", [*caption_files("a"), ("b.txt", b"x")])
    index = build_index([shard], tmp_path / "index")
    mix = DataConfig.model_validate({"sources": {"mixed": {"shards": (shard,)}}})
    tokens = pa.table({"reason": index.samples["reason"]})
    assert describe_excess(IndexedData(index, tokens, (SourceRows("mixed", 0, 2),)), mix) is None
    many = pa.table({"reason": pa.array(["missing_image"] * 2)})
    found = describe_excess(IndexedData(index, many, (SourceRows("", 0, 2),)), limits(max_rejected_in_a_row=1))
    assert found is not None
    assert "2 of 2 samples are unusable (missing_image 2): 2 one after the other" in found
