"""What the ranks of a run are told, taken out of its config."""

from __future__ import annotations

from pipeline.config import ExperimentConfig
from pipeline.run_folder.place import working_folder
from pipeline.training.worker import RankJob


def rank_job(config: ExperimentConfig, attempt: int) -> RankJob:
    """Return what a rank is to train; `attempt` is the number under which the run folder is held."""
    return RankJob(
        run_dir=working_folder(config.run_dir),
        recipe=config.recipe,
        seed=config.seed,
        checkpoint=config.checkpoint,
        record=config.to_record(),
        attempt=attempt,
        evaluation=config.evaluation,
        best=config.best_metric,
        torch_threads=config.cluster.torch_threads,
    )
