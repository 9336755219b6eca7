"""What `pretrain` and `finetune` say at the end of a run."""

from pathlib import Path

import pytest

from jobs import pretrain
from pipeline.launch import run as launch
from pipeline.launch.run import TrainingResult


def write_config(folder: Path) -> str:
    path = folder / "c.yaml"
    path.write_text(
        f"{{name: n, run_dir: {folder / 'run'}, stage: pretrain, data: {{shards: [a.tar], template: plain}}, "
        "model: {language_model: l, vision_tower: v}, training: {global_batch_size: 2, learning_rate: 0.1}}"
    )
    return str(path)


@pytest.mark.parametrize(("run_id", "said"), [("a1b2", "run a1b2"), (None, "not sent yet")])
def test_end_of_a_run_names_its_mlflow_run_if_there_is_one(
    tmp_path: Path, run_id: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = TrainingResult(tmp_path / "run", 3, {}, tmp_path / "run" / "projector", run_id)
    monkeypatch.setattr(launch, "run_training", lambda *_: result)
    pretrain.run(write_config(tmp_path))
    assert f"curves, data and lineage, {said}: mlflow ui" in capsys.readouterr().out.replace("\n", " ")


def test_end_of_a_run_is_told_by_the_first_rank_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(
        launch, "run_training", lambda *_: TrainingResult(tmp_path, 3, {}, tmp_path / "projector", None)
    )
    pretrain.run(write_config(tmp_path))
    assert capsys.readouterr().out == ""
