"""Rank-steps as rows of an Arrow table: what arrives is what was sent, and writing copies nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from pipeline.stream.rank_step import RankStep, Rejected
from pipeline.stream.transport import from_row, to_row


def rank_step(num_tiles: int) -> RankStep:
    generator = torch.Generator().manual_seed(7)
    return RankStep(
        step=5,
        rank=1,
        checksum=2**32 - 1,
        sample_ids=torch.tensor([2**40, 3, 17]),
        batch_sizes=torch.tensor([2, 0, 1], dtype=torch.int32),
        text_lengths=torch.tensor([3, 0, 2], dtype=torch.int32),
        num_images=torch.tensor([num_tiles, 0, 0], dtype=torch.int32),
        input_ids=torch.arange(5, dtype=torch.int32),
        labels=torch.full((5,), -100, dtype=torch.int32),
        image_ids=torch.arange(num_tiles, dtype=torch.int32),
        views=torch.ones(num_tiles, 3, dtype=torch.int32),
        pixels=torch.randint(0, 256, (num_tiles, 3, 7, 5), dtype=torch.uint8, generator=generator),
        rejected=(Rejected(3, "image_truncated", 'shard "a", key \u00e9'),),
    )


def assert_same(found: RankStep, sent: RankStep) -> None:
    for name, value in sent._asdict().items():
        other = found._asdict()[name]
        if isinstance(value, torch.Tensor):
            assert (other.dtype, other.shape) == (value.dtype, value.shape), name
            assert torch.equal(other, value), name
        else:
            assert other == value, name


def test_row_returns_what_it_was_given_with_and_without_images() -> None:
    for num_tiles in (0, 2):
        sent = rank_step(num_tiles)
        assert_same(from_row(to_row(sent)), sent)


def test_row_of_a_rank_without_samples_returns_what_it_was_given() -> None:
    no_ids = torch.from_numpy(np.zeros(0, np.int32))  # as the loader makes them: torch keeps numpy's stride of nothing
    assert no_ids.stride() == (0,)
    sent = rank_step(0)._replace(input_ids=no_ids, labels=no_ids)
    assert_same(from_row(to_row(sent)), sent)


def test_row_survives_being_joined_and_sliced_like_blocks_are() -> None:
    first, second = rank_step(2), rank_step(3)
    joined = pa.concat_tables([to_row(first), to_row(second)]).combine_chunks()
    assert_same(from_row(joined.slice(1, 1)), second)


def test_to_row_shares_memory_with_the_tensors() -> None:
    sent = rank_step(2)
    column = to_row(sent)["pixels"].chunk(0)
    assert column.buffers()[2].address == sent.pixels.data_ptr()
