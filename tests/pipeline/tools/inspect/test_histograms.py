import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tools.inspect.histograms import Bar, count_reasons, histogram


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200))
def test_histogram_counts_every_value_once(values: list[int]) -> None:
    found = histogram("x", np.array(values))
    assert sum(bar.num_values for bar in found.bars) == len(values)
    assert len(found.bars) <= 41
    assert f"largest {max(values)}" in found.summary


def test_histogram_few_values_has_a_bar_each() -> None:
    assert histogram("x", np.array([3, 5, 5])).bars == (Bar("3", 1), Bar("4", 0), Bar("5", 2))


def test_histogram_outlier_does_not_squeeze_the_rest() -> None:
    found = histogram("x", np.array([*range(100), *range(100), *range(100), 10**6]))
    assert found.bars[0] == Bar("0 to 2", 9)
    assert found.bars[-1] == Bar("102 and more", 1)


def test_count_reasons_leaves_usable_samples_out_and_starts_with_the_most_frequent() -> None:
    table = pa.table({"reason": ["", "too_long", "role_order", "too_long", ""]})
    assert count_reasons(table) == {"too_long": 2, "role_order": 1}
