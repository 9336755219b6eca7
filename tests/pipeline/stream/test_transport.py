"""Rank-steps as rows of an Arrow table: what arrives is what was sent, and writing copies nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("tiles", [0, 5])
def test_row_returns_cached_features_of_every_type_bit_by_bit(dtype: torch.dtype, tiles: int) -> None:
    features = torch.linspace(-3.0, 7.0, tiles * 11 * 3).view(tiles, 11, 3).to(dtype)
    sent = rank_step(0)._replace(features=features)
    found = from_row(to_row(sent)).features
    assert found is not None
    assert (found.dtype, found.shape) == (dtype, features.shape)
    assert torch.equal(found.view(torch.uint8), features.view(torch.uint8))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bfloat16]
)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (3, 0, 2)])
def test_row_returns_tensors_of_every_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = rank_step(0)._replace(labels=torch.ones(shape, dtype=dtype))
    assert_same(from_row(to_row(sent)), sent)


def test_row_of_features_that_are_a_part_of_a_larger_tensor_returns_that_part() -> None:
    features = torch.arange(2 * 7 * 5, dtype=torch.bfloat16).view(2, 7, 5)[:, 1:4].transpose(1, 2)
    sent = rank_step(0)._replace(features=features)
    assert_same(from_row(to_row(sent)), sent)


def test_to_row_shares_memory_with_the_tensors() -> None:
    sent = rank_step(2)
    column = to_row(sent)["pixels"].chunk(0)
    assert column.buffers()[2].address == sent.pixels.data_ptr()
