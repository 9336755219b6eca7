"""Several scales of an image: the features of hand-cut tiles, laid together and averaged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from model.vision.multi_scale import encode_scales
from model.vision.tower_builder import AnyTower, build_vision_tower
from tests.model.conftest import IMAGE_SIDE, NUM_PATCHES, VISION_WIDTH


def tower_of(path: str, scales: tuple[int, ...], feature: str = "patch", projector: str = "linear") -> AnyTower:
    return build_vision_tower(
        SimpleNamespace(
            vision_tower=path,
            mm_vision_select_layer=-2,
            mm_vision_select_feature=feature,
            mm_vision_scales=scales,
            mm_projector_type=projector,
        )
    )


def test_features_of_tiles_are_laid_together_and_averaged(tower_path: str) -> None:
    one, two = tower_of(tower_path, (1,)), tower_of(tower_path, (1, 2))
    assert (two.hidden_size, two.input_size, two.num_features) == (2 * VISION_WIDTH, 2 * IMAGE_SIDE, NUM_PATCHES)
    images = torch.randn(3, 3, 2 * IMAGE_SIDE, 2 * IMAGE_SIDE, generator=torch.Generator().manual_seed(4))
    small = F.interpolate(images, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bicubic", align_corners=False)
    whole = torch.empty(3, 6, 6, VISION_WIDTH)
    for row in range(2):
        for column in range(2):
            tile = images[:, :, row * 21 : row * 21 + 21, column * 21 : column * 21 + 21]
            whole[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = one(tile).view(3, 3, 3, VISION_WIDTH)
    averaged = whole.view(3, 3, 2, 3, 2, VISION_WIDTH).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(two(images), torch.cat([one(small), averaged], dim=-1), atol=1e-5)


def test_place_of_every_pixel_is_kept() -> None:
    """An encoder that returns the mean of each patch sees the same image at any scale."""

    def means(images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images, images.shape[-1] // 3).flatten(2).transpose(1, 2)

    image = torch.arange(18 * 18.0).view(1, 1, 18, 18)
    assert torch.allclose(encode_scales(means, image, (3,)), means(image))


def test_patches_are_merged_after_the_scales(tower_path: str) -> None:
    tower = tower_of(tower_path, (1, 2), projector="pool3_linear")
    assert (tower.hidden_size, tower.num_features) == (2 * VISION_WIDTH, 1)
    assert tower(torch.zeros(1, 3, 42, 42)).shape == (1, 1, 2 * VISION_WIDTH)


@pytest.mark.parametrize("scales", [(), (0, 1), (2, 1), (1, 1)])
def test_scales_that_do_not_rise_are_refused(tower_path: str, scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected rising whole multiples"):
        tower_of(tower_path, scales)


def test_class_tokens_on_several_scales_are_refused(tower_path: str) -> None:
    with pytest.raises(ValueError, match="no place on several scales"):
        tower_of(tower_path, (1, 2), feature="cls_patch")
