"""Failing storage, in small: `make fuzz` injects 200 faults."""

from __future__ import annotations

from tests.fuzz.storage import run_cases


def test_failing_storage_gives_identical_bytes_or_an_error() -> None:
    counts = run_cases(11, seed=20261123)
    assert counts["faults"] >= 11
    assert counts["identical"] + counts["error"] == counts["runs"]
    assert counts["identical"] > 0
