"""Sharding a model over the workers with FSDP2, so that no worker holds all weights, gradients and optimizer state.

Each decoder layer is a unit, gathered for its own forward and backward only; the rest (embeddings, projector, head)
is one unit at the root. A vision tower that learns is sharded likewise, a frozen one stays whole on every worker. See
Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.
"""

from __future__ import annotations

import warnings
from functools import partial
from itertools import pairwise

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from model.hub.weights import LlavaModel
from pipeline.parallel.ranks import Workers


def shard_model(model: LlavaModel, workers: Workers, compute_dtype: torch.dtype, *, cpu_offload: bool = False) -> None:
    """Shard `model` in place over all workers.

    Gradients are summed over workers, not averaged: the loss is already divided by the global token count.

    Args:
        model: on this worker's device, with `requires_grad` set.
        workers: the ranks to shard over; the process group must exist.
        compute_dtype: type of gathered weights in forward and backward; gradients are reduced in float32.
        cpu_offload: keep the shards of weights, gradients and optimizer state in host memory.
    """
    mesh = init_device_mesh(workers.device.type, (workers.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offloads = cpu_offload and workers.device.type != "cpu"  # there it is host memory anyway
    offload_policy = CPUOffloadPolicy() if offloads else OffloadPolicy()
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
    if not is_frozen:  # the root must be the first that runs, and the tower runs before the loss
        register_fsdp_forward_method(model, "encode_vision")
    _prefetch_neighbours(list(model.get_model().layers))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a pre-multiplied sum is not known to gloo


def _prefetch_neighbours(layers: list[FSDPModule]) -> None:
    """Gather the next layer's weights while a layer computes, in both directions.

    By itself FSDP2 issues a gather only when the CPU reaches the layer, which is late where the CPU is the slower side.
    """
    for earlier, later in pairwise(layers):
        earlier.set_modules_to_forward_prefetch([later])
        later.set_modules_to_backward_prefetch([earlier])
