"""MLflow as teams run it: PostgreSQL behind the server, files in S3 that only the server reaches; and PostgreSQL alone.

Needs Debian's `postgresql` and the driver `psycopg2-binary`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.config import ExperimentConfig
from tests.pipeline.tracking.conftest import make_config, tracking_uri
from tests.pipeline.tracking.servers import serve_mlflow
from tests.pipeline.tracking.test_doors import examine, run_through

__all__ = ["make_config", "tracking_uri"]

MakeConfig = Callable[..., ExperimentConfig]
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}


def find_program(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else shutil.which(name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database with a password."""
    initdb, server = find_program("initdb"), find_program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path("/tmp") / f"ray-llava-pg-{os.getpid()}"  # below pytest's folders, which other users cannot enter
    folder.mkdir()
    user = 65534 if os.geteuid() == 0 else None  # PostgreSQL does not run as root
    if user is not None:
        shutil.chown(folder, user)
    (folder / "password").write_text("s3cret")
    arguments = ["-D", f"{folder}/data", "-U", "ada", "--auth=scram-sha-256", f"--pwfile={folder}/password"]
    subprocess.run([initdb, *arguments], check=True, stdout=subprocess.DEVNULL, user=user)
    port = free_port()
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder)]
    process = subprocess.Popen([server, "-D", f"{folder}/data", *options], stderr=subprocess.DEVNULL, user=user)
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"postgresql+psycopg2://ada:s3cret@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # on SIGTERM it would wait for open connections
        process.wait()
        shutil.rmtree(folder)


def test_server_with_postgresql_and_files_in_s3_that_only_it_reaches(
    make_config: MakeConfig, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    _, port = store.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    try:
        client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="id", aws_secret_access_key="key",
                              region_name="us-east-1")  # fmt: skip
        client.create_bucket(Bucket="team")
        destination = "--artifacts-destination=s3://team/mlflow"
        for name in KEYS:  # the server's alone
            monkeypatch.delenv(name, raising=False)
        with serve_mlflow(postgresql, destination, MLFLOW_S3_ENDPOINT_URL=endpoint, **KEYS) as server:
            assert examine(make_config, server.uri).status == "ok"
            run_id = run_through(make_config, server.uri)
        keys = {entry["Key"] for entry in client.list_objects_v2(Bucket="team")["Contents"]}
        assert any(key.endswith(f"{run_id}/artifacts/result.bin") for key in keys)
    finally:
        store.stop()


def test_database_alone_is_tried_by_doctor_before_it_has_tables_and_after(
    make_config: MakeConfig, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = examine(make_config, postgresql)
    assert (empty.status, empty.detail.endswith("the first run sets it up")) == ("ok", True), empty.detail
    assert "s3cret" not in empty.detail
    wrong = examine(make_config, postgresql.replace("s3cret", "guessed"))
    assert (wrong.status, "password authentication failed" in wrong.detail) == ("warning", True), wrong.detail
    monkeypatch.chdir(tmp_path)  # files of a database without a server go to the current folder
    run_through(make_config, postgresql)
    assert examine(make_config, postgresql).status == "ok"
