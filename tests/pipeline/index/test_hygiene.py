"""Filters over the index: each kind of condition, what they leave out of the plan, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from pipeline.config import ConfigError, DataConfig, TrainingConfig
from pipeline.config.where import COLUMNS, parse_condition
from pipeline.index.dataset import IndexedData, index_data
from pipeline.index.hygiene.table import hygiene_table, passes
from pipeline.samples.encode import SampleEncoder
from pipeline.stream.prepare import plan_run
from tests.pipeline.index.test_duplicates import encoded, photo, sample
from tests.pipeline.samples.test_film import encoder as film_encoder
from tests.pipeline.shards.archives import write_tar

KEYS = ["a", "copy", "wide", "german", "echo", "broken", "text", "gone"]


@pytest.fixture
def shards(tmp_path: Path) -> tuple[str, str]:
    german = "Ein Mann und ein Hund auf der Wiese."
    broken = "A caf\u00c3\u00a9 in the old town, with chairs."
    files = [
        *sample("a", "A red field with many flowers.", encoded(photo(1))),
        *sample("copy", "A red field, with many flowers!", encoded(photo(1), "jpeg")),
        *sample("wide", "The sky over a very long wall.", encoded(photo(2, 11, 97))),
        *sample("german", german, encoded(photo(3))),
        *sample("echo", "What is shown? It is the sea.", encoded(photo(4))),
        *sample("broken", broken, encoded(photo(5))),
        *sample("text", "Yes."),
        *sample("gone", "No picture here.", b"not a picture"),
    ]
    held_out = [*sample("x", "What no other says.", encoded(photo(4), "jpeg", 40))]
    return write_tar(tmp_path / "train.tar", files), write_tar(tmp_path / "eval.tar", held_out)


def indexed(tmp_path: Path, shards: tuple[str, str], *where: str) -> IndexedData:
    config = DataConfig(shards=(shards[0],), against=(shards[1],), where=where)
    return index_data(config, tmp_path / "index", own_encoder(), Console(file=io.StringIO()))


def own_encoder() -> SampleEncoder:
    from pipeline.samples.sampling import FrameSampling

    return film_encoder(FrameSampling())


@pytest.mark.parametrize(
    ("condition", "left_out"),
    [
        ("not is_duplicate", ["copy"]),
        ("is_duplicate == true", ["a", "wide", "german", "echo", "broken", "text"]),
        ("aspect <= 4", ["wide"]),
        ("short_side >= 12", ["wide"]),
        ("language in en, fr", ["german"]),
        ("language != de", ["german"]),
        ("language not in de, fr", ["german"]),
        ("not repeats_question", ["echo"]),
        ("not broken_text", ["broken"]),
        ("answer_chars >= 5", ["text"]),
        ("num_images == 0", ["a", "copy", "wide", "german", "echo", "broken"]),
        ("image_copies < 1", ["a", "copy"]),
        ("overlap == none", ["echo"]),
        ("kind in instruction", []),
    ],
)
def test_condition_leaves_out_what_it_says(
    tmp_path: Path, shards: tuple[str, str], condition: str, left_out: list[str]
) -> None:
    data = indexed(tmp_path, shards, condition)
    tokens = data.tokens["num_tokens"].to_pylist()
    assert [key for key, number in zip(KEYS[:-1], tokens, strict=False) if not number] == left_out
    assert data.tokens["reason"].to_pylist() == [""] * 7 + ["image_unsupported_format"]
    assert data.left_out is not None
    assert data.left_out.num_left_out == len(left_out)


def test_plan_holds_the_rest_and_its_fingerprint_tells_conditions(tmp_path: Path, shards: tuple[str, str]) -> None:
    training = TrainingConfig(global_batch_size=2, micro_batch_tokens=4096, learning_rate=1e-3)
    prints = set()
    for where in ((), ("not is_duplicate",), ("not is_duplicate", "answer_chars >= 5"), ("answer_chars >= 1",)):
        config = DataConfig(shards=(shards[0],), against=(shards[1],), where=where)
        data = indexed(tmp_path, shards, *where)
        plan = plan_run(config, training, 7, data, own_encoder())
        ids = sorted(int(one) for step in range(plan.total_steps) for one in plan.samples(step))
        assert ids == [row for row, number in enumerate(data.tokens["num_tokens"].to_pylist()) if number]
        prints.add(plan.fingerprint)
    assert len(prints) == 4


def test_conditions_that_leave_nothing_are_refused(tmp_path: Path, shards: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.where leaves none of 7 samples: num_images > 9"):
        indexed(tmp_path, shards, "num_images > 9")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("answer_length > 3", "no column answer_length; there are num_images"),
        ("aspect", "aspect holds a number; compare it with a value"),
        ("aspect < wide", "'wide' is not a number"),
        ("language < en", "use ==, !=, in or not in"),
        ("is_duplicate == 3", "'3' is not a truth"),
        ("a b c", "expected COLUMN OPERATOR VALUE"),
        ("overlap == none", "`overlap` needs data.against"),
    ],
)
def test_bad_condition_is_refused_with_the_config(condition: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(shards=("a.tar",), where=(condition,))


def test_every_column_of_conditions_is_in_the_table(tmp_path: Path, shards: tuple[str, str]) -> None:
    table = hygiene_table(indexed(tmp_path, shards).index, None, tmp_path)
    assert set(COLUMNS) == set(table.schema.names) - {"duplicate_of"}
    assert passes(table, [parse_condition("overlap == none")]).all()
