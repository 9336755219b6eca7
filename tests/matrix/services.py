"""What cells talk to over the network: a bucket for checkpoints and a tracking server, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pipeline.shards.object_store import BUCKET, serve_bucket
from tests.pipeline.tracking.servers import serve_mlflow


@contextmanager
def serve_parts(folder: Path) -> Iterator[dict[str, str]]:
    """Serve both, with the bucket's credentials in the environment; yields what `{...}` in options stands for.

    Workers of a Ray that was started before do not have the credentials.
    """
    backend = f"sqlite:///{folder / 'tracking.db'}"
    with (
        serve_bucket() as (port, _),
        serve_mlflow(backend, "--artifacts-destination", str(folder / "artifacts")) as server,
    ):
        options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        yield {"bucket": f"s3://{BUCKET}/{{}}?{options}", "server": server.uri}
