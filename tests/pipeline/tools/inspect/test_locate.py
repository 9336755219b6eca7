import numpy as np
import pyarrow as pa
import pytest

from pipeline.index.index import INDEX_SCHEMA, ShardIndex, ShardInfo
from pipeline.index.scan import Checks
from pipeline.tools.inspect.locate import find_sample, short_names


def make_index(*shards: tuple[str, list[str]]) -> ShardIndex:
    rows = [(number, ordinal, key) for number, (_, keys) in enumerate(shards) for ordinal, key in enumerate(keys)]
    columns = {"shard": [row[0] for row in rows], "ordinal": [row[1] for row in rows], "key": [row[2] for row in rows]}
    rest = {field.name: pa.nulls(len(rows), field.type) for field in INDEX_SCHEMA if field.name not in columns}
    table = pa.table({**{name: pa.array(values) for name, values in columns.items()}, **rest})
    infos = tuple(ShardInfo(url, 0, "", "", len(keys), "", "", {}) for url, keys in shards)
    return ShardIndex(infos, table, Checks(), "f")


INDEX = make_index(("s3://b/x/a-0.tar", ["p", "q", "7"]), ("/data/a-1.tar", ["r", "s"]), ("/other/a-1.tar", ["t"]))


@pytest.mark.parametrize(
    ("name", "row"),
    [("0:2", 2), ("a-0.tar:1", 1), ("s3://b/x/a-0.tar:q", 1), ("1:s", 4), ("/other/a-1.tar:0", 5), ("0:7", 2)],
)
def test_find_sample_takes_number_name_or_url_and_number_or_key(name: str, row: int) -> None:
    assert find_sample(INDEX, name) == row


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("17", "expected SHARD:INDEX"),
        ("3:0", "not among the 3 shards"),
        ("a-1.tar:0", "2 shards have this file name"),
        ("1:2", "holds samples 0 to 1, none with the key '2'"),
    ],
)
def test_find_sample_names_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_sample(INDEX, name)


def test_find_sample_takes_digits_with_leading_zeros_for_a_key() -> None:
    index = make_index(("/d/00000.tar", ["000000000", "000000001", "000000003", "000000004"]))
    found = [find_sample(index, f"00000.tar:{place}") for place in ("000000003", "000000001", "3", "1")]
    assert found == [2, 1, 3, 1]
    with pytest.raises(ValueError, match="none with the key '000000002'"):
        find_sample(index, "00000.tar:000000002")


def test_short_names_find_their_shard_again() -> None:
    names = short_names(INDEX)
    assert list(names.values()) == ["a-0.tar", "1", "2"]
    assert [find_sample(INDEX, f"{names[shard.url]}:0") for shard in INDEX.shards] == [0, 3, 5]


def test_find_sample_agrees_with_row_numbers() -> None:
    shards = INDEX.samples["shard"].to_numpy()
    ordinals = INDEX.samples["ordinal"].to_numpy()
    rows = [find_sample(INDEX, f"{shard}:{ordinal}") for shard, ordinal in zip(shards, ordinals, strict=True)]
    assert rows == list(np.arange(len(shards)))
