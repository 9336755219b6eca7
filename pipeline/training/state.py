"""What a checkpoint holds of model and optimizer, as plain named tensors, sharded or not.

Only what is trained is saved: frozen weights are where they came from. The layout is independent of the number of
workers, so a run may resume on another one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name, in a fixed order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def collect(model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, dict[str, Tensor]]:
    """Copy trained weights and optimizer state to the CPU; a collective when the model is sharded.

    Args:
        model: the model.
        optimizer: its optimizer.
        keep: whether this rank wants the copies; the others only take part in gathering.

    Returns:
        `{"model": {name: tensor}, "optimizer": {"exp_avg.name": tensor, ...}}`, whole tensors.
    """
    parameters = trained_parameters(model)
    moments = {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in parameters.items()
        for moment in _MOMENTS
        if moment in optimizer.state[parameter]
    }
    return {"model": gather_whole(parameters, keep=keep), "optimizer": gather_whole(moments, keep=keep)}


def gather_whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return CPU copies of tensors with all their shards, one at a time; nothing on ranks that do not `keep`."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = full.detach().to("cpu", copy=True)
    return whole


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    """Put back what `collect` returned, sharded like the live parameters.

    Raises:
        ValueError: the checkpoint trains other parameters than this run; names the first differences.
    """
    parameters = trained_parameters(model)
    if parameters.keys() != weights.keys():
        missing = sorted(parameters.keys() - weights.keys())[:3]
        surplus = sorted(weights.keys() - parameters.keys())[:3]
        raise ValueError(
            f"the checkpoint holds {len(weights)} trained tensors, this run {len(parameters)}: missing {missing}, "
            f"not expected {surplus}; resume with the model and stage the run was started with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_like(weights[name], parameter))
            for moment in _MOMENTS:
                saved = moments.get(f"{moment}.{name}")
                if saved is not None:
                    optimizer.state[parameter][moment] = _restore_moment(moment, saved, parameter, optimizer)


def _restore_moment(moment: str, saved: Tensor, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor:
    if moment != "step":
        return _like(saved, parameter)
    # AdamW keeps its step counter on the CPU, except for the fused kernel
    return saved.to(parameter.device) if optimizer.defaults["fused"] else saved.clone()


def _like(saved: Tensor, parameter: nn.Parameter) -> Tensor:
    if isinstance(parameter, DTensor):
        moved = saved.to(parameter.device, parameter.dtype)
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
    return saved.to(parameter.device, parameter.dtype)
