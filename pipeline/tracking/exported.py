"""The record of an export: a logged model of the run whose model was exported, and a version in the registry."""

from __future__ import annotations

import re
import time
from pathlib import Path

from pipeline.run_folder.held import RunHeldError
from pipeline.tracking.journal import JOURNAL_NAME, STATE_NAME, Journal, read_state
from pipeline.tracking.operations import SOURCE_RUN_TAG, LogModel, OpenRun, RegistryEntry
from pipeline.tracking.tracker import replay


def record_export(model: Path, target: Path, facts: dict[str, str]) -> str | None:
    """Write an export down in the run folder that the model comes from, and send it if the server answers.

    Args:
        model: What was exported: a run folder or a model folder.
        target: What was written.
        facts: Shown as the model's parameters.

    Returns:
        What a person should know; None if the model belongs to no tracked run.
    """
    run_dir = next((folder for folder in (model / "x").resolve().parents if (folder / STATE_NAME).is_file()), None)
    if run_dir is None or not (run_dir / JOURNAL_NAME).is_file():
        return None
    journal = Journal(run_dir)
    journal.repair()
    entries = journal.read()
    opening = next((entry for entry in entries if isinstance(entry, OpenRun)), None)
    results = [entry for entry in entries if isinstance(entry, LogModel) and entry.name == "model"]
    if opening is None or not results:
        return None
    result, state = results[-1], read_state(run_dir)
    source = {} if state is None or state.run_id is None else {SOURCE_RUN_TAG: state.run_id}
    score = None if result.entry is None else result.entry.score
    place = str(target.resolve())
    journal.append(
        result.model_copy(
            update={
                "time_s": time.time(),
                "name": re.sub(r"[^A-Za-z0-9_-]", "-", f"export-{target.resolve().name}"),
                "model_type": "export",
                "path": None,
                "tags": result.tags | source | {"ray_llava.stage": "export", "ray_llava.location": place},
                "params": result.params | facts,
                "entry": RegistryEntry(name=_entry_name(opening.experiment), alias="exported", score=score),
            }
        )
    )
    try:
        replay(run_dir, None)
    except RunHeldError:
        return "the run of this model is active: it sends the record of this export to MLflow when it is started again"
    except (OSError, ValueError) as error:
        return f"not in MLflow yet: {error}"
    return f"recorded in MLflow as a version of {_entry_name(opening.experiment)!r}"


def _entry_name(experiment: str) -> str:
    return re.sub(r"[/:]", "-", f"{experiment}-export")
