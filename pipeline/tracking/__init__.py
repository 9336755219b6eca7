"""Experiment tracking as a sink: training writes files, a background thread copies them to MLflow.

`journal` is what the run folder remembers, `recovery` repairs it after damage, `tracker` the thread that sends
it, `mlflow_run` the only module that imports mlflow, `lineage` the tags that tie a finetuning run to its projector,
`credentials` removes credentials from text that others can read.
"""

from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import JOURNAL_NAME, dashboard_command, read_state, resolve_tracking_uri
from pipeline.tracking.lineage import projector_lineage, source_models
from pipeline.tracking.tracker import RunTracker, TrackedRun, open_run, replay

__all__ = [
    "JOURNAL_NAME",
    "RunTracker",
    "TrackedRun",
    "dashboard_command",
    "open_run",
    "projector_lineage",
    "read_state",
    "replay",
    "resolve_tracking_uri",
    "source_models",
    "without_credentials",
]
