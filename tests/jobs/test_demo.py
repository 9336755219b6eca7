"""The demo as one command, on very little data and without Ray: every artifact is there, and it continues."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from jobs import demo
from pipeline.tools.demo import session
from pipeline.tools.demo.shards import DemoSizes

SMALL = DemoSizes(pretrain=7, finetune=5, held_out=6)
OVERRIDES = ["cluster.launcher=local", "cluster.data_workers=0", "tracking.enabled=false", "training.max_steps=2"]


def test_demo_on_little_data_leaves_report_figures_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    monkeypatch.setattr(session, "SIZES", SMALL)
    monkeypatch.setattr(demo, "output_console", lambda: Console(file=output, width=160))
    demo.run(tmp_path, OVERRIDES)
    text = output.getvalue()
    for name in ("before", "pretrained", "finetuned", "blanked", "held-out loss"):
        assert name in text
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert list(figures) == ["before", "pretrained", "finetuned", "blanked"]
    assert figures["finetuned"]["loss"] != figures["blanked"]["loss"]
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "report" / "answers.png").is_file()
    assert (tmp_path / "finetune" / "model" / "config.json").is_file()

    demo.run(tmp_path, OVERRIDES)  # both stages are finished: nothing is trained again
    assert json.loads((tmp_path / "report" / "figures.json").read_text()) == figures
