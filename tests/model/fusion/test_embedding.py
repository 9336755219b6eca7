"""What surrounds fusion: its settings as configs carry them, masks while decoding, calls without images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.embedding import (
    FusionSettings,
    decoding_mask,
    embed_packed,
    fuse_inputs,
    refuse_long_prompts,
    refuse_placeholders,
)
from model.fusion.fusion import plan_fusion
from model.fusion.packed import pack_samples

X = IMAGE_TOKEN_INDEX
PLAIN = FusionSettings("right", None, train_wrapping_only=False)


def test_fusion_settings_of_a_plain_config_are_the_defaults() -> None:
    assert FusionSettings.of(SimpleNamespace()) == ("right", None, False)


def test_fusion_settings_are_read_from_their_fields() -> None:
    config = SimpleNamespace(tokenizer_padding_side="left", tokenizer_model_max_length=31)
    assert FusionSettings.of(config) == ("left", 31, False)


@pytest.mark.parametrize(("tunes", "wraps"), [(True, True), (True, False), (False, True)])
def test_fusion_settings_train_wrapping_only_where_both_fields_say_so(tunes: bool, wraps: bool) -> None:
    config = SimpleNamespace(tune_mm_mlp_adapter=tunes, mm_use_im_start_end=wraps)
    assert FusionSettings.of(config).train_wrapping_only is (tunes and wraps)


@pytest.mark.parametrize("missing", ["tune_mm_mlp_adapter", "mm_use_im_start_end"])
def test_fusion_settings_without_one_of_the_fields_train_all_text(missing: str) -> None:
    config = SimpleNamespace(tune_mm_mlp_adapter=True, mm_use_im_start_end=True)
    delattr(config, missing)
    assert FusionSettings.of(config).train_wrapping_only is False


def test_decoding_mask_is_extended_to_cache_and_new_tokens() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert decoding_mask(None, 3, 2) is None
    assert decoding_mask(mask, 1, 2) is mask
    extended = decoding_mask(mask, 3, 2)
    assert extended is not None
    assert extended.dtype == torch.bool
    assert extended.tolist() == [[False, True, True, True, True], [True] * 5]


def test_decoding_mask_of_neither_length_is_refused() -> None:
    with pytest.raises(ValueError, match="covers 3 positions, but the cache holds 5 and 1 are new"):
        decoding_mask(torch.ones(2, 3), 5, 1)


def test_refuse_placeholders_names_the_first_row_and_its_count() -> None:
    refuse_placeholders(torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match="row 1 has 2 image placeholders but no images can be used"):
        refuse_placeholders(torch.tensor([[1, 2, 3], [X, 4, X], [X, 5, 6]]))


def test_fuse_inputs_without_images_embeds_text_only() -> None:
    embedding = torch.nn.Embedding(7, 3)
    ids = torch.tensor([[1, 2], [3, 4]])
    fused = fuse_inputs(embedding, ids, None, None, None, [], PLAIN)
    assert torch.equal(fused.inputs_embeds, embedding(ids))
    assert (fused.labels, fused.is_padded) == (None, False)


def test_fuse_inputs_mask_of_another_shape_is_refused() -> None:
    embedding = torch.nn.Embedding(7, 3)
    with pytest.raises(ValueError, match=r"attention_mask \(2, 3\) must have the shape"):
        fuse_inputs(embedding, torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 3), None, None, [], PLAIN)


def test_fuse_inputs_image_without_its_tokens_is_refused_only_where_these_are_trained() -> None:
    embedding, features = torch.nn.Embedding(7, 3), torch.ones(2, 3)
    ids = torch.tensor([[1, 2, 3, 4], [1, X, X, 2]])
    fuse_inputs(embedding, ids, None, None, features, [1, 1], PLAIN)
    with pytest.raises(ValueError, match="row 1: the image placeholder at token 1 is not wrapped"):
        fuse_inputs(embedding, ids, None, None, features, [1, 1], PLAIN._replace(train_wrapping_only=True))


@pytest.mark.parametrize("wrapping_only", [False, True])
def test_embed_packed_trains_all_text_or_the_tokens_beside_images(wrapping_only: bool) -> None:
    embedding = torch.nn.Embedding(7, 3)
    ids = torch.tensor([5, 1, X, 2, 6])
    batch = pack_samples([(ids, ids)], [2])
    embed_packed(embedding, batch, torch.ones(2, 3), wrapping_only).sum().backward()
    assert embedding.weight.grad is not None
    learnt = embedding.weight.grad.any(dim=1).nonzero().flatten().tolist()
    assert learnt == ([1, 2] if wrapping_only else [1, 2, 5, 6])


def test_fusion_plan_on_another_device_keeps_what_is_no_tensor() -> None:
    plan = plan_fusion(torch.tensor([[1, X], [2, 3]]), None, [2])
    moved = plan.to(torch.device("meta"))
    assert {value.device.type for value in moved if isinstance(value, torch.Tensor)} == {"meta"}
    assert (moved.feature_source, moved.is_padded) == (None, True)


@pytest.mark.parametrize(("max_length", "is_refused"), [(None, False), (6, False), (5, False), (4, True)])
def test_refuse_long_prompts_names_the_longest_row_and_what_is_too_much(
    max_length: int | None, is_refused: bool
) -> None:
    embedding = torch.nn.Embedding(7, 3)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    fused = fuse_inputs(embedding, torch.ones(3, 5, dtype=torch.int64), mask, None, None, [], PLAIN)
    if not is_refused:
        refuse_long_prompts(fused, max_length)
        return
    with pytest.raises(ValueError, match=r"the prompt of row 1 takes 5 tokens, 1 more than the model's .* 4;"):
        refuse_long_prompts(fused, max_length)
