"""Turned bits, in small: `make fuzz` turns 1,000."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.flips import KINDS, World, prepare_world, turn_bits

SEED = 20261201


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return prepare_world(tmp_path_factory.mktemp("flips"))


@pytest.mark.parametrize("kind", KINDS)
def test_turned_bit_changes_nothing_or_is_refused_by_name(world: World, kind: str) -> None:
    outcome = turn_bits(world, kind, random.Random(SEED), 40)
    assert outcome.silent == ()
    assert outcome.equal + outcome.refused == 40
    assert outcome.equal > 30 if kind == "index" else outcome.refused > 10
