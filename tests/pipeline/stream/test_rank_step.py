"""Rank-steps built from real shards: content, transport, verification, rejected samples."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console

from model.fusion.resolution import ImageView
from pipeline.config import load_config
from pipeline.errors import DataError, Reason
from pipeline.index.index import ShardInfo
from pipeline.index.read import read_sample
from pipeline.launch.prepare import prepare_source
from pipeline.plan.plan import RankPlan
from pipeline.stream.cached_features import FeatureCache, FeatureCacheError
from pipeline.stream.feature_files import CachedImage
from pipeline.stream.marks import WorkMarks
from pipeline.stream.rank_step import (
    BatchSource,
    PlanMismatchError,
    RankStep,
    Rejected,
    build_rank_step,
    iterate_locally,
    verify,
)
from tests.integration.conftest import WriteConfig


@pytest.fixture
def source(write_config: WriteConfig) -> BatchSource:
    return prepare_source(load_config(write_config("run", "finetune")), console=Console(quiet=True))


def test_build_rank_step_lays_samples_out_in_plan_order(source: BatchSource) -> None:
    plan = source.plan.split(1, 3)[2]
    rank_step = build_rank_step(source, plan)
    ids = [sample_id for batch in plan.micro_batches for sample_id in batch]
    encoded = [source.encoder.encode(read_sample(source.index, sample_id)) for sample_id in ids]
    assert rank_step.sample_ids.tolist() == ids
    assert rank_step.batch_sizes.tolist() == [len(batch) for batch in plan.micro_batches]
    assert rank_step.input_ids.tolist() == np.concatenate([sample.input_ids for sample in encoded]).tolist()
    assert rank_step.labels.tolist() == np.concatenate([sample.labels for sample in encoded]).tolist()
    images = [image for sample in encoded for image in sample.images]
    tiles = torch.from_numpy(np.concatenate([image.pixels for image in images]))
    assert torch.equal(rank_step.pixels[rank_step.image_ids], tiles)
    assert rank_step.views[rank_step.image_ids].tolist() == [[*image.view[:2], 0] for image in images]
    assert rank_step.num_images.tolist() == [len(sample.images) for sample in encoded]
    assert rank_step.rejected == ()


def test_verify_row_of_another_step_or_rank_stops_with_both_sides(source: BatchSource) -> None:
    expected = source.plan.split(1, 2)[0]
    rank_step = build_rank_step(source, expected)
    assert verify(rank_step, expected) is rank_step
    for other in (source.plan.split(1, 2)[1], source.plan.split(0, 2)[0]):
        with pytest.raises(PlanMismatchError, match=r"expected \(step, rank, checksum\) .* but received"):
            verify(rank_step, other)


def test_build_rank_step_sample_changed_since_the_index_keeps_its_place_as_rejected(
    source: BatchSource, tmp_path: Path
) -> None:
    plan = source.plan.split(0, 1)[0]
    victim = plan.micro_batches[0][1]
    member = source.index.samples["members"][victim].as_py()[0]
    shard = Path(source.index.shard_of(victim).url)
    intact = shard.read_bytes()
    try:
        with shard.open("r+b") as file:
            file.seek(member["offset"] + member["size"] // 2)
            file.write(b"\x00\xff\x00\xff")
        rank_step = build_rank_step(source, plan)
    finally:
        shard.write_bytes(intact)
    assert [(entry.sample_id, entry.reason) for entry in rank_step.rejected] == [(victim, "content_hash_mismatch")]
    assert shard.name in rank_step.rejected[0].detail
    position = rank_step.sample_ids.tolist().index(victim)
    assert rank_step.text_lengths.tolist()[position] == 0
    assert len(rank_step.sample_ids) == sum(len(batch) for batch in plan.micro_batches)
    assert int(rank_step.text_lengths.sum()) == len(rank_step.input_ids)


def test_verify_other_samples_of_the_same_step_and_rank_stop(source: BatchSource) -> None:
    expected = source.plan.split(1, 2)[0]
    rank_step = build_rank_step(source, expected)
    with pytest.raises(PlanMismatchError, match=r"rank 0 expected \(step, rank, checksum\) \(1, 0, "):
        verify(rank_step, expected._replace(checksum=expected.checksum ^ 1))


def test_build_rank_step_without_samples_has_empty_tensors_of_every_type(source: BatchSource) -> None:
    size = source.encoder.image_spec.size
    found = build_rank_step(source, RankPlan(2, 1, ((), ()), 7))
    assert (found.step, found.rank, found.checksum, found.num_tiles, found.features) == (2, 1, 7, 0, None)
    assert found.batch_sizes.tolist() == [0, 0]
    assert (found.pixels.shape, found.pixels.dtype) == ((0, size, size, 3), torch.uint8)
    assert found.views.shape == (0, 3)
    assert {len(value) for value in (found.sample_ids, found.input_ids, found.labels, found.image_ids)} == {0}
    types = {name: value.dtype for name, value in found._asdict().items() if isinstance(value, torch.Tensor)}
    filled = build_rank_step(source, source.plan.split(0, 1)[0])._asdict()
    assert types == {name: filled[name].dtype for name in types}


def test_build_rank_step_refused_sample_keeps_its_place_and_the_others_are_read(source: BatchSource) -> None:
    plan = source.plan.split(0, 1)[0]
    ids = [sample_id for batch in plan.micro_batches for sample_id in batch]
    found = build_rank_step(dataclasses.replace(source, refused={ids[1]: "ended the process"}), plan)
    assert found.rejected == (Rejected(ids[1], "decoder_crash", "ended the process"),)
    assert [length == 0 for length in found.text_lengths.tolist()] == [idx == 1 for idx in range(len(ids))]
    plain = build_rank_step(source, plan).num_images.tolist()
    assert found.num_images.tolist() == [plain[0], 0, *plain[2:]]
    assert found.sample_ids.tolist() == ids


def with_images(source: BatchSource) -> list[int]:
    """Return the samples of step 0 that show one image."""
    found = build_rank_step(source, source.plan.split(0, 1)[0])
    return [
        idx for idx, number in zip(found.sample_ids.tolist(), found.num_images.tolist(), strict=True) if number == 1
    ]


def test_build_rank_step_sends_an_image_that_occurs_twice_once(source: BatchSource) -> None:
    first, second = with_images(source)[:2]
    found = build_rank_step(source, RankPlan(0, 0, ((first, second), (first,)), 0))
    assert found.image_ids.tolist() == [0, 1, 0]
    assert (len(found.views), found.num_tiles) == (2, 2)


def test_build_rank_step_marks_what_it_works_on(source: BatchSource, tmp_path: Path) -> None:
    seen: list[tuple[int, int, list[int]]] = []

    class Marks(WorkMarks):
        @contextmanager
        def working_on(self, step: int, rank: int, sample_ids: Sequence[int]) -> Iterator[None]:
            seen.append((step, rank, list(sample_ids)))
            yield

    plan = source.plan.split(1, 2)[1]
    found = build_rank_step(dataclasses.replace(source, marks=Marks(tmp_path)), plan)
    assert seen == [(1, 1, found.sample_ids.tolist())]


class Cache(FeatureCache):
    """Knows the features of every image but those of some samples."""

    unknown: tuple[str, ...] = ()
    asked: ClassVar[list[tuple[str, str]]] = []

    def read(self, shard: ShardInfo, sample_key: str, image_key: bytes) -> CachedImage:
        self.asked.append((shard.url, sample_key))
        if sample_key in self.unknown:
            raise FeatureCacheError(f"{sample_key}: no features")
        return CachedImage(ImageView(3, 5), torch.full((1, 4, 6), float(image_key[0])))


def test_build_rank_step_with_a_cache_sends_features_in_the_place_of_pixels(source: BatchSource) -> None:
    plan = RankPlan(0, 0, (tuple(with_images(source)),), 0)
    plain = build_rank_step(source, plan)
    cached = dataclasses.replace(source, features=Cache("folder", "revision"))
    Cache.asked.clear()
    found = build_rank_step(cached, plan)
    assert found.features is not None
    assert (len(found.pixels), found.num_tiles, len(found.features)) == (0, plain.num_tiles, plain.num_tiles)
    assert found.pixels.shape[1:] == plain.pixels.shape[1:]
    assert found.views.tolist() == [[3, 5, 0]] * plain.num_tiles
    assert found.image_ids.tolist() == plain.image_ids.tolist()
    shards = [source.index.shards[source.index.samples["shard"][idx].as_py()].url for idx in plain.sample_ids.tolist()]
    keys = [source.index.samples["key"][idx].as_py() for idx in plain.sample_ids.tolist()]
    assert Cache.asked == list(zip(shards, keys, strict=True))


def test_build_rank_step_image_that_a_cache_lacks_stops_unless_the_image_is_defective(
    source: BatchSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = with_images(source)[1]
    cache = Cache("folder", "revision")
    monkeypatch.setattr(Cache, "unknown", (source.index.samples["key"][victim].as_py(),))
    cached, plan = dataclasses.replace(source, features=cache), RankPlan(0, 0, ((victim,),), 0)
    with pytest.raises(FeatureCacheError, match="no features"):
        build_rank_step(cached, plan)

    def defective(*_: object) -> None:
        raise DataError(Reason.IMAGE_TRUNCATED, "half of it is missing")

    monkeypatch.setattr(type(source.encoder), "encode_image", defective)
    (rejected,) = build_rank_step(cached, plan).rejected
    assert (rejected.sample_id, rejected.reason) == (victim, "image_truncated")


def test_iterate_locally_from_a_later_step_yields_the_same_rank_steps(source: BatchSource) -> None:
    def steps(start: int, workers: int) -> list[tuple[int, list[int]]]:
        stream = iterate_locally(
            source, start_step=start, rank=1, num_ranks=2, num_workers=workers, prefetch_steps=1, pin=False
        )
        return [(rank_step.step, rank_step.sample_ids.tolist()) for rank_step in stream]

    whole = steps(0, 0)
    assert [step for step, _ in whole] == list(range(source.plan.total_steps))
    assert steps(4, 0) == whole[4:]
    assert steps(0, 1) == whole


def test_iterate_locally_draws_nothing_from_the_generator_that_dropout_uses(source: BatchSource) -> None:
    before = torch.get_rng_state()
    next(iterate_locally(source, start_step=1, rank=0, num_ranks=1, num_workers=0, prefetch_steps=1, pin=False))
    assert torch.equal(torch.get_rng_state(), before)


def open_with_one_process(source: BatchSource) -> tuple[Iterator[RankStep], int]:
    """Return a stream whose first step was read, and the id of the process that reads it."""
    stream = iterate_locally(source, start_step=0, rank=0, num_ranks=1, num_workers=1, prefetch_steps=1, pin=False)
    next(stream)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    return stream, worker.pid


@pytest.mark.chaos
def test_data_process_that_gets_sigterm_reads_on_and_ends_when_the_stream_is_closed(source: BatchSource) -> None:
    stream, worker = open_with_one_process(source)
    os.kill(worker, signal.SIGTERM)
    assert [rank_step.step for rank_step in stream] == list(range(1, source.plan.total_steps))
    assert multiprocessing.active_children() == []


@pytest.mark.chaos
def test_data_process_that_answers_no_more_ends_when_the_stream_is_closed(source: BatchSource) -> None:
    stream, worker = open_with_one_process(source)
    os.kill(worker, signal.SIGSTOP)
    del stream
    assert multiprocessing.active_children() == []
    assert not is_running(worker)


READER = """
import os, signal, sys, threading
from pathlib import Path
from rich.console import Console
from pipeline.config import load_config
from pipeline.launch.prepare import prepare_source
from tests.pipeline.stream.test_rank_step import open_with_one_process
stream, worker = open_with_one_process(prepare_source(load_config(sys.argv[1]), console=Console(quiet=True)))
print(worker, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
os.kill(worker, signal.SIGSTOP)
threading.Thread(target=lambda: list(stream), daemon=True).start()  # it never ends, as when storage stalls
"""


@pytest.mark.chaos
@pytest.mark.parametrize(("how", "exit_code"), [("killed", -signal.SIGKILL), ("waiting", 0)])
def test_data_process_ends_with_its_parent(write_config: WriteConfig, how: str, exit_code: int) -> None:
    command = [sys.executable, "-c", READER, str(write_config("run", "finetune")), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert process.wait() == exit_code
    while is_running(worker):
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
