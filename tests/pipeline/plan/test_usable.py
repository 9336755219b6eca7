import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.usable import UsableRows


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_rows_and_count_agree_with_the_mask(mask: list[bool], one: int, other: int) -> None:
    usable = UsableRows.where(np.array(mask, dtype=np.bool_))
    assert len(usable) == sum(mask)
    assert usable.rows(np.arange(len(usable))).tolist() == np.flatnonzero(mask).tolist()
    first, end = sorted((min(one, len(mask)), min(other, len(mask))))
    assert usable.count(first, end) == sum(mask[first:end])
