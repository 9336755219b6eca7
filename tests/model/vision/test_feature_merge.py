from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers.models.internvl.modeling_internvl import InternVLModel

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.hub.weights import build_llava, load_llava, save_llava
from model.vision.feature_merge import FeatureMerge, split_projector_type
from tests.model.conftest import VISION_WIDTH, random_images


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", (FeatureMerge(), "linear")),
        ("pool2_mlp2x_gelu", (FeatureMerge("pool", 2), "mlp2x_gelu")),
        ("shuffle3_ln_mlp2x_gelu", (FeatureMerge("shuffle", 3), "ln_mlp2x_gelu")),
    ],
)
def test_split_separates_tower_and_projector(name: str, expected: tuple[FeatureMerge, str]) -> None:
    assert split_projector_type(name) == expected


def test_shuffle_equals_transformers() -> None:
    features = torch.randn(2, 36, 5)
    theirs = cast(Any, InternVLModel).pixel_shuffle(None, features.view(2, 6, 6, 5), scale_factor=0.5)
    assert torch.equal(FeatureMerge("shuffle", 2).apply(features), theirs.reshape(2, 9, 20))


def test_pool_averages_each_group() -> None:
    features = torch.arange(16.0).view(1, 16, 1)
    merged = FeatureMerge("pool", 2).apply(features)
    assert merged.flatten().tolist() == [(0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7) / 4, 42 / 4, 50 / 4]


@pytest.mark.parametrize(("kind", "width"), [("pool3_mlp2x_gelu", 1), ("shuffle3_ln_mlp2x_gelu", 9)])
def test_model_with_merged_features_trains_saves_and_opens(
    kind: str, width: int, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    model = build_llava(llama_path, tower_path, kind).train(False)
    features = model.encode_vision(random_images(2))
    assert features.shape == (2, 1, width * VISION_WIDTH)
    row = torch.tensor([1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX, 5])
    labels = torch.tensor([IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 5])
    loss = model.packed_loss(pack_samples([(row, labels)], [1, 1]), features.flatten(0, 1))
    loss.backward()
    save_llava(model, tmp_path)
    loaded = load_llava(tmp_path)
    assert torch.equal(loaded.encode_images(random_images(2)), model.encode_images(random_images(2)))


def test_grid_that_does_not_divide_is_refused(llama_path: str, tower_path: str) -> None:
    with pytest.raises(ValueError, match=r"groups 2 x 2 patches, but .* gives a grid of 3 x 3"):
        build_llava(llama_path, tower_path, "pool2_linear")
