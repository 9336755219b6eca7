"""Run folders in object storage: a service on this machine, and one with faults before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from pipeline.storage import retries
from pipeline.storage.objects import ObjectFolder
from tests.pipeline.shards.object_store import BUCKET, FaultRelay, serve_bucket

_numbers = itertools.count()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve_bucket() as (port, _):
        yield port


@pytest.fixture
def relay(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultRelay]:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    relay = FaultRelay(port)
    yield relay
    relay.close()


def address(port: int) -> str:
    """Return the URL of a run folder that no other test has."""
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    return f"s3://{BUCKET}/runs/{next(_numbers)}/a b?{options}"


@pytest.fixture
def url(port: int) -> str:
    return address(port)


@pytest.fixture
def objects(url: str) -> ObjectFolder:
    return ObjectFolder(url)
