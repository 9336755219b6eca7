"""Reason codes and the errors that carry them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from pipeline.errors import ADVICE, DataError, Reason, ShardError, advice


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_advice_of_one_clause(reason: Reason) -> None:
    assert advice(reason)
    assert not advice(reason).endswith(".")
    assert set(ADVICE) == set(Reason)


def test_message_says_where_what_and_what_to_do() -> None:
    error = DataError(Reason.TURN_EMPTY, "turn 3 is empty", shard="s.tar", key="k7")
    assert str(error) == "s.tar, key k7: turn 3 is empty; fill the turn or remove it"
    assert error.where == ("s.tar", "k7")
    assert str(DataError(Reason.TURN_EMPTY, "turn 3 is empty")) == "turn 3 is empty; fill the turn or remove it"


def test_at_fills_only_what_is_unknown() -> None:
    error = DataError(Reason.TURN_EMPTY, "w", key="inner").at(shard="s.tar", key="outer")
    assert error.where == ("s.tar", "inner")


def test_control_characters_of_a_key_cannot_forge_log_lines() -> None:
    error = DataError(Reason.TURN_EMPTY, "w", shard="a\nb", key="x\u2028ERROR y\x1b[2J")
    assert "\n" not in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("kind", [DataError, ShardError])
def test_errors_survive_pickling(kind: type[DataError]) -> None:
    error = kind(Reason.SHARD_TRUNCATED, "what", shard="s", key="k")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.reason, again.what, again.where, str(again)) == (error.reason, error.what, error.where, str(error))


def test_documentation_lists_every_reason_with_its_advice() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data_format.md").read_text(encoding="utf-8")
    section = text.partition("## Reason codes")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", section, re.MULTILINE)
    assert documented == [(reason.value, advice(reason)) for reason in Reason]
