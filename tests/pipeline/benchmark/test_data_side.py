"""The benchmarks of the data side run and account for their samples; their figures are for a quiet machine."""

from __future__ import annotations

from pathlib import Path

from pipeline.benchmark.data_scale import measure_validation
from pipeline.benchmark.image_path import measure_image_path


def test_image_path_is_at_most_one_grey_level_from_the_reference() -> None:
    measured = measure_image_path(num_rounds=1)
    assert max(measured["most grey levels apart"].values()) <= 1
    assert measured["images/s"].keys() >= {"ours", "CLIPImageProcessorPil", "libjpeg-turbo decode alone"}


def test_validation_reads_nothing_again(tmp_path: Path) -> None:
    measured = measure_validation(tmp_path, num_shards=3)
    assert measured["shards"] == 3
    assert len(list((tmp_path / "index" / "scans").iterdir())) == 4
