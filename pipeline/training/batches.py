"""From a rank-step to micro-batches on the device, prepared in a thread while the step before it computes.

Shapes: S fused tokens of a micro-batch, N images of the rank-step, H = W pixels.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model.packed import PackedBatch, pack_samples
from pipeline.loader import RankStep, Rejected
from pipeline.training.metrics import StepCounts


class MicroBatch(NamedTuple):
    """One forward pass: packed tokens and which of the rank-step's images belong to it."""

    packed: PackedBatch
    first_image: int
    end_image: int


class PreparedStep(NamedTuple):
    """A rank-step ready to train on."""

    step: int
    micro_batches: tuple[MicroBatch, ...]
    pixels: Tensor
    """uint8 `[N, 3, H, W]` on the device."""
    counts: StepCounts
    """What this rank contributes."""
    rejected: tuple[Rejected, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected samples by reason."""
        return dict(Counter(entry.reason for entry in self.rejected))


def prepare(rank_step: RankStep, features_per_image: int, device: torch.device) -> PreparedStep:
    """Pack the samples of each micro-batch and copy everything to the device."""
    texts = rank_step.text_lengths.tolist()
    images = rank_step.num_images.tolist()
    ids, labels = (part.long().split(texts) for part in (rank_step.input_ids, rank_step.labels))
    micro_batches = []
    counts = StepCounts(images=float(sum(images)), rejected=float(len(rank_step.rejected)))
    sample_idx = first_image = 0
    for batch_size in rank_step.batch_sizes.tolist():
        members = [idx for idx in range(sample_idx, sample_idx + batch_size) if texts[idx]]
        end_image = first_image + sum(images[idx] for idx in members)
        packed = pack_samples(
            [(ids[idx], labels[idx]) for idx in members], [features_per_image] * (end_image - first_image)
        )
        if members:
            counts.tokens += float(len(packed.input_ids))
        counts.samples += float(len(members))
        counts.targets += float(len(packed.targets))
        micro_batches.append(MicroBatch(packed.to(device, non_blocking=True), first_image, end_image))
        sample_idx, first_image = sample_idx + batch_size, end_image
    pixels = rank_step.pixels.to(device, non_blocking=True)
    return PreparedStep(rank_step.step, tuple(micro_batches), pixels, counts, rank_step.rejected)


def prepare_ahead(
    rank_steps: Iterator[RankStep], features_per_image: int, device: torch.device
) -> Iterator[PreparedStep]:
    """Yield prepared steps, always working on the next one in a thread while the caller computes.

    On a GPU the copies run on a stream of their own, so they overlap with compute. An error in the stream is raised
    here, in order.
    """
    results: queue.Queue[PreparedStep | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()
    side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(item: PreparedStep | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return results.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for rank_step in rank_steps:
                with torch.cuda.stream(side_stream):
                    prepared = prepare(rank_step, features_per_image, device)
                if side_stream is not None:
                    side_stream.synchronize()
                put(prepared)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=work, name="prepare-ahead", daemon=True)
    thread.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
