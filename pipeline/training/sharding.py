"""Sharding a model over the workers with FSDP2, so that no worker holds all weights, gradients and optimizer state.

Each decoder layer is a unit, gathered for its own forward and backward only; the rest (embeddings, projector, head)
is one unit at the root. A vision tower that learns is sharded likewise, a frozen one stays whole on every worker. See
Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.

With groups (HSDP) each group of neighbouring ranks holds a copy of the model. Weights are then gathered within a group
only, and gradients are summed over the groups once a step.
"""

from __future__ import annotations

import warnings
from functools import partial
from itertools import pairwise

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from model.hub.weights import LlavaModel
from pipeline.assembly.precision import DTYPES
from pipeline.config import ConfigError, TrainingConfig
from pipeline.parallel.ranks import Workers


def shard_model(model: LlavaModel, workers: Workers, training: TrainingConfig) -> None:
    """Shard `model` in place over all workers, or over each group of them.

    Gradients are summed over workers, not averaged: the loss is already divided by the global token count.

    Args:
        model: on this worker's device, with `requires_grad` set.
        workers: the ranks to shard over; the process group must exist.
        training: type of gathered weights (`precision`) and of travelling gradients (`reduce_dtype`), size of the
            groups, and whether shards of weights, gradients and optimizer state stay in host memory (`cpu_offload`).

    Raises:
        ConfigError: the workers cannot be divided into such groups.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[training.precision], reduce_dtype=DTYPES[training.reduce_dtype], cast_forward_inputs=False
    )
    offloads = training.cpu_offload and workers.device.type != "cpu"  # there it is host memory anyway
    offload_policy = CPUOffloadPolicy() if offloads else OffloadPolicy()
    mesh = _mesh(workers, training.fsdp_group_size)
    shard = partial(fully_shard, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)
    tower = model.get_vision_tower()
    is_frozen = tower is None or tower.frozen
    whole = set(tower.parameters()) if tower is not None and is_frozen else set()
    if tower is not None and not is_frozen:
        for layer in tower.layers:
            shard(layer)
        shard(tower)
        # the patches are a view of all features, and nothing writes to them in place
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for layer in model.get_model().layers:
        shard(layer)
    shard(model, ignored_params=whole)
    register_fsdp_forward_method(model, "packed_loss")
    register_fsdp_forward_method(model, "fuse_prompts")
    if not is_frozen:  # the root must be the first that runs, and the tower runs before the loss
        register_fsdp_forward_method(model, "encode_vision")
    _prefetch_neighbours(list(model.get_model().layers))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a pre-multiplied sum is not known to gloo


def choose_reduction(model: nn.Module, *, is_last: bool, once_per_step: bool) -> None:
    """Say what the next backward pass sums over ranks; nothing to say if the model is not sharded.

    Args:
        model: as `shard_model` left it.
        is_last: whether the pass is of the last micro-batch of its step. Only then are groups summed.
        once_per_step: sum within a group only then, too.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last or not once_per_step)
        model.set_requires_all_reduce(is_last)


def check_groups(num_workers: int, group_size: int | None) -> None:
    """Refuse groups that cannot hold all workers.

    Raises:
        ConfigError: the number of workers is not a multiple of the group's size.
    """
    if group_size is not None and num_workers > 1 and num_workers % group_size:
        raise ConfigError(
            f"training.fsdp_group_size is {group_size}, but {num_workers} workers cannot be divided into groups of "
            "that size; set it to a divisor of the number of workers, such as the GPUs of a machine, or leave it out"
        )


def _mesh(workers: Workers, group_size: int | None) -> DeviceMesh:
    """Return the mesh of all ranks, or [groups, ranks of a group] with neighbouring ranks in a group."""
    check_groups(workers.world_size, group_size)
    if group_size is None or group_size == workers.world_size:
        return init_device_mesh(workers.device.type, (workers.world_size,))
    shape = (workers.world_size // group_size, group_size)
    return init_device_mesh(workers.device.type, shape, mesh_dim_names=("replicate", "shard"))


def _prefetch_neighbours(layers: list[FSDPModule]) -> None:
    """Gather the next layer's weights while a layer computes, in both directions.

    By itself FSDP2 issues a gather only when the CPU reaches the layer, which is late where the CPU is the slower side.
    """
    for earlier, later in pairwise(layers):
        earlier.set_modules_to_forward_prefetch([later])
        later.set_modules_to_backward_prefetch([earlier])
