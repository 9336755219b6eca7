"""What `pretrain` and `finetune` say at the end of a run."""

from pathlib import Path

import pytest

from jobs.training import run_stage
from pipeline.training import launch
from pipeline.training.launch import TrainingResult


@pytest.mark.parametrize(("run_id", "said"), [("a1b2", "run a1b2"), (None, "not sent yet")])
def test_end_of_a_run_names_its_mlflow_run_if_there_is_one(
    tmp_path: Path, run_id: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"{{name: n, run_dir: {tmp_path / 'run'}, stage: pretrain, data: {{shards: [a.tar], template: plain}}, "
        "model: {language_model: l, vision_tower: v}, training: {global_batch_size: 2, learning_rate: 0.1}}"
    )
    result = TrainingResult(tmp_path / "run", 3, {}, tmp_path / "run" / "projector", run_id)
    monkeypatch.setattr(launch, "run_training", lambda *_: result)
    run_stage("pretrain", str(tmp_path / "c.yaml"), None, dry_run=False)
    assert f"curves, data and lineage, {said}: mlflow ui" in capsys.readouterr().out.replace("\n", " ")
