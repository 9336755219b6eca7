"""A real MLflow database, migrated once, and configs that point to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.config import ExperimentConfig, parse_config
from tests.pipeline.tracking.servers import Server, serve_mlflow


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(uri).search_experiments(max_results=1)  # the first access creates the tables
    return uri


@pytest.fixture
def make_config(tmp_path: Path, tracking_uri: str) -> Callable[..., ExperimentConfig]:
    """Build a config whose run folder and experiment belong to the test alone."""

    def make(uri: str | None = tracking_uri, enabled: bool = True, seed: int = 3) -> ExperimentConfig:
        return parse_config(
            {
                "name": "tracked",
                "run_dir": str(tmp_path / "runs" / "tracked"),
                "stage": "pretrain",
                "seed": seed,
                "data": {"shards": ["a.tar", "b.tar"], "template": "plain"},
                "model": {"language_model": "lm", "vision_tower": "tower"},
                "training": {"global_batch_size": 7, "learning_rate": 1e-3},
                "tracking": {"uri": uri, "experiment": str(tmp_path), "enabled": enabled},
            },
            where="test",
        )

    return make


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server that keeps files too."""
    folder = tmp_path_factory.mktemp("server")
    backend = f"sqlite:///{folder / 'server.db'}"
    with serve_mlflow(backend, "--artifacts-destination", str(folder / "files")) as server:
        yield server
