"""Shapes in which tables of merged data sets hold images and turns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import DataError
from pipeline.samples.schema import Sample, SchemaPolicy, parse_sample
from pipeline.tools.convert.table_rows import find_columns, row_members
from tests.pipeline.samples.pictures import picture

IMAGE = {"bytes": picture(5, 7), "path": None}
TURNS = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A ball."}]


def sample(row: dict[str, Any]) -> Sample:
    columns = find_columns(pa.schema([(name, pa.null()) for name in row]), None, None, "a.parquet")
    assert set(columns.names()) <= set(row)
    return parse_sample("k", row_members(row, columns, SchemaPolicy()))


@pytest.mark.parametrize(
    "row",
    [
        {"image": IMAGE, "images": None, "conversations": TURNS, "messages": None, "caption": "other"},
        {"image": None, "images": [IMAGE], "conversations": None, "messages": TURNS},
        {"jpg": IMAGE, "image": None, "texts": None, "conversations": TURNS},
        {"image": IMAGE, "conversations": {"from": ["human", "gpt"], "value": ["<image>What?", "A ball."]}},
        {"image": IMAGE, "messages": {"role": ["user", "assistant"], "content": ["<image>What?", "A ball."]}},
    ],
)
def test_row_is_read_from_the_columns_that_are_not_null(row: dict[str, Any]) -> None:
    found = sample(row)
    assert (found.images, [turn.text for turn in found.conversation.turns]) == ((picture(5, 7),), ["What?", "A ball."])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": IMAGE, "caption": ["one", "two"]}, "2 texts in one row: choose one"),
        ({"image": IMAGE, "conversations": {"from": ["human"], "value": ["a", "b"]}}, "neither a caption nor a list"),
        ({"image": IMAGE, "conversations": None, "messages": None}, "column 'conversations' is empty"),
        ({"image": None, "images": None, "caption": "a ball"}, "a caption without image"),
    ],
)
def test_row_that_makes_no_sample_says_what_it_lacks(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(row)
