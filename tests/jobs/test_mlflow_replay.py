"""How the verb ends when not everything could be sent."""

import socket
from pathlib import Path

import pytest

from pipeline.launch.watch import tracked_run
from pipeline.tracking import open_run
from tests.jobs.conftest import RunCommand
from tests.pipeline.tools.doctor.configs import small_config


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was written down and not sent, with a result that is gone."""
    config = small_config(tmp_path)
    tracking = config.tracking.model_copy(update={"enabled": False})
    open_run(tracked_run(config.model_copy(update={"tracking": tracking})), {}).log_artifacts(
        Path(config.run_dir) / "model"
    )
    return Path(config.run_dir)


def test_dead_server_ends_with_six_and_one_message(run_command: RunCommand, run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ended = run_command("mlflow-replay", str(run_dir), "--uri", uri)
    assert ended.exit_code == 6
    assert ended.messages.startswith(f"error: MLflow at {uri}: ")
    assert len(ended.messages.splitlines()) == 1


def test_files_that_are_gone_end_with_two_and_the_place_where_they_belong(
    run_command: RunCommand, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ended = run_command("mlflow-replay", str(run_dir), "--uri", uri)
    assert ended.exit_code == 2
    assert "lacks 1 artifact whose files are not there" in ended.messages
    assert f"artifact {run_dir}/model: no such file or folder" in caplog.text
    (run_dir / "model").mkdir()
    ended = run_command("mlflow-replay", str(run_dir), "--uri", uri)
    assert (ended.exit_code, "is complete" in ended.output) == (0, True)
