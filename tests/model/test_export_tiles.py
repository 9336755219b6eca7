"""Models with tiles as `LlavaNext...` and `LlavaOnevision...`: their processor, their logits, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlavaOnevisionProcessor
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.feature_layout import layout_of
from model.fusion.resolution import ImageView
from model.hub.export import export_transformers
from model.hub.hf_import import import_transformers
from model.hub.weights import LlavaModel, build_llava
from tests.model.conftest import random_images
from tests.model.tiny import VOCAB, save_tiny_backbone, save_tiny_tower

X = IMAGE_TOKEN_INDEX
TILE = 21
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "resample": 3, "do_center_crop": True,
    "size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE},
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip
PINPOINTS = [[21, 42], [42, 21], [42, 42], [63, 21]]
"""Width and height; the first two tie for a square image, and no tall one of three tiles exists."""
SIZES = {"square": (42, 42), "small square": (21, 21), "tall": (97, 31), "wide": (29, 83), "tiny": (2, 3),
         "large": (301, 257), "thin": (7, 210)}  # fmt: skip
"""Height, width."""
KINDS = {"llava_next": "anyres", "llava_onevision": "anyres_max_2"}


class OnevisionImagesOnly(LlavaOnevisionProcessor):
    """The processor without its part for videos, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **fields: Any
    ) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.image_token_id = tokenizer.convert_tokens_to_ids(fields["image_token"])
        self.video_token_id = tokenizer.convert_tokens_to_ids(fields["video_token"])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tiled_model(kind: str, tower: str, folder: Path) -> LlavaModel:
    model = build_llava(
        save_tiny_backbone("qwen2", folder / "lm"), save_tiny_tower(tower, folder / "tower"),
        patch_merge="spatial_unpad", attention="sdpa",
    )  # fmt: skip
    model.config.image_aspect_ratio, model.config.image_grid_pinpoints = KINDS[kind], PINPOINTS
    torch.nn.init.normal_(model.get_model().image_newline)
    model.train(False)
    return model


def export(model: LlavaModel, tokenizer: Tokenizer, folder: Path) -> Path:
    export_transformers(model, tokenizer, folder, image_processor=PROCESSOR, chat_template="{{ 1 }}")
    return folder


def their_processor(kind: str, folder: Path) -> Any:
    """Assemble the processor from its files."""
    own = json.loads((folder / "processor_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fields = {name: value for name, value in own.items() if name != "processor_class"}
    if kind == "llava_next":
        return LlavaNextProcessor(LlavaNextImageProcessorPil.from_pretrained(folder), tokenizer, **fields)
    return OnevisionImagesOnly(LlavaOnevisionImageProcessorPil.from_pretrained(folder), tokenizer, **fields)


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def their_logits(folder: Path, inputs: Any) -> Tensor:
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits: Tensor = model.eval()(**inputs).logits
    return logits[..., :VOCAB]


def our_inputs(inputs: Any, images: list[Image.Image], model: LlavaModel) -> dict[str, Any]:
    """Give our model the tiles that their processor cut, without the tiles that fill up a batch of them."""
    resolution = model.get_model().resolution_at(TILE, 9)
    views = [ImageView(image.height, image.width, role) for image, role in
             zip(images, resolution.roles(len(images), is_video=False), strict=True)]  # fmt: skip
    counts = [resolution.tiling(view).num_tiles for view in views]
    tiles = inputs["pixel_values"]
    return {"images": [part[:count] for part, count in zip(tiles, counts, strict=True)], "image_sizes": views}


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_tokens_equal_through_their_own_processor(
    kind: str, tower: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiled_model(kind, tower, tmp_path)
    folder = export(model, tokenizer, tmp_path / "out")
    processor = their_processor(kind, folder)
    for name, size in SIZES.items():
        image = picture(*size)
        inputs = processor(text="w5 <image> w7", images=image, return_tensors="pt")
        with torch.no_grad():
            ours = model(torch.tensor([[5, X, 7]]), **our_inputs(inputs, [image], model)).logits
        theirs = their_logits(folder, inputs)
        assert ours.shape == theirs.shape, name
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("size", [21, 35], ids=["its own size", "another size"])
def test_position_embeddings_of_dinov2_are_those_of_the_tiles(size: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiled_model("llava_next", "dinov2", tmp_path)
    model.config.image_grid_pinpoints = [[size, 2 * size], [2 * size, size]]
    sides = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    export_transformers(model, tokenizer, tmp_path / "out", image_processor=PROCESSOR | sides)
    view = ImageView(97, 31)
    layout = layout_of(model.get_model().resolution_at(size, (size // 7) ** 2), view)
    tiles = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model(torch.tensor([[5, X, 7]]), images=[tiles], image_sizes=[view]).logits
    ids = torch.tensor([[5, *[VOCAB] * layout.num_features, 7]])
    sizes = torch.tensor([[97, 31]])
    theirs = their_logits(tmp_path / "out", {"input_ids": ids, "pixel_values": tiles[None], "image_sizes": sizes})
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_several_images_in_a_prompt(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiled_model(kind, "clip_vision_model", tmp_path)
    folder = export(model, tokenizer, tmp_path / "out")
    images = [picture(97, 31), picture(29, 83)]
    listed = [images] if kind == "llava_onevision" else images
    inputs = their_processor(kind, folder)(text=["<image> w5 <image> w7"], images=listed, return_tensors="pt")
    with torch.no_grad():
        ours = model(torch.tensor([[X, 5, X, 7]]), **our_inputs(inputs, images, model)).logits
    theirs = their_logits(folder, inputs)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_video_frames_equal_those_of_onevision(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiled_model("llava_onevision", "siglip_vision_model", tmp_path)
    folder = export(model, tokenizer, tmp_path / "out")
    frames = random_images(3)
    roles = model.get_model().resolution_at(TILE, 9).roles(3, is_video=True)
    views = [ImageView(21, 21, role) for role in roles]
    with torch.no_grad():
        ours = model(torch.tensor([[5, X, X, X, 7]]), images=list(frames), image_sizes=views).logits
    video = json.loads((folder / "config.json").read_text())["video_token_index"]
    ids = torch.tensor([[5, *[video] * (3 * 4 + 1), 7]])
    theirs = their_logits(folder, {"input_ids": ids, "pixel_values_videos": frames[None]})
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_import_and_export_again_is_bitwise(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = export(tiled_model(kind, "siglip_vision_model", tmp_path), tokenizer, tmp_path / "1")
    imported = import_transformers(first)
    assert imported.config.image_grid_pinpoints == PINPOINTS
    assert imported.config.image_aspect_ratio == KINDS[kind]
    second = export(imported, Tokenizer.from_pretrained(first), tmp_path / "2")
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert "image_newline" in before
    assert list(before) == list(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    written = [file for file in first.iterdir() if file.suffix in (".json", ".md") and "tokenizer" not in file.name]
    for file in written:
        assert file.read_text() == (second / file.name).read_text(), file.name


def test_written_settings_are_those_that_the_classes_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = export(tiled_model("llava_onevision", "clip_vision_model", tmp_path), tokenizer, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["image_grid_pinpoints"] == [[42, 21], [21, 42], [42, 42], [21, 63]]  # height, width; order kept
    assert (config["vision_aspect_ratio"], config["architectures"]) == (
        "anyres_max_2", ["LlavaOnevisionForConditionalGeneration"],
    )  # fmt: skip
    assert (config["image_token_index"], config["video_token_index"]) == (VOCAB, VOCAB + 1)
    assert json.loads((folder / "processor_config.json").read_text())["num_image_tokens"] == 10
    assert "LlavaOnevisionForConditionalGeneration.from_pretrained" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("aspect_ratio", "merge", "message"),
    [
        ("dynamic_1_6", "spatial_unpad", "none of transformers' LLaVA classes shows images so"),
        ("anyres", "flat", "merge the tiles of anyres by spatial_unpad"),
        ("pad", "spatial_unpad", "features of one square not at all"),
    ],
)
def test_ways_with_images_that_no_class_has_are_refused(
    aspect_ratio: str, merge: Any, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiled_model("llava_next", "clip_vision_model", tmp_path)
    model.get_model().set_patch_merge(merge)
    model.config.image_aspect_ratio, model.config.image_grid_pinpoints = aspect_ratio, None
    with pytest.raises(ValueError, match=message):
        export(model, tokenizer, tmp_path / "out")
