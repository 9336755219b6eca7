"""Shards and checkpoints on a real S3 service: names, settings and faults, the same for both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.checkpoint.storage import open_storage
from pipeline.shards.listing import expand_shards
from pipeline.shards.storage import find_shards, read_range, stat_shard
from pipeline.storage import retries
from pipeline.storage.retries import StorageRefusedError
from tests.pipeline.shards.object_store import BUCKET, FaultRelay, serve_bucket


class Store(NamedTuple):
    port: int
    client: Any


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serve_bucket() as (port, client):
        yield Store(port, client)


@pytest.fixture
def relay(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultRelay]:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    relay = FaultRelay(store.port)
    yield relay
    relay.close()


def query(port: int) -> str:
    return f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def save(url: str, content: bytes = b"{}") -> list[str]:
    """Write a generation as a run does and list it again."""
    storage = open_storage(url)
    place = storage.begin(1, "t")
    storage.write(place, "a b.bin", lambda stream: stream.write(content))
    storage.write(place, "MANIFEST.json", lambda stream: stream.write(b"{}"))
    with storage.open(place, "a b.bin") as stream:
        assert stream.read() == content
    return [generation.name for generation in storage.generations()]


def test_missing_bucket_is_told_from_a_missing_shard(store: Store) -> None:
    for ask in (stat_shard, lambda url: read_range(url, 0, 1)):
        with pytest.raises(StorageRefusedError, match="NoSuchBucket: there is no bucket 'nowhere'"):
            ask(f"s3://nowhere/a/b.tar{query(store.port)}")
        with pytest.raises(FileNotFoundError):
            ask(f"s3://{BUCKET}/nowhere/b.tar{query(store.port)}")


NAMES = ["a b", "a+b", "50%", "a%20b", "[x]", "{y}", "lauf-ä", "x..y", "a&b=c", "~!'()*"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_name_works_for_shards_and_checkpoints_alike(store: Store, name: str) -> None:
    store.client.put_object(Bucket=BUCKET, Key=f"odd/{name}/{name}.tar", Body=b"0123456789")
    folder = f"s3://{BUCKET}/odd/{name}{query(store.port)}"
    if "{" not in name and "[" not in name and "*" not in name:  # which are patterns there
        (shard,) = expand_shards([folder])
        assert shard == f"s3://{BUCKET}/odd/{name}/{name}.tar{query(store.port)}"
    url = f"s3://{BUCKET}/odd/{name}/{name}.tar{query(store.port)}"
    assert stat_shard(url).size_bytes == 10
    assert read_range(url, 3, 4) == b"3456"
    assert find_shards([url.replace(".tar", ".no")]) == [None]
    assert save(f"s3://{BUCKET}/runs/{name}{query(store.port)}") == ["step-00000001-t"]


def test_listing_takes_brackets_and_braces_as_they_are(store: Store) -> None:
    for name in ("[x]-0.tar", "{y}-0.tar", "z+0 %.tar"):
        store.client.put_object(Bucket=BUCKET, Key=f"listed/{name}", Body=b"1")
    listed = expand_shards([f"s3://{BUCKET}/listed{query(store.port)}"])
    assert [re.split(r"/|\?", url)[4] for url in listed] == ["[x]-0.tar", "z+0 %.tar", "{y}-0.tar"]
    assert [stat_shard(url).size_bytes for url in listed] == [1, 1, 1]


@pytest.mark.parametrize("name", ["a#b.tar", "a?b.tar", "a\tb.tar"])
def test_name_that_no_url_can_hold_is_refused_when_it_is_listed(store: Store, name: str) -> None:
    folder = f"bad{ord(name[1])}"
    store.client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=b"1")
    with pytest.raises(ValueError, match="rename"):
        expand_shards([f"s3://{BUCKET}/{folder}{query(store.port)}"])


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_endpoint_of_the_environment_holds_for_shards_and_checkpoints(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store.client.put_object(Bucket=BUCKET, Key="env/a.tar", Body=b"12345")
    monkeypatch.setenv(name, f"http://127.0.0.1:{store.port}")
    assert stat_shard(f"s3://{BUCKET}/env/a.tar").size_bytes == 5
    assert save(f"s3://{BUCKET}/env-{name}/ck") == ["step-00000001-t"]


def test_profile_of_the_aws_files_holds_for_shards_and_checkpoints(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    text = f"[profile lab]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:{store.port}\n"
    (tmp_path / "config").write_text(text + "aws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store.client.put_object(Bucket=BUCKET, Key="profile/a.tar", Body=b"12345")
    assert stat_shard(f"s3://{BUCKET}/profile/a.tar?profile=lab").size_bytes == 5
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert save(f"s3://{BUCKET}/profile/ck") == ["step-00000001-t"]


def test_busy_service_is_asked_again_for_shards_and_checkpoints(store: Store, relay: FaultRelay) -> None:
    store.client.put_object(Bucket=BUCKET, Key="busy/a.tar", Body=b"0123456789")
    asks: tuple[Callable[[], object], ...] = (
        lambda: expand_shards([f"s3://{BUCKET}/busy{query(relay.port)}"]),
        lambda: stat_shard(f"s3://{BUCKET}/busy/a.tar{query(relay.port)}"),
        lambda: read_range(f"s3://{BUCKET}/busy/a.tar{query(relay.port)}", 2, 3),
        lambda: save(f"s3://{BUCKET}/busy-runs{query(relay.port)}", b"x" * 100_003),
        lambda: open_storage(f"s3://{BUCKET}/busy-runs{query(relay.port)}").sweep(),
    )
    for ask in asks:
        relay.num_faults, relay.num_answered = 4, 0
        ask()
        assert (relay.num_faults, relay.num_answered) == (0, 4)


def test_upload_is_tried_again_from_its_start(store: Store, relay: FaultRelay) -> None:
    relay.methods, relay.num_faults = ("PUT", "POST"), 7
    assert save(f"s3://{BUCKET}/again{query(relay.port)}", bytes(range(256)) * 101) == ["step-00000001-t"]
    assert relay.num_faults == 0


def test_generation_whose_removal_is_answered_late_is_removed(store: Store, relay: FaultRelay) -> None:
    url = f"s3://{BUCKET}/removed{query(relay.port)}"
    (name,) = save(url)
    relay.methods, relay.num_faults = ("DELETE", "POST"), 3
    open_storage(url).remove(name)
    assert open_storage(url).generations() == []


@pytest.mark.parametrize(("fault", "said"), [("RequestTimeTooSkewed", "too large"), ("AccessDenied", "ACCESS_DENIED")])
def test_refusal_ends_after_two_tries_with_the_reason_of_the_service(
    store: Store, relay: FaultRelay, fault: str, said: str
) -> None:
    store.client.put_object(Bucket=BUCKET, Key="refused/a.tar", Body=b"1")
    save(f"s3://{BUCKET}/refused{query(store.port)}")
    relay.fault = fault
    for ask in (
        lambda: stat_shard(f"s3://{BUCKET}/refused/a.tar{query(relay.port)}"),
        lambda: expand_shards([f"s3://{BUCKET}/refused{query(relay.port)}"]),
        lambda: open_storage(f"s3://{BUCKET}/refused{query(relay.port)}").generations(),
        lambda: save(f"s3://{BUCKET}/refused{query(relay.port)}"),
    ):
        relay.num_faults, relay.num_answered = 1000, 0
        with pytest.raises(StorageRefusedError, match="refused by the storage service") as refused:
            ask()
        assert said in str(refused.value)
        assert relay.num_answered <= 6  # two tries, and what one of them and its explanation take


def test_long_waits_are_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)

    def fail() -> None:
        raise OSError("503 slow down")

    with pytest.raises(OSError, match="storage failed 10 times"):
        retries.with_retries(fail, "shard s3://b/a.tar")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 5  # 6 to 8 s, 12 to 16 s, and three times 15 to 20 s
    assert told[0].startswith("shard s3://b/a.tar: storage failed (503 slow down); tried again in ")
