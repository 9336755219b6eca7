"""Storage that fails at random places: the index and every sample are those of healthy storage, or an error says so."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import boto3
from moto.server import ThreadedMotoServer

from pipeline.index.read import Member, read_members
from pipeline.index.scan import Checks, ShardScan, index_shard
from pipeline.shards import storage
from pipeline.shards.listing import expand_shards
from pipeline.shards.storage import stat_shard
from pipeline.storage import retries
from tests.fuzz.fault_proxy import FAULTS, Fault, FaultProxy, run_proxy
from tests.pipeline.shards.archives import caption_files, instruction_files, tar_bytes

_BUCKET = "shards"
_STREAM_BYTES = 5003
"""Small and odd, so that a shard takes many requests and ranges end anywhere."""
_TIMEOUT_S, _STALL_S = 1.0, 10.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


class World(NamedTuple):
    """Two shards on S3, behind the proxy, and what healthy storage says they hold."""

    proxy: FaultProxy
    folder: str
    healthy: dict[str, ShardScan]


class StorageOutcome(NamedTuple):
    """What became of one run with failing storage."""

    verdict: str
    """`identical`, or `error` when storage failed loudly."""
    injected: tuple[Fault, ...]


@contextlib.contextmanager
def failing_storage() -> Iterator[World]:
    """Start S3 and the proxy; requests are retried without waiting."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    settings = storage.STREAM_BYTES, retries.FIRST_WAIT_S, retries.REQUEST_TIMEOUT_S
    storage.STREAM_BYTES, retries.FIRST_WAIT_S, retries.REQUEST_TIMEOUT_S = _STREAM_BYTES, 0.001, _TIMEOUT_S
    try:
        _, port = server.get_host_and_port()
        _fill(f"http://127.0.0.1:{port}")
        with run_proxy(port, _STALL_S) as proxy:
            query = f"endpoint_override=127.0.0.1:{proxy.port}&scheme=http&region=us-east-1"
            folder = f"s3://{_BUCKET}/data?{query}"
            healthy = {url: index_shard(url, stat_shard(url), Checks()) for url in expand_shards([folder])}
            yield World(proxy, folder, healthy)
    finally:
        storage.STREAM_BYTES, retries.FIRST_WAIT_S, retries.REQUEST_TIMEOUT_S = settings
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.stop()


def run_case(world: World, rng: random.Random, faults: tuple[Fault, ...] = FAULTS) -> StorageOutcome:
    """Index and read everything while some requests fail.

    Raises:
        AssertionError: something differs from healthy storage without an error.
    """
    # one run in eight is hopeless: every request fails, which must end in an error
    hopeless = rng.random() < 1 / 8
    fault = rng.choice([one for one in faults if one not in ("stall", "slow")])
    single = {rng.randrange(30): rng.choice(faults) for _ in range(rng.choice((1, 2, 4)))}
    world.proxy.arm(dict.fromkeys(range(rng.randrange(20), 10_000), fault) if hopeless else single)
    try:
        urls = expand_shards([world.folder])
        assert urls == list(world.healthy)
        for url in urls:
            scan, healthy = index_shard(url, stat_shard(url), Checks()), world.healthy[url]
            assert (scan.sha256, scan.defect) == (healthy.sha256, None), "other bytes, and no error"
            assert scan.samples.equals(healthy.samples)
            _read_some(url, scan, rng)
    except OSError:
        verdict = "error"
    else:
        verdict = "identical"
    return StorageOutcome(verdict, tuple(world.proxy.injected))


def run_cases(num_cases: int, seed: int, faults: tuple[Fault, ...] = FAULTS) -> Counter[str]:
    """Run cases until this many faults were injected; count faults and verdicts."""
    counts: Counter[str] = Counter()
    with failing_storage() as world:
        number = 0
        while counts["faults"] < num_cases:
            outcome = run_case(world, random.Random(f"{seed}:storage:{number}"), faults)
            number += 1
            counts["runs"] += 1
            counts["faults"] += len(outcome.injected)
            counts[outcome.verdict] += 1
            counts.update(f"fault {fault}" for fault in outcome.injected)
    return counts


def _read_some(url: str, scan: ShardScan, rng: random.Random) -> None:
    """Read a sample by ranges, verified by CRC-32."""
    row = rng.choice(scan.samples.to_pylist())
    members: list[Member] = row["members"]
    content = read_members(url, row["key"], members)
    assert [len(data) for data in content.values()] == [member["size"] for member in members]


def _fill(endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket=_BUCKET)
    files = [file for idx in range(5) for file in [*caption_files(f"c{idx}"), *instruction_files(f"i{idx}", 2)]]
    for number in range(2):
        client.put_object(Bucket=_BUCKET, Key=f"data/t-{number}.tar", Body=tar_bytes(files))
