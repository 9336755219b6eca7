"""Under Ray: an error that another start would raise again ends the run at once, on whichever rank it occurs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.launch.on_ray.final_failure import EndOnFinalFailure, FinalFailure, hand_back


class LibraryError(Exception):
    """Cannot be made again from what it is given, as some classes of libraries."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}, line {line}: damaged")


def train_on(folder: Path, error: Exception, *, has_begun: bool) -> Exception:
    """Let rank 1 of two fail with an error while rank 0 waits for it, as in a collective; returns what was raised."""
    starts = folder / "starts"

    def train() -> None:
        rank = ray.train.get_context().get_world_rank()
        with starts.open("a") as file:
            file.write(f"{rank}\n")
        if rank == 0:
            time.sleep(600)
        raise hand_back(error, has_begun=has_begun, came_back=False)

    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name="final",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=2),
            callbacks=[EndOnFinalFailure()],
        ),
    )
    trainer._register_sigint_handler = lambda controller: None  # it would stay after this test
    with pytest.raises(ray.train.TrainingFailedError) as caught:
        trainer.fit()
    raised: Exception = caught.value
    return raised


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_error_of_one_rank_that_nothing_can_mend_ends_the_run_without_another_start(tmp_path: Path) -> None:
    found = train_on(tmp_path, ValueError("the projector has another shape"), has_begun=False)
    assert isinstance(found, ray.train.ControllerError)
    failure = found.controller_failure
    assert isinstance(failure, FinalFailure)
    assert type(failure.error) is ValueError
    assert str(failure.error) == "the projector has another shape"
    assert "in the worker:" in failure.error.__notes__[0]
    assert sorted((tmp_path / "starts").read_text().split()) == ["0", "1"]


def test_hand_back_lets_ray_retry_what_may_be_mended_and_ends_what_came_back() -> None:
    lost, strange = ConnectionError("storage"), RuntimeError("strange")
    assert hand_back(lost, has_begun=True, came_back=True) is lost
    assert hand_back(strange, has_begun=True, came_back=False) is strange
    assert isinstance(hand_back(strange, has_begun=True, came_back=True), FinalFailure)
    kept = hand_back(LibraryError("a.bin", 7), has_begun=False, came_back=False)
    assert isinstance(kept, FinalFailure)
    assert str(kept.error) == "LibraryError: a.bin, line 7: damaged"
