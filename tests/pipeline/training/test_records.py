import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from pipeline.training.records import NONFINITE_FILE, SPIKE_FILE, drop_replayed_records, record_step
from pipeline.training.session import TrainingSession


def test_numbers_that_are_not_finite_are_written_as_strings(tmp_path: Path) -> None:
    session = SimpleNamespace(
        workers=SimpleNamespace(is_first=True, world_size=1),
        run_dir=tmp_path,
        plan=SimpleNamespace(split=lambda *_: []),
    )
    numbers = {"loss": math.nan, "grad_norm": -math.inf, "bound": 2.5, "none": None}
    record_step(cast(TrainingSession, session), NONFINITE_FILE, 3, numbers)
    text = (tmp_path / NONFINITE_FILE).read_text()
    assert json.loads(text) == {
        "step": 3,
        "loss": "nan",
        "grad_norm": "-inf",
        "bound": 2.5,
        "none": None,
        "samples": [],
    }


def test_records_of_steps_that_are_computed_again_are_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": "nan", "samples": []}) for step in (2, 4, 5)]
    (tmp_path / SPIKE_FILE).write_text("\n".join([*lines, '{"step": 5, "lo']))
    drop_replayed_records(tmp_path, 4)
    assert (tmp_path / SPIKE_FILE).read_text() == lines[0] + "\n"
    assert not (tmp_path / NONFINITE_FILE).exists()
    (tmp_path / NONFINITE_FILE).write_text(lines[1] + "\n")
    drop_replayed_records(tmp_path, 4)
    assert (tmp_path / NONFINITE_FILE).read_text() == ""
