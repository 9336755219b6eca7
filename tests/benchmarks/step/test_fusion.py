import pytest

from benchmarks.step.fusion import SIDES, FusionCase, compare

SMALL = FusionCase(3, 11, 2, 5, width=7, vocab_size=23)


@pytest.mark.parametrize("trains_table", [False, True])
def test_all_sides_compute_the_same_and_are_timed(trains_table: bool) -> None:
    found = compare(SMALL._replace(trains_table=trains_table), num_turns=2)
    assert set(found["median_s"]) == set(found["times_longer"]) == set(SIDES)
    assert found["times_longer"]["at once"] == 1.0


def test_a_side_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIDES, "loop over rows", lambda inputs: SIDES["at once"](inputs) * 2)
    with pytest.raises(ValueError, match="loop over rows: embeddings or gradients differ"):
        compare(SMALL, num_turns=1)
