from pathlib import Path
from typing import Any

import torch

from benchmarks.ranks.cached_features import CACHE_CASES, CACHED, COMPUTED, cache_measurements, compare
from pipeline.parallel.ranks import Workers


def test_every_measurement_of_the_tiny_case(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case, workers = CACHE_CASES["tiny"], Workers(0, 1, torch.device("cpu"))
    found: dict[str, Any] = {
        name: measure(workers) for name, measure in cache_measurements(case, tmp_path, use_gpu=False)
    }
    images = case.global_batch_size * case.num_steps
    assert found["filling"]["images"] == images
    assert found["filling"]["bytes"] == found["estimate"]["disk_bytes"] == images * 4 * 24 * 2
    assert found["reading by 0 processes"]["bytes"] == (case.num_steps - 1) * found["estimate"]["read_bytes_per_step"]
    assert len(found[COMPUTED]["losses"]) == case.num_steps
    assert compare(found[COMPUTED], found[CACHED])["loss_difference"] < 1e-3
