"""Conversion as a Ray Data job."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.parallel.ray_map import map_on_cluster
from tests.pipeline.tools.convert.datasets import llava_records, write_llava
from tests.pipeline.tools.convert.test_run import contents, run

pytestmark = pytest.mark.ray


def test_convert_on_ray_gives_the_same_bytes_as_in_one_process(tmp_path: Path, local_ray: None) -> None:
    source_file = write_llava(tmp_path, llava_records(tmp_path, 23))
    run(source_file, tmp_path / "a")
    run(source_file, tmp_path / "b", run_map=map_on_cluster)
    assert len(contents(tmp_path / "a")) == 5
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
