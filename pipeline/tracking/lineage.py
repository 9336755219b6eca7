"""Which pretraining run a projector came from: tags, and a note that a person reads on the finetuning run's page."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import STATE_NAME, SentState, read_state, run_link

NOTE_TAG = "mlflow.note.content"  # shown as the run's description


def projector_lineage(projector: Path) -> dict[str, str]:
    """Return the tags that tie a run to the projector file it starts from.

    Args:
        projector: The weights file. If it, or a folder above it, belongs to a tracked run folder, that run is named.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with projector.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tags = {"ray_llava.projector_sha256": digest, "ray_llava.projector_path": str(projector.resolve())}
    state = _tracked_run_of(projector)
    if state is None:
        return tags | {NOTE_TAG: f"Projector: `{projector}` (sha256 `{digest[:12]}`), from outside tracked runs."}
    tags["ray_llava.pretrain_run_key"] = state.run_key
    if state.run_id is None:
        return tags | {
            NOTE_TAG: f"Projector from a pretraining run not sent yet, key `{state.run_key}` (sha256 `{digest[:12]}`)."
        }
    tags["ray_llava.pretrain_run_id"] = state.run_id
    link = f"[pretraining run {state.run_id[:8]}]({run_link(state.experiment_id, state.run_id)})"
    return tags | {NOTE_TAG: f"Projector from {link}, sha256 `{digest[:12]}`."}


class SourceModel(NamedTuple):
    """A model of a tracked run."""

    experiment_id: str
    run_id: str
    name: str


def source_models(projector: str | None, language_model: str, tracking_uri: str | None) -> list[SourceModel]:
    """Return the models of other runs that a run starts from, as far as its server has them.

    Args:
        projector: The weights file, or None.
        language_model: What the config names; a path inside a run folder is the result of that run.
        tracking_uri: The run's own server; ids of another one mean nothing to it.
    """
    found = []
    for path, name in ((projector, "projector"), (language_model, "model")):
        state = _tracked_run_of(Path(path)) if path else None
        if state is None or state.run_id is None or state.experiment_id is None:
            continue
        if without_credentials(state.tracking_uri) == tracking_uri:
            found.append(SourceModel(state.experiment_id, state.run_id, name))
    return found


def _tracked_run_of(path: Path) -> SentState | None:
    for folder in path.resolve().parents:
        if (folder / STATE_NAME).is_file():
            return read_state(folder)
    return None
