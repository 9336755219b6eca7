import numpy as np

from pipeline.plan.sources import NO_MIX, Sources


def test_of_gives_each_row_the_source_whose_rows_it_lies_in() -> None:
    sources = Sources(("captions", "none", "chat"), (3, 3, 8))
    assert sources.of(np.array([7, 0, 2, 3])).tolist() == [2, 0, 0, 2]


def test_of_without_a_mix_is_zero() -> None:
    assert NO_MIX.of(np.array([0, 5])).tolist() == [0, 0]
