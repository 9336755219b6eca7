"""ray_cluster.yaml against Ray's own schema, and against the mistakes that have opened clusters to everybody."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER_FILE = Path(__file__).parents[2] / "ray_cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    config = yaml.safe_load(CLUSTER_FILE.read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def start_commands(cluster: dict[str, Any]) -> list[str]:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def test_cluster_file_is_valid_before_and_after_ray_fills_in_defaults(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    validate_config(prepare_config(cluster))


def test_cluster_file_has_a_cpu_group_and_a_gpu_group_and_a_head_without_tasks(cluster: dict[str, Any]) -> None:
    resources = {name: kind["resources"] for name, kind in cluster["available_node_types"].items()}
    assert resources.pop(cluster["head_node_type"]) == {"CPU": 0}
    assert {name: "GPU" in amounts for name, amounts in resources.items()} == {
        "cpu_preprocessing": False,
        "gpu_training": True,
    }


def test_every_node_starts_with_token_authentication(cluster: dict[str, Any]) -> None:
    commands = start_commands(cluster)
    assert len(commands) == 2
    for command in commands:
        before_start = command.partition("ray start")[0]
        assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in before_start
        assert "umask 077" in before_start


def test_dashboard_listens_on_the_head_itself_only(cluster: dict[str, Any]) -> None:
    (head,) = [command for command in start_commands(cluster) if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head.split()
    assert "0.0.0.0" not in CLUSTER_FILE.read_text(encoding="utf-8")
