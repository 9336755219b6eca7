"""Training on Ray: the plan arrives in order, and losing workers changes nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from pipeline.config import ConfigError, load_config
from pipeline.launch.on_ray import notices as ray_notices
from pipeline.launch.on_ray.notices import forward_stop_signals
from pipeline.launch.run import run_training
from pipeline.parallel.stop_signals import STOP_SIGNALS, StopRequestedError
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, losses, run, start, wait_for_steps

ON_RAY = ["cluster.launcher=ray", "cluster.num_workers=2", "cluster.data_workers=2"]


class Killer(threading.Thread):
    """Kills the first own process whose command line starts with `title`, once `num_steps` steps are logged."""

    def __init__(self, run_dir: Path, title: str, num_steps: int) -> None:
        super().__init__(daemon=True)
        self._metrics, self._title, self._num_steps = run_dir / "metrics.jsonl", title, num_steps
        self.killed: int | None = None

    def run(self) -> None:
        while not self._metrics.exists() or len(self._metrics.read_bytes().splitlines()) < self._num_steps:
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if " ".join(process.cmdline()).startswith(self._title):
                os.kill(process.pid, signal.SIGKILL)
                self.killed = process.pid
                return


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_two_ray_workers_equal_two_torchrun_ranks_bitwise(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(load_config(write_config("ray"), [*ON_RAY, "cluster.num_workers=[2, 2]"]))  # by the elastic policy
    config = str(write_config("plain"))
    run("torch.distributed.run", "--nproc-per-node=2", "-m", "jobs", "pretrain", "--config", config)
    assert_same_run(tmp_path / "ray", tmp_path / "plain")


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.usefixtures("local_ray")
def test_train_worker_and_controller_killed_are_restarted_and_the_run_equals_an_undisturbed_one(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    run_training(load_config(write_config("calm"), ON_RAY))
    killers = [
        Killer(tmp_path / "killed", title, num_steps)
        for title, num_steps in (("ray::RayTrainWorker", 3), ("ray::TrainController", 5))
    ]
    for killer in killers:
        killer.start()
    run_training(load_config(write_config("killed"), ON_RAY))
    assert all(killer.killed is not None for killer in killers)
    assert_same_run(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.ray
@pytest.mark.chaos
def test_driver_terminated_finishes_the_step_saves_and_exits_143(write_config: WriteConfig, tmp_path: Path) -> None:
    long = ["training.num_epochs=99", "training.max_steps=null", "checkpoint.every_steps=1000"]
    process = start("jobs", "pretrain", "--config", str(write_config("stopped")), *ON_RAY, *long)
    wait_for_steps(tmp_path / "stopped", 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 143, output
    done = len(losses(tmp_path / "stopped"))
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step-{done:08d}"]


@pytest.mark.ray
@pytest.mark.chaos
def test_driver_interrupted_by_the_keyboard_exits_130_and_says_how_to_go_on(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    long = ["training.num_epochs=99", "training.max_steps=null", "checkpoint.every_steps=1000"]
    process = start("jobs", "pretrain", "--config", str(write_config("stopped")), *ON_RAY, *long)
    wait_for_steps(tmp_path / "stopped", 1, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "interrupted; the same command resumes the run" in output
    assert "Traceback" not in output
    done = len(losses(tmp_path / "stopped"))
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step-{done:08d}"]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_driver_asked_to_stop_while_no_worker_trains_ends_too(
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    monkeypatch.setattr(ray_notices, "_NO_WORKERS_TIMEOUT_S", 1.0)
    threading.Timer(1.0, os.kill, (os.getpid(), signum)).start()
    waiting = ray.remote(num_cpus=0)(ray_notices.StopRequest).remote()
    with pytest.raises(StopRequestedError, match="while no worker was training") as stopped, forward_stop_signals():
        ray.get(waiting.wait.remote())  # as a driver does whose cluster has no room for workers
    assert stopped.value.signum == signum
    ray.kill(waiting)
    for handled in STOP_SIGNALS:  # a process that was asked to stop keeps its handlers
        signal.signal(handled, signal.default_int_handler if handled == signal.SIGINT else signal.SIG_DFL)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_defect_found_on_every_rank_ends_the_run_once_with_its_own_error(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    run_training(load_config(write_config("run"), [*ON_RAY, "training.max_steps=2"]))
    config = load_config(write_config("run"), ON_RAY)
    (tmp_path / "run" / "config.yaml").unlink()
    changed = ["data.shards=[" + config.data.shards[0].replace("pretrain-0", "finetune-0") + "]", "data.template=v1"]
    with pytest.raises(ConfigError, match="holds a run that these changes would invalidate"):
        run_training(load_config(write_config("run"), [*ON_RAY, *changed]))
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_more_workers_than_cpus_is_refused_before_anything_starts(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match="no CPU would be left to preprocess"):
        run_training(load_config(write_config("big"), [*ON_RAY, "cluster.num_workers=97"]))
