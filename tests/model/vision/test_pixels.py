from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.clip import CLIPImageProcessor

from model.vision.pixels import PixelStats, normalize_pixels, pixel_stats_of, read_pixel_stats
from tests.model.conftest import IMAGE_SIDE


def test_normalize_equals_clip_image_processor(tower_path: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
    wanted = CLIPImageProcessor.from_pretrained(tower_path)(pixels, return_tensors="pt")["pixel_values"][0]
    stats = read_pixel_stats(tower_path)
    assert stats is not None
    got = normalize_pixels(torch.from_numpy(pixels), stats, torch.float32)
    assert torch.allclose(got, wanted, atol=1e-6)


def test_normalize_rounds_only_at_the_end() -> None:
    stats = PixelStats((0.5, 0.25, 0.0), (0.5, 0.5, 1.0))
    pixels = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    got = normalize_pixels(pixels, stats, torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got.flatten(), torch.tensor([-1.0, -0.1, 1.0]).to(torch.bfloat16))


def test_normalize_of_pixels_with_channels_first_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[\.\.\., H, W, 3\], found \[3, 7, 5\]"):
        normalize_pixels(torch.zeros(3, 7, 5, dtype=torch.uint8), PixelStats((0, 0, 0), (1, 1, 1)), torch.float32)


def test_read_without_preprocessor_config_gives_none(tmp_path: Path) -> None:
    assert read_pixel_stats(str(tmp_path)) is None


def test_stats_missing_in_config_say_what_to_do() -> None:
    config = SimpleNamespace(mm_image_mean=None, mm_image_std=None, mm_vision_tower="towers/own")
    with pytest.raises(ValueError, match=r"towers/own came without a preprocessor_config\.json"):
        pixel_stats_of(config)
