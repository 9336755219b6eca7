"""Sizing: at most one grey level from the image processors of `transformers` (Pillow backend), bounded memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.samples.fit import ImageSpec, fit_image
from pipeline.samples.image import Pixels
from tests.pipeline.samples.pictures import smooth_rgb

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = {
    "crop_size": {"height": 37, "width": 37},
    "size": {"shortest_edge": 37},
    "do_center_crop": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
}
SIZES = [
    (37, 37),
    (37, 61),
    (61, 37),
    (480, 640),
    (641, 479),
    (20, 23),
    (7, 90),
    (90, 7),
    (36, 38),
    (300, 301),
    (700, 23),
    (23, 700),
    (401, 400),
]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processor_pixels(rgb: Pixels, size: int, edge: int) -> Pixels:
    """Return the grey levels that CLIP's image processor computes before normalisation."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": size, "width": size}, do_normalize=False, do_rescale=False
    )
    (pixels,) = processor(Image.fromarray(rgb))["pixel_values"]
    return np.moveaxis(np.asarray(pixels), 0, -1)


def expand_to_square(rgb: Pixels, colour: tuple[int, int, int]) -> Pixels:
    image = Image.fromarray(rgb)
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.array(canvas)


def assert_close(found: Pixels, expected: Pixels) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("make", [smooth_rgb, noise])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_within_one_grey_level_of_clip(height: int, width: int, make: Any) -> None:
    rgb = make(height, width)
    spec = ImageSpec.from_preprocessor_config(PREPROCESSOR)
    found = fit_image(rgb, spec, "crop")
    assert found.dtype == np.uint8
    assert found.flags["C_CONTIGUOUS"]
    assert_close(found, processor_pixels(rgb, 37, 37))


@pytest.mark.parametrize("make", [smooth_rgb, noise])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_is_within_one_grey_level_of_expanding_then_clip(height: int, width: int, make: Any) -> None:
    rgb = make(height, width)
    spec = ImageSpec.from_preprocessor_config(PREPROCESSOR)
    assert spec.background == (122, 116, 104)
    assert_close(fit_image(rgb, spec), processor_pixels(expand_to_square(rgb, (122, 116, 104)), 37, 37))


@pytest.mark.parametrize("aspect_ratio", ["pad", "crop"])
def test_larger_resize_edge_cuts_the_centre_as_clip_does(aspect_ratio: Any) -> None:
    rgb = smooth_rgb(211, 157)
    spec = ImageSpec.from_preprocessor_config({**PREPROCESSOR, "size": 43})
    assert (spec.size, spec.edge) == (37, 43)
    source = expand_to_square(rgb, spec.background) if aspect_ratio == "pad" else rgb
    assert_close(fit_image(rgb, spec, aspect_ratio), processor_pixels(source, 37, 43))


def test_worked_numbers_of_the_documentation() -> None:
    white = np.full((480, 640, 3), 255, np.uint8)
    padded = fit_image(white, ImageSpec(336, CLIP_MEAN, CLIP_STD))
    assert (padded[:40] == (122, 116, 104)).all()
    assert (padded[44:292] == 255).all()
    columns = np.zeros((336, 448, 3), np.uint8)
    columns[:, 56:392] = 255
    assert (fit_image(columns, ImageSpec(336, CLIP_MEAN, CLIP_STD), "crop") == 255).all()


@pytest.mark.parametrize(("height", "width"), [(400, 40000), (40000, 400)])
def test_pad_of_very_long_picture_never_builds_its_square(height: int, width: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = fit_image(np.full((height, width, 3), 9, np.uint8), ImageSpec(37, CLIP_MEAN, CLIP_STD))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 200 * 1024  # the square would take 4.8 GB
    line = found[18] if width > height else found[:, 18]
    assert (line < 122).all()  # a third of a pixel wide: darker than the background, lighter than the picture
    assert (found[0, 0] == (122, 116, 104)).all()


def test_spec_from_folder_file_and_mapping_agree(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    expected = ImageSpec(37, CLIP_MEAN, CLIP_STD)
    for source in (tmp_path, tmp_path / "preprocessor_config.json", PREPROCESSOR):
        assert ImageSpec.from_preprocessor_config(source) == expected


def test_spec_from_siglip_like_config_resizes_to_its_size() -> None:
    config = {"size": {"height": 29, "width": 29}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    spec = ImageSpec.from_preprocessor_config(config)
    assert (spec.size, spec.edge, spec.background) == (29, 29, (127, 127, 127))


def test_spec_from_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file; expected the preprocessor_config"):
        ImageSpec.from_preprocessor_config(tmp_path)


@pytest.mark.parametrize("aspect_ratio", ["pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(61, 83), (83, 61), (47, 47), (9, 200), (200, 9)])
def test_fit_does_not_depend_on_the_strides_of_its_input(height: int, width: int, aspect_ratio: Any) -> None:
    turned = smooth_rgb(width, height).swapaxes(0, 1)  # as an EXIF orientation leaves it
    spec = ImageSpec(37, CLIP_MEAN, CLIP_STD)
    assert (fit_image(turned, spec, aspect_ratio) == fit_image(turned.copy(), spec, aspect_ratio)).all()
