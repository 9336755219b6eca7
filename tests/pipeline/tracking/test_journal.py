import json
import math
from pathlib import Path

import pytest

from pipeline.tracking.journal import (
    Journal,
    MetricPoint,
    SentState,
    dashboard_command,
    flatten_params,
    load_state,
    read_metric_lines,
    resolve_tracking_uri,
    save_state,
)
from pipeline.tracking.operations import AnyOperation, FinishRun, LogArtifacts, LogDataset, LogMetrics, OpenRun, SetTags

OPERATIONS: list[AnyOperation] = [
    OpenRun(time_s=2.5, attempt=1, experiment="e", run_name="r", params={"a.b": "1"}, tags={}, config_yaml="a: 1\n"),
    SetTags(time_s=3.0, tags={"k": "line\nbreak"}),
    LogMetrics(time_s=5.0, step=7, metrics={"eval/accuracy": 0.25}),
    LogDataset(time_s=7.0, name="d", digest="abc", shards=("x.tar",), num_samples=11, context="training"),
    LogArtifacts(time_s=11.0, path="/x", artifact_path=None),
    FinishRun(time_s=13.0, status="FINISHED"),
]


def test_journal_operations_of_every_kind_are_read_back_equal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for operation in OPERATIONS:
        journal.append(operation)
    assert journal.read() == OPERATIONS
    assert journal.read(start=4) == OPERATIONS[4:]


def test_journal_metric_that_is_not_finite_survives(tmp_path: Path) -> None:
    Journal(tmp_path).append(LogMetrics(time_s=1.0, step=2, metrics={"loss": math.nan, "norm": math.inf}))
    (read,) = Journal(tmp_path).read()
    assert isinstance(read, LogMetrics)
    assert math.isnan(read.metrics["loss"])
    assert read.metrics["norm"] == math.inf


def test_journal_torn_last_line_is_ignored_and_repaired(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(OPERATIONS[0])
    complete = journal.path.read_bytes()
    journal.append(OPERATIONS[1])
    journal.path.write_bytes(journal.path.read_bytes()[:-3])
    assert journal.read() == OPERATIONS[:1]
    journal.repair()
    assert journal.path.read_bytes() == complete
    journal.append(OPERATIONS[2])
    assert journal.read() == [OPERATIONS[0], OPERATIONS[2]]


def test_metric_lines_are_read_from_an_offset_and_stop_at_an_unfinished_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = json.dumps({"step": 3, "time_s": 10.5, "metrics": {"a": 1.0, "b": 2}}).encode() + b"\n"
    second = json.dumps({"step": 4, "time_s": 11.5, "metrics": {"a": 3.0}}).encode() + b"\n"
    path.write_bytes(first + second + b'{"step": 5')
    read = list(read_metric_lines(path, 0))
    assert read == [
        (len(first), [MetricPoint("a", 1.0, 3, 10.5), MetricPoint("b", 2.0, 3, 10.5)]),
        (len(first) + len(second), [MetricPoint("a", 3.0, 4, 11.5)]),
    ]
    assert list(read_metric_lines(path, len(first))) == read[1:]


@pytest.mark.parametrize(
    "line", [b"not json\n", b'{"step": 1}\n', b"[1]\n", b'{"step":1,"time_s":1,"metrics":{"a":"x"}}\n']
)
def test_metric_line_that_is_no_entry_is_reported_and_passed(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'{"step": 2, "time_s": 1, "metrics": {"a": 5}}\n')
    points = [point for _, points in read_metric_lines(path, 0) for point in points]
    assert points == [MetricPoint("a", 5.0, 2, 1.0)]
    assert "byte 0: not a metrics entry" in caplog.text


def test_state_is_kept_for_the_same_server_and_restarted_for_another(tmp_path: Path) -> None:
    state = load_state(tmp_path, "http://one").model_copy(
        update={"run_id": "r", "experiment_id": "e", "num_operations": 3, "metrics_offset_bytes": 5}
    )
    save_state(tmp_path, state)
    assert load_state(tmp_path, "http://one") == state
    other = load_state(tmp_path, "http://two")
    assert other.run_key == state.run_key
    assert (other.run_id, other.num_operations, other.metrics_offset_bytes) == (None, 0, 0)


def test_tracking_uri_is_the_configs_then_the_environments_then_the_runs_then_beside_it(tmp_path: Path) -> None:
    environment = {"MLFLOW_TRACKING_URI": "http://env"}
    run_dir = tmp_path / "runs" / "a"
    assert resolve_tracking_uri("http://config", environment, run_dir) == "http://config"
    assert resolve_tracking_uri(None, environment, run_dir) == "http://env"
    assert resolve_tracking_uri(None, {}, run_dir) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    run_dir.mkdir(parents=True)
    save_state(run_dir, load_state(run_dir, "http://before"))
    assert resolve_tracking_uri(None, {}, run_dir) == "http://before"
    assert resolve_tracking_uri(None, environment, run_dir) == "http://env"


def test_dashboard_is_opened_at_the_servers_address_or_by_serving_the_database() -> None:
    assert dashboard_command("https://mlflow.example") == "https://mlflow.example"
    assert dashboard_command("sqlite:////a b/x.db") == "mlflow ui --backend-store-uri 'sqlite:////a b/x.db'"


def test_page_of_a_run_is_that_of_a_training_run_not_of_chat_traces() -> None:
    state = SentState(run_key="k", tracking_uri="u", experiment_id="7", run_id="abc")
    page = "#/experiments/7/runs/abc?workflowType=machine_learning"
    assert dashboard_command("https://me:pw@mlflow.example/team/", state) == f"https://mlflow.example/team/{page}"
    local = dashboard_command("sqlite:////d/mlflow.db", state)
    assert local == f"mlflow ui --backend-store-uri sqlite:////d/mlflow.db, then http://127.0.0.1:5000/{page}"
    unsent = SentState(run_key="k", tracking_uri="u")
    assert dashboard_command("https://mlflow.example", unsent) == "https://mlflow.example"


def test_params_are_flattened_to_dotted_names() -> None:
    tree = {"a": {"b": {"c": 1e-3}, "d": None}, "e": "text", "f": [1, 2], "g": True}
    expected = {"a.b.c": "0.001", "a.d": "null", "e": "text", "f": "[1, 2]", "g": "true"}
    assert flatten_params(tree) == expected


def test_journal_line_that_is_no_operation_is_reported_once_and_keeps_its_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    journal.append(OPERATIONS[0])
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "ta')
    journal.append(OPERATIONS[1])
    for _ in range(2):
        assert list(journal.numbered()) == [(1, OPERATIONS[0]), (3, OPERATIONS[1])]
    assert journal.read(2) == [OPERATIONS[1]]
    assert caplog.text.count(f"{journal.path}, line 2: not an operation, skipped") == 1


def test_unreadable_state_counts_as_absent_saying_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "runs" / "a"
    run_dir.mkdir(parents=True)
    (run_dir / "mlflow.json").write_bytes(b"")
    assert load_state(run_dir, "http://one").run_id is None
    assert resolve_tracking_uri(None, {}, run_dir) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert "mlflow.json is unreadable" in caplog.text
