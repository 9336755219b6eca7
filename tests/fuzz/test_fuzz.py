"""A twentieth of the fuzzing campaign: no crash, no hang, every case ends as samples plus counted reasons."""

from __future__ import annotations

import pytest

from pipeline.errors import Reason
from tests.fuzz.campaign import FULL_SIZES, describe, run_range

SEED = 20261123
"""Fixed, so that a failure here belongs to the change at hand; `make fuzz` draws a new one each time."""


@pytest.mark.parametrize("kind", FULL_SIZES)
def test_fuzzed_input_never_crashes_hangs_or_disappears(kind: str) -> None:
    size = FULL_SIZES[kind] // 20
    outcome = run_range(kind, SEED, 0, size)
    assert outcome.failures == [], describe({kind: outcome})
    assert outcome.counts.total() == size
    reasons = set(outcome.counts) - {"samples"}
    assert {Reason(reason) for reason in reasons}
    assert outcome.counts["samples"] > size // 50
    assert len(reasons) >= 4
