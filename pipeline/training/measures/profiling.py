"""A torch profiler trace of some steps, written into the run folder; open it in a browser at ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

PROFILE_FOLDER: Final = "profile"
"""Under the run folder; the launcher stores what is in it with the run."""


class StepProfiler:
    """Records the steps that the config names, on rank 0."""

    def __init__(self, steps: tuple[int, int] | None, run_dir: Path, *, is_first: bool) -> None:
        """Record from the first to the last of `steps`, both included; None, and other ranks, record nothing."""
        self._steps = steps if is_first else None
        self._folder = run_dir / PROFILE_FOLDER
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """Begin recording if it is time; a run that resumes between the two steps begins at once."""
        if self._steps is None or self._profiler is not None or not self._steps[0] <= step <= self._steps[1]:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._profiler.start()
        self._first = step

    def after(self, step: int, *, is_last: bool) -> None:
        """Write the trace once the last step to record, or of the run, is done."""
        if self._profiler is None or self._steps is None or (step < self._steps[1] and not is_last):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels still running belong to these steps
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self._folder / f"steps-{self._first}-to-{step}.json.gz"))
        self._profiler, self._steps = None, None
