"""Missing pieces by their numbering."""

from __future__ import annotations

import pytest

from pipeline.shards.pieces import missing_pieces


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], []),
        (
            ["train-00000-of-00005.parquet", "train-00002-of-00005.parquet"],
            ["train-N-of-5.parquet: pieces 1, 3, 4 of 5 not there"],
        ),
        (["d/a-00001-of-00003.tar", "d/a-00002-of-00003.tar", "d/a-00003-of-00003.tar"], []),
        (["d/a-00001-of-00003.tar", "d/a-00003-of-00003.tar"], ["d/a-N-of-3.tar: piece 2 of 3 not there"]),
        (["a-0-of-2.tar", "b-0-of-1.tar", "a-1-of-2.tar"], []),
        (["00000.tar", "00001.tar", "00003.tar"], ["N.tar, 0 to 3: piece 2 not there"]),
        (["00005.tar", "00006.tar"], []),
        (["cc-2019.tar", "cc-2024.tar"], ["cc-N.tar, 2019 to 2024: pieces 2020, 2021, 2022, 2023 not there"]),
        (["img-100.tar", "img-90000.tar"], []),
        (["x-000-of-100.tar"], ["x-N-of-100.tar: pieces 1, 2, 3, 4, 5 and 94 more of 100 not there"]),
        (["a.tar", "b.tar"], []),
    ],
)
def test_missing_pieces_names_the_numbers(names: list[str], expected: list[str]) -> None:
    assert missing_pieces(names) == expected
