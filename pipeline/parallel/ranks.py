"""The workers of a run as one object: who am I, where do I compute, and the few collectives the loop needs.

Works with one process and no process group, under torchrun, and inside Ray Train, which sets the group up itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_GROUP_TIMEOUT = timedelta(minutes=10)
_PATIENCE = timedelta(days=7)
_BUCKET_NUMEL = 1 << 24  # elements per all-reduce: large enough to fill a link, small enough to stay cheap in memory


@dataclass(frozen=True)
class Workers:
    """This rank among the ranks of the run."""

    rank: int
    world_size: int
    device: torch.device
    patient_group: dist.ProcessGroup | None = None
    """Group of all ranks whose members wait for days."""
    num_local: int | None = None
    """Ranks on this machine; None for all."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the only one that writes checkpoints and metrics."""
        return self.rank == 0

    @property
    def ranks_here(self) -> int:
        """Ranks on this machine."""
        return self.world_size if self.num_local is None else self.num_local

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def max(self, values: Sequence[float]) -> list[float]:
        """Take the maximum of each value over all ranks."""
        largest = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's (small, picklable) value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait_patiently(self) -> None:
        """Wait for all ranks, for hours if need be: one may have to read a whole data set first."""
        if self.world_size > 1:
            dist.barrier(self.patient_group)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over all ranks in place, in fixed order and buckets, so that repeats are bitwise equal.

        The loss is already divided by the token count of the whole global batch, so the sum is the gradient of it.
        One reduction per optimizer step, after the last micro-batch; missing gradients count as zero.
        """
        if self.world_size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= _BUCKET_NUMEL:
                _sum_bucket(bucket)
                bucket = []
        if bucket:
            _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(part.view_as(gradient))


def backends(use_gpu: bool) -> str:
    """Return the transports of a process group; with GPUs also one for tensors that FSDP keeps in host memory."""
    return "cpu:gloo,cuda:nccl" if use_gpu else "gloo"


def join_torchrun(use_gpu: bool) -> Workers:
    """Join the process group that torchrun's environment describes; a plain process is a group of one.

    Raises:
        ValueError: a GPU is asked for and none is visible.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(use_gpu, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group(backends(use_gpu), timeout=_GROUP_TIMEOUT)
    patient_group = dist.new_group(backend="gloo", timeout=_PATIENCE) if world_size > 1 else None
    return Workers(rank, world_size, device, patient_group, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))


def pick_device(use_gpu: bool, local_rank: int) -> torch.device:
    """Return the device of a rank and make it the current one.

    Raises:
        ValueError: a GPU is asked for and none is visible.
    """
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "cluster.use_gpu is true but torch sees no CUDA device; set it to false or install a CUDA build"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
