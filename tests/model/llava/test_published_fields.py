"""Every field of a published LLaVA config that changes what is computed is honoured, or refused when it is opened."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from model.fusion.resolution import read_resolution
from model.hub.weights import build_llava, check_weights, load_llava, read_llava_config, save_llava
from model.llava.published_fields import check_published_fields
from tests.model.tiny import save_tiny_backbone, save_tiny_tower

LLAVA_15 = {
    "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None, "mm_hidden_size": 22, "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None,
    "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2, "tune_mm_mlp_adapter": False, "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False, "use_mm_proj": True,
}  # fmt: skip
LLAVA_16 = LLAVA_15 | {
    "image_aspect_ratio": "anyres", "image_crop_resolution": 224, "image_split_resolution": 224,
    "image_grid_pinpoints": [[336, 672], [672, 336]], "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None, "mm_vision_tower_lr": 2e-6, "tokenizer_padding_side": "right",
    "tokenizer_model_max_length": 4096, "unfreeze_mm_vision_tower": True,
}  # fmt: skip
ONEVISION = LLAVA_16 | {
    "add_faster_video": False, "add_time_instruction": False, "faster_token_stride": 10, "force_sample": False,
    "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),...,(6x6)", "mm_newline_position": "one_token",
    "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": None, "mm_perceiver_depth": 3, "mm_qformer_depth": 3,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model", "pos_skipping_range": 4096,
    "use_pos_skipping": False, "vision_tower_pretrained": None, "mm_spatial_pool_out_channels": 1024,
}  # fmt: skip


@pytest.mark.parametrize("values", [LLAVA_15, LLAVA_16, ONEVISION], ids=["1.5", "1.6", "OneVision"])
def test_published_configs_are_accepted(values: dict[str, Any]) -> None:
    check_published_fields(values, "folder")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_newline_position", "grid"), ("mm_newline_position", "frame"), ("mm_newline_position", "no_token"),
        ("mm_spatial_pool_mode", "max"), ("mm_spatial_pool_mode", "average"), ("mm_spatial_pool_stride", 4),
        ("mm_resampler_type", "perceiver"), ("mm_resampler_type", "spatial_pool"),
        ("mm_patch_merge_type", "spatial_unpad_nobase"), ("mm_patch_merge_type", "spatial_maxpool2x2"),
        ("image_aspect_ratio", "highres"), ("image_aspect_ratio", "crop_split"), ("s2", True),
        ("add_faster_video", True), ("add_time_instruction", True), ("use_pos_skipping", True),
        ("mm_vision_select_layer", "-2"), ("mm_vision_select_layer", -2.5), ("mm_vision_select_layer", [-2, None]),
        ("mm_pooling_position", "before"), ("mm_of_next_year", {"depth": 3}),
    ],
)  # fmt: skip
def test_field_that_changes_what_is_computed_is_refused_by_name_when_the_folder_is_opened(
    field: str, value: object, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    save_llava(build_llava(llama_path, tower_path), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    for open_it in (load_llava, read_llava_config, check_weights):
        with pytest.raises(ValueError, match=re.escape(f"cannot be computed as published: {field} is {value!r}")):
            open_it(str(tmp_path))


def test_all_refused_fields_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"mm_spatial_pool_mode is 'max'.*mm_newline_position is 'grid'.*mm_x is 1"):
        check_published_fields({"mm_x": 1, "mm_newline_position": "grid", "mm_spatial_pool_mode": "max"}, "folder")


@pytest.mark.parametrize("text", ["[(336, 672), (672, 336)]", "[[336, 672], [672, 336]]", " [(336,672),(672,336)] "])
def test_pin_points_as_the_text_of_a_list_are_read(text: str) -> None:
    given: dict[str, Any] = {"tile_size": 336, "tile_features": 576, "tile_grid": 24}
    as_list = read_resolution("anyres", [[336, 672], [672, 336]], "spatial_unpad", **given)
    assert read_resolution("anyres", text, "spatial_unpad", **given) == as_list


@pytest.mark.parametrize("text", ["[(336, 672", "[336, 672]", "[('a', 'b')]"])
def test_other_text_in_brackets_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        read_resolution("anyres", text, "spatial_unpad", tile_size=336, tile_features=576, tile_grid=24)


def test_internvls_spelling_of_a_projector_with_a_layer_norm_is_the_same_projector(tmp_path: Path) -> None:
    language_model = save_tiny_backbone("llama", tmp_path / "lm")
    tower = save_tiny_tower("internvl_vision", tmp_path / "tower")
    ours = build_llava(language_model, tower, projector_type="ln_mlp2x_gelu").train(False)
    save_llava(ours, tmp_path / "whole")
    file = tmp_path / "whole/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mm_projector_type": "mlp2x_gelu_ln"}))
    theirs = load_llava(tmp_path / "whole").train(False)
    ids, images = torch.tensor([[1, -200, 5]]), torch.randn(1, 3, 21, 21)
    with torch.no_grad():
        assert torch.equal(ours(ids, images=images).logits, theirs(ids, images=images).logits)


def test_width_of_the_features_must_be_the_towers(llama_path: str, tower_path: str, tmp_path: Path) -> None:
    save_llava(build_llava(llama_path, tower_path), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mm_hidden_size": 23}))
    with pytest.raises(ValueError, match=r"mm_hidden_size is 23, but the selected features of .* are 22 wide"):
        load_llava(tmp_path)
