"""Whether a checkpoint is this run's own, and whether it matches what the config would compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.checkpoint.base_weights import check_same_weights
from pipeline.checkpoint.store import Checkpoint
from pipeline.config import ConfigError, ExperimentConfig, check_resumable
from pipeline.plan.mix import check_past_changes
from pipeline.plan.plan import Plan
from pipeline.run_folder.metrics_log import METRICS_FILE
from pipeline.run_folder.place import working_folder


def check_own(checkpoint: Checkpoint, plan: Plan, record: Mapping[str, Any]) -> None:
    """Refuse to continue from a checkpoint of another run, or under a config, data or weights that would invalidate it.

    Args:
        checkpoint: the checkpoint to continue from.
        plan: what the run's data and config give now.
        record: the run's config now, as `ExperimentConfig.to_record` returns it.

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
    now = ExperimentConfig.model_validate(record)
    _check_same_run(started.run_dir, now.run_dir, now.checkpoint.folder)
    check_resumable(started, now)
    check_past_changes(started.data.mix_changes, now.data.mix_changes, checkpoint.step)
    _check_same_plan(checkpoint, plan, record["data"])
    check_same_weights(checkpoint.state.get("weights", {}), now.model)


def _check_same_run(started_in: str, run_dir: str, checkpoint_folder: str | None) -> None:
    """Refuse the checkpoints of a run elsewhere in a folder that both configs name.

    A run folder that was moved has its metrics; one that was lost is created again under its own name.
    """
    is_moved = (working_folder(run_dir) / METRICS_FILE).is_file()
    if checkpoint_folder is not None and started_in != run_dir and not is_moved:
        raise ConfigError(
            f"checkpoint.folder {checkpoint_folder} holds the checkpoints of the run in {started_in}, and "
            f"run_dir is {run_dir}: give this run a checkpoint.folder of its own, or set run_dir back to "
            "continue that one"
        )


def _check_same_plan(checkpoint: Checkpoint, plan: Plan, today: Mapping[str, Any]) -> None:
    before, now = checkpoint.state["plan_fingerprint"], plan.fingerprint_before(checkpoint.step)
    if before != now:
        then = checkpoint.state["config"]["data"]
        changed = [f"data.{name}: {then[name]} before, {today[name]} now" for name in then if then[name] != today[name]]
        raise ConfigError(
            f"checkpoint {checkpoint.folder} was trained on plan {before[:12]}, the data now give plan {now[:12]}: "
            f"shards, tokenizer, template or batch size changed since ({'; '.join(changed) or 'not by the config'}). "
            "Restore them to resume, or choose another run_dir to start a new run"
        )
