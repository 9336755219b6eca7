"""The benchmarks of the data side run and account for their samples; their figures are for a quiet machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers import CLIPImageProcessorPil

from benchmarks.data.data_rate import encode_jpeg
from benchmarks.data.data_scale import measure_validation
from benchmarks.data.image_path import measure_image_path
from benchmarks.data.image_processors import PaddingProcessor, processor_of


def test_image_path_is_at_most_one_grey_level_from_the_reference() -> None:
    measured = measure_image_path(num_rounds=1)
    assert max(measured["most grey levels apart"].values()) <= 1
    assert measured["images/s"].keys() >= {"ours", "CLIPImageProcessorPil", "libjpeg-turbo decode alone"}


def test_processor_in_a_process_of_its_own_gives_the_pixels_it_gives_here() -> None:
    image, background = encode_jpeg(0), (122, 116, 104)
    here = PaddingProcessor(CLIPImageProcessorPil, 56, background)
    site = Path(transformers.__file__).parents[1]
    with processor_of(site, 56, background) as elsewhere:
        answers = [elsewhere(image) for _ in range(2)]
    assert all(np.array_equal(answer.pixels, here(image).pixels) for answer in answers)
    assert min(answer.time_s for answer in answers) > 0


def test_folder_without_transformers_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise ImportError('made for another Python')")
    with (
        processor_of(tmp_path, 56, (0, 0, 0)) as elsewhere,
        pytest.raises(RuntimeError, match="ended: ImportError: made for another Python"),
    ):
        elsewhere(b"")


def test_validation_reads_nothing_again(tmp_path: Path) -> None:
    measured = measure_validation(tmp_path, num_shards=3)
    assert measured["shards"] == 3
    assert len(list((tmp_path / "index" / "scans").iterdir())) == 4
