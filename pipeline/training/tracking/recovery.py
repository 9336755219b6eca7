"""Finding a run on its server again when mlflow.json became unreadable: every checkpoint names the run."""

import logging
from pathlib import Path

from pipeline.config import ExperimentConfig
from pipeline.training.resume import run_storage
from pipeline.training.tracking.journal import STATE_NAME, SentState, read_state, save_state
from pipeline.training.verification import readable_manifests

logger = logging.getLogger(__name__)


def recover_state(config: ExperimentConfig) -> None:
    """Write an unreadable mlflow.json anew from the newest checkpoint that names the run; everything is sent again.

    One that is missing stays so: whoever copies checkpoints to another run folder wants another run.

    Raises:
        OSError: the checkpoints cannot be listed.
    """
    run_dir = Path(config.run_dir)
    if not (run_dir / STATE_NAME).is_file() or read_state(run_dir) is not None:
        return
    for name, manifest in reversed(readable_manifests(run_storage(config)).items()):
        if known := manifest.state.get("mlflow"):
            save_state(run_dir, SentState(**known))
            logger.warning("checkpoint %s names the run at MLflow, key %s, which is continued", name, known["run_key"])
            return
    logger.warning("no checkpoint of %s names its MLflow run either: a new one is made", run_dir)
