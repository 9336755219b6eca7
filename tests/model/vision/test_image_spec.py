"""Processor configs as published, in every spelling: read alike by index, training and exported processor, or refused.

The truth is transformers' own class of each config (Pillow backend).
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast
from transformers.image_utils import load_image
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from model.fusion.feature_layout import layout_of
from model.fusion.resolution import read_resolution
from model.hub.hf_classes import LLAVA, LLAVA_NEXT
from model.hub.processor_files import write_processor
from model.vision.image_spec import ImageSpec, fingerprint_facts
from model.vision.pixels import PixelStats, normalize_pixels, read_pixel_stats
from model.vision.vision_tower import TowerSpec, VisionTower
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.image import decode_image, probe_image
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

SIDE, PATCH, GRID = 28, 7, 4
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
STEPS = {"do_resize": True, "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True}
BOTH = {"height": SIDE, "width": SIDE}
NULLS = dict.fromkeys(("crop_size", "do_center_crop", "data_format", "device", "input_data_format", "return_tensors"))
PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "crop_size": SIDE, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", **CLIP, "resample": 3, "size": SIDE,
    },
    "clip, saved again": {
        **STEPS, **CLIP, "crop_size": BOTH, "do_center_crop": True, "do_convert_rgb": True, "resample": 3,
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE},
    },
    "clip, fast": {
        **STEPS, **CLIP, "crop_size": BOTH, "do_center_crop": True, "resample": 3, "default_to_square": False,
        "image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": SIDE},
    },
    "google/siglip-so400m-patch14-384": {
        **STEPS, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor", "resample": 3, "size": BOTH,
    },
    "google/siglip2-so400m-patch14-384": {
        **STEPS, "do_convert_rgb": None, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
        "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "size": BOTH,
    },
    "facebook/dinov2-small": {
        **STEPS, **IMAGENET, "crop_size": BOTH, "do_center_crop": True, "do_convert_rgb": True, "resample": 3,
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32},
    },
    "facebook/dinov3-vits16-pretrain-lvd1689m": {
        **STEPS, **IMAGENET, **NULLS, "default_to_square": True, "do_convert_rgb": None, "resample": 2,
        "image_processor_type": "DINOv3ViTImageProcessorFast", "size": BOTH,
    },
    "OpenGVLab/InternViT-300M-448px": {
        "crop_size": SIDE, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", **IMAGENET, "resample": 3, "size": SIDE,
    },
    "OpenGVLab/InternVL3-1B-hf": {
        **STEPS, **IMAGENET, **NULLS, "crop_to_patches": False, "default_to_square": True, "do_convert_rgb": True,
        "image_processor_type": "GotOcr2ImageProcessorFast", "max_patches": 12, "min_patches": 1, "resample": 3,
        "size": BOTH,
    },
    "google/vit-base-patch16-224": {
        "do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIDE,
        "image_processor_type": "ViTImageProcessor", "resample": 2,
    },
}  # fmt: skip
DROP = object()
OPTIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "size int": {"size": SIDE},
    "size short edge": {"size": {"shortest_edge": 32}},
    "size both sides": {"size": {"height": 32, "width": 32}},
    "crop int": {"crop_size": SIDE},
    "crop dict": {"crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True},
    "no crop": {"do_center_crop": False},
    "no crop, both sides": {"do_center_crop": False, "size": BOTH},
    "nearest": {"resample": 0},
    "bilinear": {"resample": 2},
    "bicubic": {"resample": 3},
    "lanczos": {"resample": 1},
    "no resample": {"resample": DROP},
    "no resize": {"do_resize": False},
    "no rescale": {"do_rescale": False},
    "no normalize": {"do_normalize": False},
    "neither": {"do_normalize": False, "do_rescale": False},
    "other factor": {"rescale_factor": 1 / 127.5},
    "grey levels": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3},
    "no mean": {"image_mean": DROP},
    "no std": {"image_std": DROP},
    "scalar mean": {"image_mean": 0.5},
    "scalar std": {"image_std": 0.25},
}
ASPECTS = {"pad": "flat", "crop": "flat", "anyres": "spatial_unpad"}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28]]


def config_of(name: str, option: str) -> dict[str, Any]:
    return {key: value for key, value in {**PUBLISHED[name], **OPTIONS[option]}.items() if value is not DROP}


def smooth(height: int, width: int) -> Image.Image:
    """A picture that varies over some eight pixels, as photographs do."""
    coarse = np.random.default_rng(height * width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = [smooth(40, 64), smooth(100, 40), smooth(28, 28), smooth(19, 57)]


def their_class(config: dict[str, Any]) -> Any:
    """Return transformers' processor of a config; DINOv3's, which needs torchvision, is ViT's with other defaults."""
    named = config.get("image_processor_type") or config["feature_extractor_type"]
    kind = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if kind == "DINOv3ViTImageProcessor":
        return their_class({**IMAGENET, **config, "image_processor_type": "ViTImageProcessor"})
    package = {"CLIP": "clip", "Siglip": "siglip", "Bit": "bit", "GotOcr2": "got_ocr2", "ViT": "vit"}
    name = package[kind.removesuffix("ImageProcessor")]
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    dropped = ("image_processor_type", "feature_extractor_type")
    return getattr(module, f"{kind}Pil")(**{key: value for key, value in config.items() if key not in dropped})


def exported(folder: Path, config: dict[str, Any], aspect: str) -> Any:
    """Return the processor of an exported folder, as transformers opens it."""
    tower = VisionTower(TowerSpec("tower", -2, "patch"), CLIPVisionConfig(image_size=SIDE, patch_size=PATCH))
    resolution = resolution_of(aspect)
    model: Any = SimpleNamespace(
        config=SimpleNamespace(image_aspect_ratio=aspect),
        get_vision_tower=lambda: tower,
        get_model=lambda: SimpleNamespace(get_vision_tower=lambda: tower, resolution_at=lambda *_: resolution),
    )
    kind = LLAVA_NEXT if aspect == "anyres" else LLAVA
    write_processor(model, kind, folder, config, None)
    written = json.loads((folder / "preprocessor_config.json").read_text())
    name = {"LlavaImageProcessor": "llava", "CLIPImageProcessor": "clip", "LlavaNextImageProcessor": "llava_next"}
    package = name[written.pop("image_processor_type")]
    module = importlib.import_module(f"transformers.models.{package}.image_processing_pil_{package}")
    images = next(value for key, value in vars(module).items() if key.endswith("ImageProcessorPil"))(**written)
    fields = json.loads((folder / "processor_config.json").read_text())
    del fields["processor_class"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer("chatml").backend_tokenizer)
    return (LlavaNextProcessor if aspect == "anyres" else LlavaProcessor)(images, tokenizer, **fields)


def resolution_of(aspect: str) -> Any:
    return read_resolution(
        aspect, PINPOINTS if aspect == "anyres" else None, ASPECTS[aspect],
        tile_size=SIDE, tile_features=GRID**2, tile_grid=GRID,
    )  # fmt: skip


def encoder_of(config: dict[str, Any], aspect: str) -> SampleEncoder:
    spec = ImageSpec.from_preprocessor_config(config)
    return SampleEncoder(build_tokenizer("chatml"), "qwen", spec, resolution_of(aspect), None)


def pixels_of(encoder: SampleEncoder, data: bytes) -> Any:
    """What training feeds the tower, [U, 3, P, P]."""
    stats = PixelStats(encoder.image_spec.mean, encoder.image_spec.std)
    return normalize_pixels(torch.from_numpy(encoder.encode_image(data).pixels), stats, torch.float32)


def grey_levels_apart(ours: Any, theirs: Any, spec: ImageSpec) -> float:
    assert ours.shape == theirs.shape
    std = torch.tensor(spec.std)[:, None, None]
    return float(((ours - theirs).abs() * std * 255).max())


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check(config: dict[str, Any], aspect: str, folder: Path) -> str:
    """Compare index, training, transformers' own class and the exported processor; return what came of it."""
    try:
        encoder = encoder_of(config, aspect)
    except ValueError as error:
        refusals = ("resample 1 ", "do_resize false", "would not be square", "makes squares of 32")
        return next(reason for reason in refusals if reason in str(error))
    processor = exported(folder, config, aspect)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    for image in PICTURES:
        data = png(image)
        ours = pixels_of(encoder, data)
        out = processor(text="<image> hi", images=image, return_tensors="pt")
        theirs = out["pixel_values"][0] if aspect == "anyres" else out["pixel_values"]
        assert grey_levels_apart(ours, theirs, encoder.image_spec) <= 1.02
        header = probe_image(data)
        (view,) = encoder.views([(header.height, header.width)], is_video=False)
        assert view == encoder.encode_image(data).view
        num_tokens = int((out["input_ids"] == image_id).sum())
        assert num_tokens == layout_of(encoder.resolution, view).num_features
        if aspect == "crop":
            truth = torch.as_tensor(np.array(their_class(config)(image)["pixel_values"]))
            assert grey_levels_apart(ours, truth, encoder.image_spec) <= 1.02
    return "equal"


REFUSED = {"resample 1 ": 3, "do_resize false": 3}
OBLONG = {"would not be square": 1}
"""The short edge without a crop, under `crop` alone."""
COUNTS: dict[str, dict[str, int]] = {
    "openai/clip-vit-large-patch14-336": {"equal": 62, **OBLONG},
    "clip, saved again": {"equal": 62, **OBLONG},
    "clip, fast": {"equal": 62, **OBLONG},
    "google/siglip-so400m-patch14-384": {"equal": 56, **OBLONG, "makes squares of 32": 6},
    "google/siglip2-so400m-patch14-384": {"equal": 56, **OBLONG, "makes squares of 32": 6},
    "facebook/dinov2-small": {"equal": 60, "makes squares of 32": 3},
    "facebook/dinov3-vits16-pretrain-lvd1689m": {"equal": 57, "makes squares of 32": 6},
    "OpenGVLab/InternViT-300M-448px": {"equal": 62, **OBLONG},
    "OpenGVLab/InternVL3-1B-hf": {"equal": 57, "makes squares of 32": 6},
    "google/vit-base-patch16-224": {"equal": 57, "makes squares of 32": 6},
}
"""Of 23 options in 3 aspect ratios each, 69; the tower is of 28 pixels, so that squares of 32 do not fit it."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_option_of_a_published_processor_is_equal_everywhere_or_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    found = Counter(
        check(config_of(name, option), aspect, tmp_path) for option, aspect in itertools.product(OPTIONS, ASPECTS)
    )
    assert found == COUNTS[name] | REFUSED
    assert found.total() == len(OPTIONS) * len(ASPECTS) == 69


def with_exif(image: Image.Image, orientation: int) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def in_mode(mode: str) -> bytes:
    buffer = io.BytesIO()
    PICTURES[0].convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    return buffer.getvalue()


FILES = {f"EXIF {turn}": with_exif(PICTURES[0], turn) for turn in range(1, 9)}
FILES |= {mode: in_mode(mode) for mode in ("RGB", "L", "1", "P", "CMYK")}


@pytest.mark.parametrize("aspect", ASPECTS)
def test_files_that_transformers_decodes_itself_have_the_pixels_and_tokens_of_training(
    aspect: str, tmp_path: Path
) -> None:
    config = PUBLISHED["clip, saved again"]
    encoder, processor = encoder_of(config, aspect), exported(tmp_path, config, aspect)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    for name, data in FILES.items():
        file = tmp_path / "picture"
        file.write_bytes(data)
        out = processor(text="<image> hi", images=load_image(str(file)), return_tensors="pt")
        theirs = out["pixel_values"][0] if aspect == "anyres" else out["pixel_values"]
        assert grey_levels_apart(pixels_of(encoder, data), theirs, encoder.image_spec) <= 1.02, name
        header = probe_image(data)
        (view,) = encoder.views([(header.height, header.width)], is_video=False)
        num_tokens = int((out["input_ids"] == image_id).sum())
        assert num_tokens == layout_of(encoder.resolution, view).num_features, name


def transparent() -> bytes:
    buffer, image = io.BytesIO(), PICTURES[0].convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def deep_grey() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(PICTURES[0].convert("L")).astype(np.uint16) * 257).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("make", [transparent, deep_grey])
def test_files_that_transformers_decodes_otherwise_agree_once_they_are_rgb(make: Any, tmp_path: Path) -> None:
    config, data = PUBLISHED["clip, saved again"], make()
    encoder, processor = encoder_of(config, "pad"), exported(tmp_path, config, "pad")
    rgb = Image.fromarray(decode_image(data))
    theirs = processor(text="<image> hi", images=rgb, return_tensors="pt")["pixel_values"]
    assert grey_levels_apart(pixels_of(encoder, data), theirs, encoder.image_spec) <= 1.02


def test_config_without_a_class_is_read_as_clips(tmp_path: Path) -> None:
    config = {"size": 224, "crop_size": 224, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    spec = ImageSpec.from_preprocessor_config(tmp_path)
    assert (spec.size, spec.mean, spec.std) == (224, tuple(CLIP["image_mean"]), tuple(CLIP["image_std"]))
    assert read_pixel_stats(str(tmp_path)) == (spec.mean, spec.std)


def test_stats_leave_out_a_normalisation_that_is_switched_off(tmp_path: Path) -> None:
    config = PUBLISHED["google/siglip2-so400m-patch14-384"] | {"do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert read_pixel_stats(str(tmp_path)) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "PixtralImageProcessorFast"}, "'PixtralImageProcessorFast' is not known here"),
        ({"size": {"height": 30, "width": 40}}, "equal height and width"),
        ({"size": {"longest_edge": 40}}, "a shortest_edge"),
        ({"crop_size": "big"}, "crop_size: expected one number"),
        ({"crop_size": 40, "do_center_crop": True}, "crop_size 40 is larger than size 28"),
        ({"image_mean": [0.5]}, "need 3 numbers, or one for all"),
        ({"image_std": [0.5, 0.5, 0]}, "numbers above 0"),
        ({"image_mean": [127.5] * 3}, "belongs to do_rescale false"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"resample": 1}, r"expected 0 \(nearest\), 2 \(bilinear\), 3 \(bicubic\)"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpec.from_preprocessor_config(PUBLISHED["clip, saved again"] | change)


@pytest.mark.parametrize("name", PUBLISHED)
def test_written_config_is_read_as_the_same_spec(name: str) -> None:
    spec = ImageSpec.from_preprocessor_config(PUBLISHED[name])
    assert ImageSpec.from_preprocessor_config(spec.to_preprocessor_config()) == spec
    assert spec.scaled(3).size == 3 * spec.size


def test_fingerprint_leaves_out_what_older_runs_did_not_know_until_it_differs() -> None:
    spec = ImageSpec(96, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert fingerprint_facts(spec) == {
        "size": 96, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.5), "resize_edge": None
    }  # fmt: skip
    assert fingerprint_facts(dataclasses.replace(spec, resample="bilinear"))["resample"] == "bilinear"
    assert fingerprint_facts(dataclasses.replace(spec, crops=False))["crops"] is False
