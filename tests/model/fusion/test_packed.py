import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.feature_layout import layout_of
from model.fusion.packed import pack_images, pack_samples
from model.fusion.resolution import ImageView, read_resolution

X = IMAGE_TOKEN_INDEX


def test_pack_two_samples_gives_every_field() -> None:
    samples = [
        (torch.tensor([1, X, 5, 6]), torch.tensor([7, 9, 5, IGNORE_INDEX])),
        (torch.tensor([3, 4]), torch.tensor([3, 4])),
    ]
    batch = pack_samples(samples, [3])
    assert batch.input_ids.tolist() == [1, X, X, X, 5, 6, 3, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 6, 8]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 6
    assert batch.seqlens == (6, 2)
    assert batch.image_positions.tolist() == [1, 2, 3]
    assert batch.text_positions.tolist() == [0, 4, 5, 6, 7]
    # Position 3 (last image feature) predicts 5; the label at the placeholder and both first labels are not targets.
    assert batch.target_positions.tolist() == [3, 6]
    assert batch.targets.tolist() == [5, 4]


def test_pack_accepts_numpy_arrays() -> None:
    batch = pack_samples([(np.array([4, X], dtype=np.int32), np.array([4, -100]))], [2])
    assert batch.input_ids.tolist() == [4, X, X]
    assert batch.input_ids.dtype == torch.int64


def test_pack_nothing_gives_one_unsupervised_token() -> None:
    batch = pack_samples([], [])
    assert batch.input_ids.tolist() == [0]
    assert batch.cu_seqlens.tolist() == [0, 1]
    assert batch.seqlens == (1,)
    assert batch.targets.tolist() == batch.target_positions.tolist() == batch.image_positions.tolist() == []


def test_to_moves_tensors_and_keeps_numbers() -> None:
    batch = pack_samples([(torch.tensor([1, 2]), torch.tensor([1, 2]))], []).to("meta")
    assert {value.device.type for value in batch if isinstance(value, torch.Tensor)} == {"meta"}
    assert batch.max_seqlen == 2


@pytest.mark.parametrize(
    ("samples", "features", "message"),
    [
        ([([1, X], [1, -100]), ([X, X], [0, 0])], [2, 2], r"3 image placeholders \(per sample \[1, 2\]\).*2 images"),
        ([([1, 2], [1, 2])], [5], r"0 image placeholders \(per sample \[0\]\).*1 images"),
        ([([X], [-100])], [0], r"features_per_image\[0\] is 0"),
        ([([1], [1]), ([1, -7], [1, 1])], [], r"sample 1: input_ids\[1\] is -7"),
        ([([1, 2], [1])], [], r"sample 0: expected input_ids and labels of one equal length"),
        ([([1], [1]), ([], [])], [], r"sample 1: expected .* T >= 1"),
        ([], [3], r"no samples, but features_per_image describes 1"),
    ],
)
def test_pack_bad_input_names_sample_and_counts(
    samples: list[tuple[list[int], list[int]]], features: list[int], message: str
) -> None:
    rows = [(torch.tensor(ids, dtype=torch.int64), torch.tensor(labels)) for ids, labels in samples]
    with pytest.raises(ValueError, match=message):
        pack_samples(rows, features)


@settings(deadline=None)
@given(st.data())
def test_pack_random_samples_equals_token_by_token_reference(data: st.DataObject) -> None:
    token = st.one_of(st.integers(0, 50), st.just(X))
    rows = data.draw(st.lists(st.lists(token, min_size=1, max_size=7), min_size=1, max_size=5))
    labels = [
        data.draw(st.lists(st.sampled_from([IGNORE_INDEX, 3, 8]), min_size=len(r), max_size=len(r))) for r in rows
    ]
    count = sum(row.count(X) for row in rows)
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    batch = pack_samples([(torch.tensor(r), torch.tensor(la)) for r, la in zip(rows, labels, strict=True)], sizes)

    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    targets: list[tuple[int, int]] = []
    left = list(sizes)
    for row, row_labels in zip(rows, labels, strict=True):
        fused: list[tuple[int, int]] = []
        for token_id, label in zip(row, row_labels, strict=True):
            fused += [(X, IGNORE_INDEX)] * left.pop(0) if token_id == X else [(token_id, label)]
        for t in range(len(fused) - 1):
            if fused[t + 1][1] != IGNORE_INDEX:
                targets.append((len(ids) + t, fused[t + 1][1]))
        ids += [token_id for token_id, _ in fused]
        positions += range(len(fused))
        lengths.append(len(fused))
    assert batch.input_ids.tolist() == ids
    assert batch.position_ids.tolist() == positions
    assert batch.seqlens == tuple(lengths)
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert list(zip(batch.target_positions.tolist(), batch.targets.tolist(), strict=True)) == targets
    assert batch.image_positions.tolist() == [t for t, token_id in enumerate(ids) if token_id == X]


def test_pack_bad_features_name_the_image_that_has_none() -> None:
    ids = torch.tensor([1, X, X])
    with pytest.raises(ValueError, match=r"features_per_image\[1\] is 0"):
        pack_samples([(ids, ids)], [5, 0])


def test_pack_nothing_is_one_token_long() -> None:
    assert pack_samples([], []).max_seqlen == 1


def test_pack_images_gathers_all_rows_only_where_every_tile_is_used_in_order() -> None:
    policy = read_resolution("pad", None, "flat", tile_size=21, tile_features=9, tile_grid=3)
    layout = layout_of(policy, ImageView(5, 7))
    ids = torch.tensor([1, X, 2, X, 3])
    whole = pack_images([(ids, ids)], [layout, layout], [0, 1], 9)
    assert whole.image_sources is None
    assert whole.image_positions.tolist() == [*range(1, 10), *range(11, 20)]
    shared = pack_images([(ids, ids)], [layout, layout], [0, 0], 9)
    assert shared.image_sources is not None
    assert (shared.image_sources.num_rows, shared.image_sources.plain.tolist()) == (9, [*range(9)] * 2)
    text = torch.tensor([1, 2])
    assert pack_images([(text, text)], [], [], 9).image_sources is None
