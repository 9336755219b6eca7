"""Recovery when mlflow.json does not match the other files of the run folder, as after a power loss.

It may be unreadable, or newer than the lines that it counts: it is written durably, they are not. A folder that was
copied while its run went on is left in the same state.
"""

import logging
from pathlib import Path

from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.verification import readable_manifests
from pipeline.config import CheckpointConfig
from pipeline.run_folder.files import complete_lines
from pipeline.tracking.journal import JOURNAL_NAME, METRICS_NAME, STATE_NAME, SentState, read_state, save_state

logger = logging.getLogger(__name__)


def recover_state(run_dir: Path, checkpoint: CheckpointConfig) -> None:
    """Restore an unreadable mlflow.json from the newest checkpoint that names the run; everything is sent again.

    A missing one is not restored: copying checkpoints to another run folder means another run.

    Raises:
        OSError: the checkpoints cannot be listed.
    """
    if not (run_dir / STATE_NAME).is_file() or read_state(run_dir) is not None:
        return
    for name, manifest in reversed(readable_manifests(run_storage(run_dir, checkpoint)).items()):
        if known := manifest.state.get("mlflow"):
            save_state(run_dir, SentState(**known, knows_more=True))
            logger.warning("checkpoint %s names the run at MLflow, key %s, which is continued", name, known["run_key"])
            return
    logger.warning("no checkpoint of %s names its MLflow run either: creating a new one", run_dir)


def recover_position(run_dir: Path) -> None:
    """Correct an mlflow.json that counts more than the folder holds, so that what is written from now on is sent.

    The lost lines are at the server already. Steps among them that are computed again get new lines with other times,
    which MLflow would keep as well; so the server is asked which steps it has. To be called before anything
    is appended, since new lines would take the places of the lost ones.
    """
    state = read_state(run_dir)
    if state is None:
        return
    journal, metrics, changes = run_dir / JOURNAL_NAME, run_dir / METRICS_NAME, dict[str, object]()
    num_lines = len(complete_lines(journal))
    if num_lines < state.num_operations:
        logger.warning("%s has %d lines, MLflow has %d: the others were lost", journal, num_lines, state.num_operations)
        missing = tuple(number for number in state.missing_artifacts if number <= num_lines)
        changes |= {"num_operations": num_lines, "missing_artifacts": missing}
    offset_bytes = state.metrics_offset_bytes
    if not _ends_line(metrics, offset_bytes):
        logger.warning("%s: MLflow has it up to byte %d, where no line ends: lines were lost", metrics, offset_bytes)
        changes |= {"metrics_offset_bytes": 0, "knows_more": True}
    if changes:
        save_state(run_dir, state.model_copy(update=changes))


def _ends_line(path: Path, offset_bytes: int) -> bool:
    if offset_bytes == 0:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(offset_bytes - 1)
        return file.read(1) == b"\n"
