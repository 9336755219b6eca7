"""Ray Train's controllers that end before the run does: others take over, a limited number of times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray.exceptions
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from pipeline.config import ExperimentConfig, load_config
from pipeline.launch.on_ray import train as ray_train
from pipeline.launch.on_ray.train import ClusterCapacityError, replace_controllers
from pipeline.run_folder.lease import hold_run
from tests.integration.conftest import WriteConfig

NO_ROOM = ray.train.ControllerError(WorkerGroupStartupTimeoutError(3))


@pytest.fixture
def config(write_config: WriteConfig) -> ExperimentConfig:
    return load_config(write_config("run"), ["cluster.num_workers=[2, 3]", "cluster.cpus_per_worker=1.5"])


class Controllers:
    """Stands for Ray Train: each controller saves checkpoints up to the next step given, then ends with `error`."""

    def __init__(self, error: Exception, steps: list[int]) -> None:
        self._error, self._steps = error, steps
        self.saved_step = 0
        self.attempts: list[int] = []

    def fit(self, attempt: int) -> str:
        self.attempts.append(attempt)
        if not self._steps:
            return "finished"
        self.saved_step = self._steps.pop(0)
        raise self._error


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, config: ExperimentConfig) -> Callable[[Controllers], str]:
    def train(controllers: Controllers) -> str:
        monkeypatch.setattr(ray_train, "_saved_step", lambda *_: controllers.saved_step)
        with hold_run(Path(config.run_dir)) as attempt:
            return replace_controllers(config, attempt, controllers.fit)

    return train


@pytest.mark.parametrize(
    "error",
    [
        NO_ROOM,
        ray.train.ControllerError(WorkerGroupStartupFailedError("a node died")),
        ray.exceptions.ActorDiedError(),
    ],
)
def test_any_number_of_controllers_is_replaced_while_training_goes_on(
    train: Callable[[Controllers], str], error: Exception
) -> None:
    controllers = Controllers(error, [number // 7 for number in range(40)])  # seven times without a new checkpoint
    assert train(controllers) == "finished"
    assert controllers.attempts == sorted(set(controllers.attempts))  # each fences off the workers of the last
    assert len(controllers.attempts) == 41


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_cluster_without_room_ends_the_run_saying_what_it_has(train: Callable[[Controllers], str]) -> None:
    controllers = Controllers(NO_ROOM, [40] * 99)
    with pytest.raises(ClusterCapacityError, match=r"had no room for 2 workers of 1\.5 CPUs for 0 minutes") as caught:
        train(controllers)
    assert " CPUs free, 0 GPUs. Training is at step 40." in str(caught.value)
    assert len(controllers.attempts) == 9  # the first made progress


def test_a_defect_of_the_controller_is_not_tried_again(train: Callable[[Controllers], str]) -> None:
    controllers = Controllers(ray.train.ControllerError(ValueError("unknown backend")), [0])
    with pytest.raises(ray.train.ControllerError, match="unknown backend"):
        train(controllers)
    assert controllers.attempts == [1]
