"""Whether a checkpoint is this run's own, and what it holds still is what the config would compute."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from pipeline.checkpoint.base_weights import check_same_weights
from pipeline.checkpoint.store import Checkpoint
from pipeline.config import ConfigError, ExperimentConfig, check_resumable
from pipeline.plan.mix import check_past_changes
from pipeline.stream.rank_step import BatchSource
from pipeline.training.measures.metrics import METRICS_FILE


def check_own(checkpoint: Checkpoint, source: BatchSource, config: ExperimentConfig) -> None:
    """Refuse to continue from a checkpoint of another run, or under a config, data or weights that would falsify it.

    Raises:
        ConfigError: names what differs, and what to do.
    """
    try:
        started = ExperimentConfig.model_validate(checkpoint.state["config"])
    except ValidationError as error:
        raise ConfigError(
            f"checkpoint {checkpoint.folder} was written under a config that this version does not know: {error}. "
            "Resume it with the version that wrote it, or choose another run_dir"
        ) from error
    _check_same_run(checkpoint, started, config)
    check_resumable(started, config)
    check_past_changes(started.data.mix_changes, config.data.mix_changes, checkpoint.step)
    _check_same_plan(checkpoint, source, config)
    check_same_weights(checkpoint.state.get("weights", {}), config.model)


def _check_same_run(checkpoint: Checkpoint, started: ExperimentConfig, config: ExperimentConfig) -> None:
    """Refuse the checkpoints of a run elsewhere in a folder that both configs name.

    A run folder that was moved brings its metrics along; one that was lost comes back under its own name.
    """
    is_moved = (Path(config.run_dir) / METRICS_FILE).is_file()
    if config.checkpoint.folder is not None and started.run_dir != config.run_dir and not is_moved:
        raise ConfigError(
            f"checkpoint.folder {config.checkpoint.folder} holds the checkpoints of the run in {started.run_dir}, and "
            f"run_dir is {config.run_dir}: give this run a checkpoint.folder of its own, or set run_dir back to "
            "continue that one"
        )


def _check_same_plan(checkpoint: Checkpoint, source: BatchSource, config: ExperimentConfig) -> None:
    before, now = checkpoint.state["plan_fingerprint"], source.plan.fingerprint_before(checkpoint.step)
    if before != now:
        then, today = checkpoint.state["config"]["data"], config.model_dump(mode="json")["data"]
        changed = [f"data.{name}: {then[name]} before, {today[name]} now" for name in then if then[name] != today[name]]
        raise ConfigError(
            f"checkpoint {checkpoint.folder} was trained on plan {before[:12]}, the data now give plan {now[:12]}: "
            f"shards, tokenizer, template or batch size changed since ({'; '.join(changed) or 'not by the config'}). "
            "Restore them to resume, or choose another run_dir to start a new run"
        )
