"""The learnt newline: initialised, saved, loaded, given up, and images as the padded call takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.resolution import ImageView
from model.hub.weights import LlavaModel, build_llava, load_llava, save_llava, save_projector, set_trainable
from tests.model.conftest import NUM_PATCHES, WIDTH, random_images
from tests.model.tiny import KINDS, save_tiny_backbone

X = -200


@pytest.fixture
def tiled(llama_path: str, tower_path: str) -> LlavaModel:
    torch.manual_seed(5)
    model = build_llava(llama_path, tower_path, patch_merge="spatial_unpad", attention="sdpa")
    model.config.image_aspect_ratio, model.config.image_grid_pinpoints = "anyres", [[21, 42], [42, 21]]
    model.train(False)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_newline_of_every_backbone_is_saved_and_loaded(kind: str, tower_path: str, tmp_path: Path) -> None:
    model = build_llava(save_tiny_backbone(kind, tmp_path / "lm"), tower_path, patch_merge="spatial_unpad")
    save_llava(model, tmp_path / "whole")
    loaded = load_llava(tmp_path / "whole")
    assert loaded.config.mm_patch_merge_type == "spatial_unpad"
    assert torch.equal(loaded.get_model().image_newline, model.get_model().image_newline)


def test_newline_that_a_checkpoint_lacks_is_drawn_not_left_as_memory_was(tiled: LlavaModel, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in tiled.state_dict().items() if "image_newline" not in name}
    save_llava(tiled, tmp_path, state)
    model, info = cast(Any, LlavaLlamaForCausalLM).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"model.image_newline"}
    newline = model.get_model().image_newline
    assert 0.3 < float(newline.std() * WIDTH**0.5) < 2
    with pytest.raises(ValueError, match=r"missing model\.image_newline"):
        load_llava(tmp_path)


def test_newline_goes_with_the_projector_and_learns_in_both_stages(
    tiled: LlavaModel, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    path = save_projector(tiled, tmp_path)
    again = build_llava(llama_path, tower_path, patch_merge="spatial_unpad", projector_path=path)
    assert torch.equal(again.get_model().image_newline, tiled.get_model().image_newline)
    stages: tuple[Literal["pretrain", "finetune"], ...] = ("pretrain", "finetune")
    for stage in stages:
        set_trainable(again, stage)
        assert again.get_model().image_newline.requires_grad
    with pytest.raises(ValueError, match="unexpected image_newline"):
        build_llava(llama_path, tower_path, projector_path=path)


def test_set_patch_merge_adds_and_drops_the_newline(llava: LlavaModel, tmp_path: Path) -> None:
    body = llava.get_model()
    assert body.image_newline is None
    body.set_patch_merge("spatial_unpad")
    first = body.image_newline
    body.set_patch_merge("spatial_unpad")
    assert body.image_newline is first
    assert "model.image_newline" in dict(llava.named_parameters())
    body.set_patch_merge("flat")
    save_llava(llava, tmp_path)
    assert load_llava(tmp_path).get_model().image_newline is None


def test_tiles_follow_their_image_sizes(tiled: LlavaModel) -> None:
    tiles = random_images(3)
    embeds = tiled.prepare_inputs_labels_for_multimodal(
        torch.tensor([[1, X, 2]]), None, None, None, [tiles], [(60, 20)]
    )[3]  # fmt: skip
    assert embeds is not None
    features, newline = tiled.encode_images(tiles), tiled.get_model().image_newline
    rows = [features[0]]
    for tile in features[1:]:
        for line in tile.view(3, 3, -1):  # 20 of 21 columns are shown, which is every patch
            rows += [line, newline[None]]
    assert torch.allclose(embeds[0, 1:-1], torch.cat(rows))


def test_single_tiles_need_no_sizes(tiled: LlavaModel) -> None:
    prompt = torch.tensor([[1, X, 2]])
    without = tiled(prompt, images=random_images(1)).logits
    sizes = tiled(prompt, images=random_images(1), image_sizes=torch.tensor([[300, 20]])).logits
    assert without.shape[1] == 2 + NUM_PATCHES + 1
    assert torch.equal(without, sizes)


def test_generate_with_tiles_continues_what_forward_says(tiled: LlavaModel) -> None:
    prompt, given = torch.tensor([[1, X, 2]]), dict[str, Any](images=[random_images(3)], image_sizes=[(60, 20)])
    with torch.no_grad():
        first = tiled(prompt, **given).logits[0, -1].argmax()
    new = tiled.generate(prompt, **given, max_new_tokens=3, do_sample=False)
    assert int(new[0, 0]) == int(first)


@pytest.mark.parametrize(
    ("num_tiles", "sizes", "message"),
    [
        (3, None, "pass image_sizes"),
        (3, [(60, 20), (60, 20)], "2 image_sizes for 1 image slots"),
        (2, [(60, 20)], r"image slot 0: 2 tiles, but an image of 60 x 20 pixels .* has 3"),
        (3, [ImageView(60, 20, "frame")], "has 1"),
    ],
)
def test_tiles_and_sizes_that_disagree_are_refused(
    num_tiles: int, sizes: list[tuple[int, int]] | None, message: str, tiled: LlavaModel
) -> None:
    with pytest.raises(ValueError, match=message):
        tiled(torch.tensor([[1, X]]), images=[random_images(num_tiles)], image_sizes=sizes)
