import hashlib
from pathlib import Path

import pytest

from pipeline.tracking import projector_lineage
from pipeline.tracking.journal import SentState, save_state

SHA256 = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "pretrain" / "result" / "mm_projector.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def test_projector_of_a_tracked_run_names_that_run_and_links_to_it(projector: Path) -> None:
    state = SentState(run_key="k" * 32, tracking_uri="sqlite:///x.db", experiment_id="7", run_id="a1b2c3d4e5")
    save_state(projector.parent.parent, state)
    assert projector_lineage(projector) == {
        "ray_llava.projector_sha256": SHA256,
        "ray_llava.projector_path": str(projector),
        "ray_llava.pretrain_run_key": "k" * 32,
        "ray_llava.pretrain_run_id": "a1b2c3d4e5",
        "mlflow.note.content": (
            f"Projector from [pretraining run a1b2c3d4](#/experiments/7/runs/a1b2c3d4e5"
            f"?workflowType=machine_learning), sha256 `{SHA256[:12]}`."
        ),
    }


def test_projector_of_a_run_not_sent_yet_names_its_key(projector: Path) -> None:
    save_state(projector.parent.parent, SentState(run_key="k" * 32, tracking_uri="http://away"))
    tags = projector_lineage(projector)
    assert tags["ray_llava.pretrain_run_key"] == "k" * 32
    assert "ray_llava.pretrain_run_id" not in tags
    assert "not sent yet" in tags["mlflow.note.content"]


def test_projector_from_elsewhere_is_known_by_its_digest(projector: Path) -> None:
    tags = projector_lineage(projector)
    assert tags["ray_llava.projector_sha256"] == SHA256
    assert "ray_llava.pretrain_run_id" not in tags
    assert "outside tracked runs" in tags["mlflow.note.content"]


def test_projector_of_a_run_whose_state_is_unreadable_counts_as_from_elsewhere(projector: Path) -> None:
    (projector.parent.parent / "mlflow.json").write_bytes(b"")
    assert "outside tracked runs" in projector_lineage(projector)["mlflow.note.content"]
