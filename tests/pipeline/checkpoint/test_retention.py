from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.retention import superseded

SCORES = st.lists(st.none() | st.floats(0, 9).map(lambda x: round(x, 1)), max_size=13)


def test_superseded_keeps_newest_and_best() -> None:
    scores = {"a": 3.0, "b": 1.0, "c": None, "d": 1.0, "e": 2.0, "f": 5.0}
    assert superseded(scores, keep_last=1, keep_best=0) == ["a", "b", "c", "d", "e"]
    assert superseded(scores, keep_last=2, keep_best=1) == ["a", "b", "c"]
    assert superseded(scores, keep_last=1, keep_best=3) == ["a", "c"]


@given(SCORES, st.integers(1, 5), st.integers(0, 5))
def test_superseded_never_takes_the_newest_nor_the_best(scores: list[float | None], last: int, best: int) -> None:
    named = {f"{idx:02d}": score for idx, score in enumerate(scores)}
    gone = superseded(named, last, best)
    kept = [name for name in named if name not in gone]
    assert kept[-last:] == list(named)[-last:]
    measured = sorted(score for score in scores if score is not None)[:best]
    assert all(any(named[name] == score for name in kept) for score in measured)
    assert len(kept) <= last + best


def test_superseded_of_equal_scores_keeps_the_newest() -> None:
    scores = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 9.0}
    assert superseded(scores, keep_last=1, keep_best=1) == ["a", "b"]
    assert superseded(scores, keep_last=1, keep_best=2) == ["b"]
