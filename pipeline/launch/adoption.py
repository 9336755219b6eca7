"""The run folder of a config: created, or recognised as that of a run which may continue."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint.resume import run_storage
from pipeline.config import CheckpointConfig, ExperimentConfig, check_resumable, load_config
from pipeline.run_folder.files import replace_file
from pipeline.run_folder.place import push, working_folder


def adopt_run_dir(config: ExperimentConfig) -> None:
    """Create the run folder, or check that the run in it may continue with this config.

    A run that has left nothing but its config, because something in that was wrong, may begin with another one.

    Raises:
        ConfigError: a field that must not change on resume differs.
    """
    check_continues(config)
    saved = working_folder(config.run_dir) / "config.yaml"
    saved.parent.mkdir(parents=True, exist_ok=True)
    replace_file(saved, config.to_yaml())
    push(saved.parent)


def check_continues(config: ExperimentConfig) -> None:
    """Compare the config with that of the run that its folder holds, if that has begun.

    Raises:
        ConfigError: a field that must not change on resume differs.
    """
    saved = working_folder(config.run_dir) / "config.yaml"
    if saved.is_file() and has_begun(working_folder(config.run_dir), config.checkpoint):
        check_resumable(load_config(saved), config)


def has_begun(run_dir: Path, checkpoint: CheckpointConfig) -> bool:
    """Whether a run has left more in its folder than its config."""
    traces = (run_dir / name for name in ("metrics.jsonl", "mlflow.json"))
    return any(path.exists() for path in traces) or bool(run_storage(run_dir, checkpoint).generations())
