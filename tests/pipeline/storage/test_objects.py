from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.storage import retries
from pipeline.storage.objects import ObjectFolder
from pipeline.storage.retries import StorageRefusedError
from tests.pipeline.shards.object_store import BUCKET, FaultRelay, serve_bucket


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


def folder(port: int, name: str) -> ObjectFolder:
    return ObjectFolder(f"s3://{BUCKET}/{name}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")


@pytest.mark.parametrize("name", ["a b", "a+b", "50%", "a%20b", "[x]", "{y}", "lauf-ä", "x..y", "a&b=c", "~!'()*"])
def test_odd_name_is_written_listed_read_and_removed(port: int, name: str) -> None:
    objects = folder(port, f"objects/{name}")
    assert objects.list() == []
    etag = objects.write(f"{name}/x", b"17")
    assert objects.read(f"{name}/x")[:2] == (b"17", etag)
    assert objects.list() == [(f"{name}/x", 2, etag)]
    assert objects.list(f"{name}/", after=f"{name}/x") == []
    objects.delete([f"{name}/x", "never there"])
    assert objects.find(f"{name}/x") is None


def test_only_one_of_many_creates_an_object(port: int) -> None:
    objects, won, together = folder(port, "race"), list[int](), threading.Barrier(7)

    def create(number: int) -> None:
        together.wait()
        if objects.create("x", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects.read("x").content == str(won[0]).encode()


def test_creation_whose_answer_was_lost_counts_and_that_of_another_does_not(port: int, relay: FaultRelay) -> None:
    objects = folder(relay.port, "lost")
    relay.loses_answers, relay.methods = 1, ("PUT",)
    assert objects.create("x", b"mine")
    assert relay.num_answered == 1
    relay.loses_answers = 1
    assert not objects.create("x", b"yours")
    assert objects.read("x").content == b"mine"


def test_failures_are_tried_again_and_refusals_twice_only(port: int, relay: FaultRelay) -> None:
    objects = folder(relay.port, "faults")
    relay.num_faults = retries.ATTEMPTS - 1
    objects.write("x", b"5")
    assert relay.num_answered == retries.ATTEMPTS - 1
    relay.fault, relay.num_faults, relay.num_answered = "RequestTimeTooSkewed", 50, 0
    with pytest.raises(StorageRefusedError, match=r"faults/x: refused .* RequestTimeTooSkewed: The difference between"):
        objects.read("x")
    assert relay.num_answered == 2


def test_missing_bucket_is_refused_and_names_itself(port: int) -> None:
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    with pytest.raises(StorageRefusedError, match=r"s3://nowhere/a/: refused .*NoSuchBucket"):
        ObjectFolder(f"s3://nowhere/a?{options}").list()


@pytest.mark.parametrize(
    "told",
    ["SSL validation failed for https://h [SSL: CERTIFICATE_VERIFY_FAILED]", "curlCode: 60, SSL peer certificate"],
)
def test_certificate_that_is_not_trusted_ends_after_two_tries(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    tries = list[int]()

    def ask() -> None:
        tries.append(1)
        raise OSError(told)

    with pytest.raises(StorageRefusedError, match=r"object x: refused by the storage service: .*SSL"):
        retries.with_retries(ask, "object x")
    assert len(tries) == 2
