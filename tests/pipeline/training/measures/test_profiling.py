import gzip
import json
from pathlib import Path

import pytest
import torch

from pipeline.training.measures.profiling import StepProfiler


def record(profiler: StepProfiler, steps: range, total_steps: int) -> None:
    for step in steps:
        profiler.before(step)
        with torch.profiler.record_function(f"step number {step}"):
            torch.ones(7, 11) @ torch.ones(11, 5)
        profiler.after(step, is_last=step + 1 == total_steps)


def names(path: Path) -> set[str]:
    return {event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}


def test_trace_holds_the_named_steps_only(tmp_path: Path) -> None:
    record(StepProfiler((2, 3), tmp_path, is_first=True), range(6), 6)
    files = list((tmp_path / "profile").iterdir())
    assert [file.name for file in files] == ["steps-2-to-3.json.gz"]
    assert {"step number 2", "step number 3", "aten::mm"} <= names(files[0])
    assert not {"step number 1", "step number 4"} & names(files[0])


def test_trace_of_a_run_that_ends_early_is_written_at_its_end(tmp_path: Path) -> None:
    record(StepProfiler((2, 90), tmp_path, is_first=True), range(3, 5), 5)
    assert [file.name for file in (tmp_path / "profile").iterdir()] == ["steps-3-to-4.json.gz"]


@pytest.mark.parametrize(("steps", "is_first"), [(None, True), ((0, 1), False)])
def test_no_steps_or_another_rank_writes_nothing(tmp_path: Path, steps: tuple[int, int] | None, is_first: bool) -> None:
    record(StepProfiler(steps, tmp_path, is_first=is_first), range(3), 3)
    assert not (tmp_path / "profile").exists()
