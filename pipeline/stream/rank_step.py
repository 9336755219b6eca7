"""Rank-steps: everything one rank needs for one optimizer step, built from the plan.

Building is a pure function of (source, step, rank, number of ranks), so any process on any machine can do it and a
retry gives the same bytes. Ray Data executes it on a cluster (`ray_stream`), a torch DataLoader on one machine.

An image that occurs again in a rank-step, in the same sample or another, is decoded, sent and encoded once.

Shapes: n samples, T text tokens over all samples, N images, I distinct images, U tiles of these, H = W the tower's
image size in pixels.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import popen_spawn_posix
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.fusion.resolution import ROLES, Role
from pipeline.errors import DataError, Reason, TransientError
from pipeline.index.index import ShardIndex
from pipeline.index.read import read_sample
from pipeline.parallel.stop_signals import STOP_SIGNALS
from pipeline.plan.plan import Plan, RankPlan
from pipeline.samples.encode import EncodedImage, EncodedSample, EncodeImage, SampleEncoder
from pipeline.stream.cached_features import FeatureCache, FeatureCacheError
from pipeline.stream.feature_files import image_key
from pipeline.stream.marks import WorkMarks


class Rejected(NamedTuple):
    """A planned sample that could not be used; it keeps its place with weight zero."""

    sample_id: int
    reason: str
    detail: str


class RankStep(NamedTuple):
    """The samples of one rank in one optimizer step, in the order of its micro-batches."""

    step: int
    rank: int
    checksum: int
    """CRC-32 of the plan entry this was built from."""
    sample_ids: Tensor
    """int64 `[n]`."""
    batch_sizes: Tensor
    """Samples in each micro-batch, int32 `[micro-batches]`; zeros allowed."""
    text_lengths: Tensor
    """Tokens per sample with one placeholder per image, int32 `[n]`; 0 for a rejected sample."""
    num_images: Tensor
    """Images per sample, int32 `[n]`."""
    input_ids: Tensor
    """int32 `[T]`, samples end to end."""
    labels: Tensor
    """int32 `[T]`."""
    image_ids: Tensor
    """Which distinct image each image of all samples is, in order, int32 `[N]`."""
    views: Tensor
    """Height, width (pixels, before cutting) and index into ROLES of each distinct image, int32 `[I, 3]`."""
    pixels: Tensor
    """uint8 `[U, H, W, 3]`, tiles of all distinct images in order; none where `features` take their place."""
    rejected: tuple[Rejected, ...]
    features: Tensor | None = None
    """Tower features of the tiles `[U, P, V]`, read from a cache; None without one, or without an image."""

    @property
    def num_tiles(self) -> int:
        """Tiles U, as pixels or as features."""
        return len(self.pixels) if self.features is None else len(self.features)


@dataclass(frozen=True, eq=False)
class BatchSource:
    """What is needed to build any rank-step; picklable."""

    plan: Plan
    index: ShardIndex
    encoder: SampleEncoder
    refused: Mapping[int, str] = field(default_factory=dict)
    """Samples that are not even decoded, since that ends the process, and what is known of them."""
    marks: WorkMarks | None = None
    """Where to mark what is being built; None where a crash is of no interest."""
    features: FeatureCache | None = None
    """Where tower features are read instead of pixels."""


def build_rank_step(source: BatchSource, plan: RankPlan) -> RankStep:
    """Read, decode, tokenize and collate the samples of a plan entry.

    A sample with defective content becomes a `Rejected` entry; errors of storage are raised, since the same bytes may
    be readable later.
    """
    ids = [sample_id for batch in plan.micro_batches for sample_id in batch]
    if source.marks is None:
        return _build(source, plan, ids)
    with source.marks.working_on(plan.step, plan.rank, ids):
        return _build(source, plan, ids)


def _build(source: BatchSource, plan: RankPlan, ids: list[int]) -> RankStep:
    # 1. Encode each sample; what cannot be used keeps its place.
    images_of = _encode_once(source)
    encoded: list[EncodedSample | None] = []
    rejected: list[Rejected] = []
    for sample_id in ids:
        if sample_id in source.refused:
            encoded.append(None)
            rejected.append(Rejected(sample_id, Reason.DECODER_CRASH.value, source.refused[sample_id]))
            continue
        try:
            encoded.append(source.encoder.encode(read_sample(source.index, sample_id), images_of(sample_id)))
        except DataError as error:
            encoded.append(None)
            rejected.append(Rejected(sample_id, str(error.reason), str(error)))
    # 2. Number the distinct images.
    usable = [sample for sample in encoded if sample is not None]
    shown = [image for sample in usable for image in sample.images]
    distinct = list({id(image): image for image in shown}.values())
    number = {id(image): idx for idx, image in enumerate(distinct)}
    size = source.encoder.image_spec.size
    no_text, no_pixels = np.zeros(0, np.int64), np.zeros((0, size, size, 3), np.uint8)
    features = [image.features for image in distinct if image.features is not None]
    # 3. Lay everything end to end.
    return RankStep(
        step=plan.step,
        rank=plan.rank,
        checksum=plan.checksum,
        sample_ids=torch.tensor(ids, dtype=torch.int64),
        batch_sizes=torch.tensor([len(batch) for batch in plan.micro_batches], dtype=torch.int32),
        text_lengths=torch.tensor([0 if s is None else len(s.input_ids) for s in encoded], dtype=torch.int32),
        num_images=torch.tensor([0 if s is None else len(s.images) for s in encoded], dtype=torch.int32),
        input_ids=torch.from_numpy(np.concatenate([no_text, *(s.input_ids for s in usable)]).astype(np.int32)),
        labels=torch.from_numpy(np.concatenate([no_text, *(s.labels for s in usable)]).astype(np.int32)),
        image_ids=torch.tensor([number[id(image)] for image in shown], dtype=torch.int32),
        views=torch.tensor(
            [(image.view.height, image.view.width, ROLES.index(image.view.role)) for image in distinct],
            dtype=torch.int32,
        ).view(-1, 3),
        pixels=torch.from_numpy(np.concatenate([no_pixels, *(image.pixels for image in distinct)])),
        rejected=tuple(rejected),
        features=torch.cat(features) if features else None,
    )


def _encode_once(source: BatchSource) -> Callable[[int], EncodeImage]:
    """Return what encodes the images of a sample, with a memory: equal files in equal roles give the same object."""
    known: dict[tuple[bytes, Role], EncodedImage] = {}

    def images_of(sample_id: int) -> EncodeImage:
        def encode_image(data: bytes, role: Role) -> EncodedImage:
            if (data, role) not in known:
                known[data, role] = _encode_image(source, sample_id, data, role)
            return known[data, role]

        return encode_image

    return images_of


def _encode_image(source: BatchSource, sample_id: int, data: bytes, role: Role) -> EncodedImage:
    """Decode an image, or read its features; an image without them is only tolerated if it cannot be decoded."""
    if source.features is None:
        return source.encoder.encode_image(data, role)
    shard = source.index.shard_of(sample_id)
    try:
        key = source.index.samples["key"][sample_id].as_py()
        view, features = source.features.read(shard, key, image_key(data, role))
    except FeatureCacheError:
        source.encoder.encode_image(data, role)  # a defective image is rejected with its own reason
        raise
    size = source.encoder.image_spec.size
    return EncodedImage(view, np.zeros((0, size, size, 3), np.uint8), features)


class PlanMismatchError(TransientError):
    """A rank received other data than its own plan says: a defect of the transport, never of the data."""


def verify(rank_step: RankStep, expected: RankPlan) -> RankStep:
    """Return the rank-step if it is exactly what this rank's own plan computes for this step.

    Raises:
        PlanMismatchError: step, rank or checksum differ; names both sides.
    """
    found = (rank_step.step, rank_step.rank, rank_step.checksum)
    wanted = (expected.step, expected.rank, expected.checksum)
    if found != wanted:
        raise PlanMismatchError(
            f"rank {expected.rank} expected (step, rank, checksum) {wanted} but received {found}; nothing was trained "
            "on it. The data stream delivered rows in another order: start the run again to resume from its checkpoint"
        )
    return rank_step


class _RankSteps(Dataset[RankStep]):
    """Map-style view of one rank's steps for the DataLoader."""

    def __init__(self, source: BatchSource, rank: int, num_ranks: int) -> None:
        self._source, self._rank, self._num_ranks = source, rank, num_ranks

    def __getitem__(self, step: int) -> RankStep:
        return build_rank_step(self._source, self._source.plan.split(step, self._num_ranks)[self._rank])


class _UntilKilled(popen_spawn_posix.Popen):
    """A process that is not asked to end: torch and the end of the interpreter do so by SIGTERM."""

    def terminate(self) -> None:
        self.kill()


def _start_deaf(process_obj: BaseProcess) -> _UntilKilled:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # what is started now inherits this
    try:
        return _UntilKilled(process_obj)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _DataWorker(SpawnProcess):
    """A process of the DataLoader that ignores stop signals; it ends when the loader is closed or its parent ends.

    Torchrun, clusters, service managers and Ctrl-C reach all processes of a job. The rank then finishes its step, and
    for this it needs its data.
    """

    _Popen = staticmethod(_start_deaf)

    def run(self) -> None:
        super().run()
        atexit.register(os._exit, 0)  # the interpreter takes a second to take itself apart, which the parent waits for


class _DataWorkers(SpawnContext):
    """What the DataLoader starts its processes with."""

    Process = _DataWorker


def iterate_locally(
    source: BatchSource, *, start_step: int, rank: int, num_ranks: int, num_workers: int, prefetch_steps: int, pin: bool
) -> Iterator[RankStep]:
    """Yield this rank's steps from `start_step` to the end of the run without Ray, verified, in order.

    Args:
        source: plan, index and encoder.
        start_step: first optimizer step.
        rank: this rank.
        num_ranks: number of ranks W.
        num_workers: preprocessing processes; 0 builds in this process.
        prefetch_steps: steps each process prepares ahead.
        pin: put tensors in page-locked memory for fast copies to a GPU.
    """
    loader = DataLoader(
        _RankSteps(source, rank, num_ranks),
        batch_size=None,
        sampler=range(start_step, source.plan.total_steps),
        num_workers=num_workers,
        prefetch_factor=prefetch_steps if num_workers else None,
        pin_memory=pin,
        # opening the iterator draws a seed: from the global generator that would shift the dropout of a resumed run
        generator=torch.Generator(),
        # fork would copy the locks of the parent's threads (OpenMP, metrics) in their current state, and a fork
        # server ends by SIGTERM, and its children with it
        multiprocessing_context=_DataWorkers() if num_workers else None,
    )
    for step, rank_step in enumerate(loader, start=start_step):
        yield verify(RankStep(*rank_step), source.plan.split(step, num_ranks)[rank])
