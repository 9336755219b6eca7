from pathlib import Path

import pytest

from jobs.ray_job import SubmitError
from jobs.submit import build_request
from pipeline.config import ConfigError


def request_of(*command: str, env: tuple[str, ...] = (), working_dir: str | None = None) -> object:
    return build_request(command, python="/opt/python", working_dir=working_dir, env=env, environment={})


def test_request_is_named_after_verb_and_run_so_that_a_resubmission_has_the_same_name() -> None:
    arguments = ["pretrain", "-c", "nlvr_pretrain", "data.shards=[a.tar]", "run_dir=/shared/x", "name=second try"]
    request = build_request(arguments, python="/opt/python", working_dir="w", env=["A=b=c"], environment={})
    assert request.name == "ray-llava-pretrain-second-try"
    assert request.entrypoint.startswith("/opt/python -m jobs pretrain -c nlvr_pretrain 'data.shards=[a.tar]' ")
    assert request.env_vars == {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "120", "A": "b=c"}
    assert request.working_dir == "w"


def test_request_of_a_verb_without_config_is_named_after_the_verb() -> None:
    request = build_request(["mlflow-replay", "/r"], python="p", working_dir=None, env=[], environment={})
    assert request.name == "ray-llava-mlflow-replay"


def test_request_whose_config_is_on_the_cluster_only_is_named_after_the_file() -> None:
    request = build_request(
        ["finetune", "--config=/on/cluster/big run.yaml"], python="p", working_dir=None, env=[], environment={}
    )
    assert request.name == "ray-llava-finetune-big-run"


def test_request_with_a_relative_run_folder_is_refused() -> None:
    with pytest.raises(SubmitError, match="run_dir runs/nlvr-pretrain is relative"):
        request_of("pretrain", "-c", "nlvr_pretrain", "data.shards=[a.tar]")


def test_request_with_a_wrong_config_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("nam: x\n")
    with pytest.raises(ConfigError, match="unknown key nam; did you mean 'name'"):
        request_of("pretrain", "--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("pair", ["A", "=b", ""])
def test_request_with_a_malformed_variable_is_refused(pair: str) -> None:
    with pytest.raises(SubmitError, match="expected NAME=VALUE"):
        request_of("index", env=(pair,))
