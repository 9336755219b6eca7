import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.launch.progress import ProgressReporter

METRICS = {
    "train/loss": 1.25,
    "perf/samples_per_s": 31.0,
    "perf/images_per_s": 17.0,
    "perf/tokens_per_s": 4099.0,
    "perf/data_wait_fraction": 0.07,
}


def line(step: int) -> str:
    return json.dumps({"step": step, "time_s": 0.0, "metrics": METRICS}) + "\n"


def test_reporter_in_a_log_prints_plain_lines_of_new_steps_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(0) + line(1))
    output = io.StringIO()
    reporter = ProgressReporter(path, name="tiny", total_steps=4, console=Console(file=output, width=300))
    with reporter, path.open("a") as file:
        file.write(line(2) + line(3) + '{"step": 4, "ti')
    text = output.getvalue()
    assert "step 1/4" not in text
    assert "step 2/4" not in text
    assert "step 4/4 loss 1.2500 | 31.0 samples/s 17.0 images/s 4099 tokens/s | data wait 7%" in text


def test_reporter_of_a_resumed_run_starts_after_the_half_line_that_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(0) + '{"step": 1, "time_s"')
    output = io.StringIO()
    reporter = ProgressReporter(path, name="tiny", total_steps=3, console=Console(file=output, width=300))
    os.truncate(path, len(line(0)))  # as the run does
    with reporter, path.open("a") as file:
        file.write(line(1) + "no entry\n" + line(2))
    assert "step 3/3 loss 1.2500" in output.getvalue()
    assert f"a line after byte {len(line(0))} is not a metrics entry" in caplog.text
