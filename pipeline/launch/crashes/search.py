"""What a launcher does before it opens a stream: look for samples that keep ending their process, and refuse them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.index.index import ShardIndex
from pipeline.launch.crashes.sandbox import find_crashers
from pipeline.run_folder.place import fetch, shared_files, working_folder
from pipeline.stream.marks import WorkMarks
from pipeline.stream.refused import REFUSED_FILE, read_refused, refuse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Which data of which run."""

    run_dir: str
    """Folder or URL of the run."""
    data_fingerprint: str
    """Of the plan."""
    load_index: Callable[[], ShardIndex]
    """Called only when a sample must be named: an index may be large, and this object travels."""
    marks: WorkMarks
    """Left by the data workers that are examined, not by others."""


def refused_samples(data: RunData, *, died: bool = False) -> dict[int, str]:
    """Return the refused samples of a run, after examining what dead processes left behind.

    Args:
        data: the run.
        died: it is known that a data worker has just died.
    """
    run_dir = working_folder(data.run_dir)
    fetch(run_dir, REFUSED_FILE)
    known = read_refused(run_dir, data.data_fingerprint)
    suspects = [sample_id for sample_id in data.marks.suspects(died=died) if sample_id not in known]
    if not suspects:
        return known
    logger.warning("data workers died over the samples %s; decoding each of them apart", suspects)
    verdicts = find_crashers(run_dir / "config.yaml", suspects)
    with shared_files(run_dir):
        refuse(run_dir, data.data_fingerprint, data.load_index(), verdicts)
    return known | verdicts
