"""The config of a small run that nothing is wrong with."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import ExperimentConfig, parse_config
from tests.pipeline.shards.archives import caption_files, tar_bytes

WEIGHTS = Path(__file__).parents[4] / "pipeline" / "tools" / "demo" / "weights"


def small_config(tmp_path: Path) -> ExperimentConfig:
    """Write a shard of one sample and return the config of a run on it, whose folder does not exist yet."""
    (tmp_path / "a.tar").write_bytes(tar_bytes(caption_files("key")))
    return parse_config(
        {
            "name": "n",
            "run_dir": str(tmp_path / "run"),
            "stage": "finetune",
            "data": {"shards": [str(tmp_path / "a.tar")]},
            "model": {"language_model": str(WEIGHTS / "language_model"), "vision_tower": str(WEIGHTS / "tower")},
            "training": {"global_batch_size": 2, "learning_rate": 0.1},
            "cluster": {"launcher": "local"},
        },
        where="test",
    )
