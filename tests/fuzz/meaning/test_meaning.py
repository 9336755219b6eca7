"""A fixed part of the fuzz of meaning, and defects planted in the converters that it must find."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.tools.convert import row_reader, turns
from tests.fuzz.meaning.campaign import BATCH, run_batch, run_campaign
from tests.fuzz.meaning.changes import CHANGES
from tests.fuzz.meaning.dialects import DIALECTS

SEED = 20


def test_every_dialect_shows_what_it_means_or_is_refused() -> None:
    result = run_campaign(len(DIALECTS) * BATCH, SEED, 1)
    assert result.differences == []
    assert {dialect for dialect, _, _ in result.counts} == {dialect.name for dialect in DIALECTS}
    assert {change for _, change, _ in result.counts} == {"none", *CHANGES}
    shown = sum(number for (_, _, outcome), number in result.counts.items() if outcome == "shown")
    assert 0.6 < shown / result.counts.total() < 0.95


def _without_system(row: Any, said: turns.Said) -> turns.Said:
    return said


def _in_reverse(reader: Any, parts: list[Any], idx: int) -> list[Any]:
    reader._in_turns.reverse()
    return with_own(reader, parts, idx)


with_own = row_reader._Reader._with_own
DEFECTS: tuple[tuple[object, str, object, str], ...] = (
    (row_reader._Reader, "_check_nothing_left", lambda _: None, "llava-lines"),
    (turns, "_with_system", _without_system, "sharegpt"),
    (row_reader._Reader, "_with_own", _in_reverse, "per-turn"),
    (row_reader, "foreign_marks", lambda _: iter(()), "swift"),
)


@pytest.mark.parametrize(("owner", "name", "defect", "dialect"), DEFECTS, ids=[name for _, name, _, _ in DEFECTS])
def test_defect_in_a_converter_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, defect: object, dialect: str
) -> None:
    monkeypatch.setattr(owner, name, defect)
    number = [one.name for one in DIALECTS].index(dialect)
    found = [run_batch(SEED, number + len(DIALECTS) * turn).differences for turn in range(3)]
    assert any(found)
