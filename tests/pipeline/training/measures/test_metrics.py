import json
import logging
from pathlib import Path

import pytest

from pipeline.run_folder.metrics_log import MetricsLog
from pipeline.training.measures.metrics import Ledger, LedgerError, StepCounts
from pipeline.training.measures.sources import SourceNumbers


def read(path: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["metrics"]["train/loss"]) for entry in map(json.loads, path.open())]


def test_append_repeated_step_keeps_first_line_and_reports_another_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(0, {"train/loss": 3.5})
    log.append(1, {"train/loss": 2.5})
    log.close()
    again = MetricsLog(path)
    with caplog.at_level(logging.WARNING):
        again.append(1, {"train/loss": 2.5})
        assert caplog.text == ""
        again.append(1, {"train/loss": 2.25})
    assert "step 1: loss 2.25 now, 2.5 before" in caplog.text
    again.append(2, {"train/loss": 1.5})
    assert read(path) == [(0, 3.5), (1, 2.5), (2, 1.5)]


def test_open_half_written_line_is_cut_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(0, {"train/loss": 3.5})
    with path.open("ab") as file:
        file.write(b'{"step": 1, "time_s"')
    MetricsLog(path).append(1, {"train/loss": 2.5})
    assert read(path) == [(0, 3.5), (1, 2.5)]


def test_ledger_trained_plus_quarantined_must_equal_planned() -> None:
    ledger = Ledger()
    ledger.add(
        StepCounts(samples=5.0, rejected=2.0),
        {"image_truncated": 2},
        {"a": SourceNumbers(3, 2, 11, 1.5), "b": SourceNumbers(2, 0, 5, 0.5)},
    )
    ledger.add(StepCounts(samples=7.0), {}, {"a": SourceNumbers(0, 0, 0, 0.0), "b": SourceNumbers(7, 0, 13, 2.0)})
    ledger.check(14, {"a": 5, "b": 9})
    with pytest.raises(LedgerError, match=r"13 samples planned so far, but 12 trained \+ 2 quarantined"):
        ledger.check(13, {})
    with pytest.raises(LedgerError, match="6 samples of source a planned so far, but 3 trained"):
        ledger.check(14, {"a": 6, "b": 9})
    assert Ledger(**json.loads(json.dumps(ledger.to_json()))) == ledger


def test_open_line_that_is_no_entry_is_named_and_kept_and_its_step_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(0, {"train/loss": 3.5})
    merged = b'{"step": 1, "ti{"step": 2, "time_s": 1, "metrics": {}}\r\n'
    with path.open("ab") as file:
        file.write(merged)
    log = MetricsLog(path)
    for step, loss in ((0, 3.5), (1, 2.5), (2, 1.5)):
        log.append(step, {"train/loss": loss})
    assert f"{path}, line 2: not a JSON object" in caplog.text
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[1] == merged
    assert [json.loads(line)["step"] for line in lines if line != merged] == [0, 1, 2]
