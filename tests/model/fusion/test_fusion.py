from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.embedding import FusionSettings, embed_packed, fuse_inputs
from model.fusion.fusion import check_wrapped_images, is_beside_image, plan_fusion
from model.fusion.packed import pack_samples

X = IMAGE_TOKEN_INDEX
WIDTH, VOCAB, FEATURES = 3, 41, 2


def fuse(
    ids: list[list[int]],
    slots: int,
    mask: list[list[int]] | None = None,
    labels: list[list[int]] | None = None,
    side: Literal["left", "right"] = "right",
    max_length: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Fuse with an embedding of token i that is (i, i, i) and feature j of slot k that is -(10 k + j + 1)."""
    table = torch.arange(VOCAB, dtype=torch.float32)[:, None].repeat(1, WIDTH)
    values = -(10.0 * torch.arange(slots)[:, None] + torch.arange(FEATURES) + 1)
    out = fuse_inputs(
        nn.Embedding.from_pretrained(table),
        torch.tensor(ids),
        None if mask is None else torch.tensor(mask),
        None if labels is None else torch.tensor(labels),
        values.view(-1, 1).repeat(1, WIDTH),
        (FEATURES,) * slots,
        FusionSettings(side, max_length, train_wrapping_only=False),
    )
    return out.inputs_embeds[..., 0], out.attention_mask, out.position_ids, out.labels


def test_fuse_mixed_rows_right_padding() -> None:
    ids = [[5, X, 6], [7, 8, 9], [X, 4, X]]
    embeds, mask, positions, labels = fuse(ids, 3, labels=[[5, 1, 6], [7, 8, 9], [1, 4, 1]])
    assert embeds.tolist() == [[5, -1, -2, 6, 0], [7, 8, 9, 0, 0], [-11, -12, 4, -21, -22]]
    assert mask.tolist() == [[True] * 4 + [False], [True] * 3 + [False] * 2, [True] * 5]
    assert positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    i = IGNORE_INDEX
    assert labels is not None
    assert labels.tolist() == [[5, i, i, 6, i], [7, 8, 9, i, i], [i, i, 4, i, i]]


def test_fuse_left_padding_positions_start_at_first_token() -> None:
    embeds, mask, positions, _ = fuse([[5, X, 6], [7, 8, 9]], 1, side="left")
    assert embeds.tolist() == [[5, -1, -2, 6], [0, 7, 8, 9]]
    assert mask.tolist() == [[True] * 4, [False, True, True, True]]
    assert positions.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


def test_fuse_with_dummy_per_text_row_skips_dummies() -> None:
    embeds, _, _, _ = fuse([[7, 8], [X, 9], [3, 4], [X, X]], 5)
    assert embeds.tolist() == [[7, 8, 0, 0], [-11, -12, 9, 0], [3, 4, 0, 0], [-31, -32, -41, -42]]


def test_fuse_drops_masked_tokens_wherever_they_are() -> None:
    embeds, mask, _, _ = fuse([[30, 1, X, 2], [1, 31, 2, 32]], 1, mask=[[0, 1, 1, 1], [1, 0, 1, 0]])
    assert embeds.tolist() == [[1, -1, -2, 2], [1, 2, 0, 0]]
    assert mask.sum(dim=1).tolist() == [4, 2]


def test_fuse_truncates_text_after_fusion() -> None:
    embeds, mask, _, labels = fuse([[1, X, 2, 3, 4]], 1, labels=[[1, 0, 2, 3, 4]], max_length=4)
    assert embeds.tolist() == [[1, -1, -2, 2]]
    assert mask.all()
    assert labels is not None
    assert labels.tolist() == [[1, IGNORE_INDEX, IGNORE_INDEX, 2]]


@pytest.mark.parametrize("ids", [[[1, 2, X]], [[1, 2, 3, X]]])
def test_fuse_image_across_or_beyond_the_limit_refuses(ids: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"row 0: an image does not fit.*maximum 3"):
        fuse(ids, 1, max_length=3)


@pytest.mark.parametrize(
    ("ids", "slots", "message"),
    [
        ([[X, 1], [X, X]], 2, r"2 image slots for 3 placeholders \(row 1 .*per row \[1, 2\]"),
        ([[X, 1], [X, 1]], 3, r"3 image slots for 2 placeholders \(row 1 is followed by a surplus"),
        ([[X, 1], [2, 1], [3, 3]], 2, r"2 image slots for 1 placeholders.*2 here"),
        ([[X, 1]], 0, r"0 image slots for 1 placeholders \(row 0"),
        ([[1, -9]], 0, "row 0: input id -9"),
    ],
)
def test_fuse_wrong_counts_name_row_and_counts(ids: list[list[int]], slots: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(ids, slots)


def test_plan_fully_masked_row_refuses() -> None:
    with pytest.raises(ValueError, match="row 1: attention_mask hides every token"):
        plan_fusion(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 1], [0, 0]]), [])


def test_plan_mask_of_other_shape_refuses() -> None:
    with pytest.raises(ValueError, match=r"attention_mask \(1, 3\) must have the shape of input_ids \(1, 2\)"):
        plan_fusion(torch.tensor([[1, 2]]), torch.ones(1, 3), [])


def test_is_beside_image_marks_direct_neighbours() -> None:
    is_image = torch.tensor([[False, False, True, True, False, False, True]])
    assert is_beside_image(is_image).tolist() == [[False, True, False, False, True, True, False]]


@pytest.mark.parametrize("row", [[X, 1], [1, X], [1, X, X, 1]])
def test_check_wrapped_images_without_both_tokens_names_row(row: list[int]) -> None:
    ids = torch.tensor([[1, X, 1, 1][: len(row)] if len(row) > 2 else [1, 1], row])
    with pytest.raises(ValueError, match="row 1: the image placeholder"):
        check_wrapped_images(ids, None)


def slow_reference(
    ids: list[list[int]], mask: list[list[bool]], labels: list[list[int]], table: Tensor, slots: list[Tensor],
    has_dummies: bool, side: str, max_length: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Fuse token by token with plain lists."""
    queue = list(slots)
    rows: list[list[tuple[Tensor, int]]] = []
    for row_ids, row_mask, row_labels in zip(ids, mask, labels, strict=True):
        fused: list[tuple[Tensor, int]] = []
        kept = [(i, la) for i, m, la in zip(row_ids, row_mask, row_labels, strict=True) if m]
        for token_id, label in kept:
            if token_id == X:
                fused += [(vector, IGNORE_INDEX) for vector in queue.pop(0)]
            else:
                fused.append((table[token_id], label))
        if has_dummies and all(token_id != X for token_id, _ in kept):
            queue.pop(0)
        rows.append(fused[:max_length])
    width = max(len(row) for row in rows)
    embeds = torch.zeros(len(rows), width, table.shape[1])
    out_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    out_labels = torch.full((len(rows), width), IGNORE_INDEX)
    for b, row in enumerate(rows):
        begin = width - len(row) if side == "left" else 0
        for t, (vector, label) in enumerate(row):
            embeds[b, begin + t] = vector
            out_mask[b, begin + t] = True
            positions[b, begin + t] = t
            out_labels[b, begin + t] = label
    return embeds, out_mask, positions, out_labels


@st.composite
def batches(draw: st.DrawFn) -> dict[str, object]:
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    ids, mask = [], []
    for _ in range(num_rows):
        row = draw(st.lists(st.integers(0, VOCAB - 1), min_size=width, max_size=width))
        for position in draw(st.lists(st.integers(0, width - 1), max_size=4)):
            row[position] = X
        row_mask = draw(st.lists(st.booleans(), min_size=width, max_size=width))
        row_mask[draw(st.integers(0, width - 1))] = True
        ids.append(row)
        mask.append(row_mask)
    no_mask = draw(st.booleans())
    if no_mask:
        mask = [[True] * width] * num_rows
    counts = [sum(i == X and m for i, m in zip(r, ms, strict=True)) for r, ms in zip(ids, mask, strict=True)]
    has_dummies = draw(st.booleans())
    num_slots = sum(max(c, 1) for c in counts) if has_dummies else sum(counts)
    return {
        "ids": ids, "mask": mask, "no_mask": no_mask, "has_dummies": has_dummies,
        "labels": [[draw(st.integers(0, 9)) for _ in range(width)] for _ in range(num_rows)],
        "no_labels": draw(st.booleans()),
        "images_per_slot": draw(st.lists(st.integers(1, 3), min_size=num_slots, max_size=num_slots)),
        "side": draw(st.sampled_from(["left", "right"])),
        "max_length": draw(st.none() | st.integers(1, 30)),
    }  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(batches())
def test_fuse_random_batches_equals_token_by_token_reference(case: dict[str, object]) -> None:
    ids, mask, labels = case["ids"], case["mask"], case["labels"]
    images_per_slot, side, max_length = case["images_per_slot"], case["side"], case["max_length"]
    assert isinstance(images_per_slot, list)
    assert side in ("left", "right")
    assert max_length is None or isinstance(max_length, int)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    features = torch.randn(sum(images_per_slot), FEATURES, WIDTH, generator=generator, requires_grad=True)
    slots = [part.flatten(0, 1) for part in features.split(images_per_slot)] if images_per_slot else []
    arguments = (
        nn.Embedding.from_pretrained(table, freeze=False),
        torch.tensor(ids),
        None if case["no_mask"] else torch.tensor(mask),
        None if case["no_labels"] else torch.tensor(labels),
        features.flatten(0, 1),
        [count * FEATURES for count in images_per_slot],
        FusionSettings(side, max_length, train_wrapping_only=False),
    )
    if _some_image_is_cut(ids, mask, images_per_slot, bool(case["has_dummies"]), max_length):
        with pytest.raises(ValueError, match="does not fit within the maximum length"):
            fuse_inputs(*arguments)
        return
    fused = fuse_inputs(*arguments)
    embeds, out_mask, positions, out_labels = slow_reference(
        ids, mask, labels, table, slots, bool(case["has_dummies"]), side, max_length  # type: ignore[arg-type]
    )  # fmt: skip
    assert torch.equal(fused.inputs_embeds, embeds)
    assert torch.equal(fused.attention_mask, out_mask)
    assert torch.equal(fused.position_ids, positions)
    assert fused.is_padded == (not bool(out_mask.all()))
    if case["no_labels"]:
        assert fused.labels is None
    else:
        assert fused.labels is not None
        assert torch.equal(fused.labels, out_labels)
    weight = torch.randn(embeds.shape, generator=generator)
    got = torch.autograd.grad((fused.inputs_embeds * weight).sum(), [features, arguments[0].weight], allow_unused=True)
    wanted = torch.autograd.grad((embeds * weight).sum(), [features, table], allow_unused=True)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours is not None  # the graph keeps an edge to both, also when nothing is used
        assert torch.allclose(ours, torch.zeros_like(ours) if theirs is None else theirs, atol=1e-6)


def _some_image_is_cut(
    ids: object, mask: object, images_per_slot: list[int], has_dummies: bool, max_length: int | None
) -> bool:
    assert isinstance(ids, list)
    assert isinstance(mask, list)
    queue = list(images_per_slot)
    cut = False
    for row, row_mask in zip(ids, mask, strict=True):
        length = 0
        kept = [i for i, m in zip(row, row_mask, strict=True) if m]
        for token_id in kept:
            length += queue.pop(0) * FEATURES if token_id == X else 1
            cut |= token_id == X and max_length is not None and length > max_length
        if has_dummies and X not in kept:
            queue.pop(0)
    return cut


START, END = 1, 2
SPOKEN = st.lists(st.integers(3, VOCAB - 1), max_size=4)


@st.composite
def wrapped_rows(draw: st.DrawFn) -> list[list[int]]:
    """Rows of text with 0 to 4 images, each between its two tokens; images may follow each other."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=4))
        for _ in range(draw(st.integers(0, 4))):
            row += [START, X, END, *draw(SPOKEN)]
        rows.append(row)
    return rows


@settings(max_examples=100, deadline=None)
@given(wrapped_rows(), st.sampled_from(["left", "right"]), st.sampled_from(["left", "right"]))
def test_fuse_wrapped_images_keeps_labels_and_trains_the_two_tokens_only(
    rows: list[list[int]], given_side: str, side: Literal["left", "right"]
) -> None:
    """The tokens keep their own labels, of any value; the rest of the text gets no gradient."""
    width = max(len(row) for row in rows)
    pads = [[0] * (width - len(row)) for row in rows]
    joined = [pad + row if given_side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)]
    mask = [
        [False] * len(pad) + [True] * len(row) if given_side == "left" else [True] * len(row) + [False] * len(pad)
        for row, pad in zip(rows, pads, strict=True)
    ]
    labels = [[1000 + 50 * b + t for t in range(width)] for b in range(len(rows))]
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    features = torch.randn(sum(row.count(X) for row in rows), FEATURES, WIDTH, generator=generator)
    embedding = nn.Embedding.from_pretrained(table, freeze=False)
    fused = fuse_inputs(
        embedding,
        torch.tensor(joined),
        torch.tensor(mask),
        torch.tensor(labels),
        features.flatten(0, 1),
        [FEATURES] * len(features),
        FusionSettings(side, None, train_wrapping_only=True),
    )
    embeds, out_mask, positions, out_labels = slow_reference(
        joined, mask, labels, table, list(features), False, side, None
    )
    assert torch.equal(fused.inputs_embeds, embeds)
    assert torch.equal(fused.attention_mask, out_mask)
    assert torch.equal(fused.position_ids, positions)
    assert fused.labels is not None
    assert torch.equal(fused.labels, out_labels)

    weight = torch.randn(embeds.shape, generator=generator)
    (got,) = torch.autograd.grad((fused.inputs_embeds * weight).sum(), [embedding.weight])
    (wanted,) = torch.autograd.grad((embeds * weight).sum(), [table])
    others = torch.ones(VOCAB, dtype=torch.bool).index_fill_(0, torch.tensor([START, END]), False)
    assert not got[others].any()
    assert torch.allclose(got[[START, END]], wanted[[START, END]], atol=1e-6)

    packed = pack_samples([(torch.tensor(row), torch.tensor(row)) for row in rows], [FEATURES] * len(features))
    in_a_row = embed_packed(embedding, packed, features.flatten(0, 1), train_wrapping_only=True)
    assert torch.equal(in_a_row, embeds[out_mask])
    (again,) = torch.autograd.grad((in_a_row * weight[out_mask]).sum(), [embedding.weight])
    assert torch.allclose(again, got, atol=1e-6)
