"""What a checkpoint holds of model and optimizer, as named tensors or this rank's pieces of them, and putting it back.

Only what is trained is saved: frozen weights are where they came from. Names and whole shapes do not depend on the
number of workers, so a run may resume on another one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pipeline.checkpoint.store import Checkpoint
from pipeline.checkpoint.tensor_file import Piece, whole

_STEP_COUNTER = "step"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name, in a fixed order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class HostCopies:
    """Copies of a run's tensors in host memory, reused from one checkpoint to the next.

    Page-locked when the run is on a GPU: the copies then run at the speed of the bus. The buffers may be written again
    only after the previous checkpoint was.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, own_shards: bool, is_first: bool
    ) -> dict[str, dict[str, Piece]]:
        """Copy trained weights and optimizer state to the host.

        Args:
            model: the model.
            optimizer: its optimizer.
            own_shards: copy this rank's shards only; else gather every tensor to rank 0, which is a collective when
                the model is sharded.
            is_first: whether this is rank 0, which also keeps what is not sharded.

        Returns:
            `{"model": {name: piece}, "optimizer": {"exp_avg.name": piece, ...}}`.
        """
        parameters = trained_parameters(model)
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": parameters,
            "optimizer": optimizer_tensors(optimizer, parameters),
        }
        pieces = {
            group: {
                name: self._copy(f"{group}/{name}", piece)
                for name, tensor in tensors.items()
                if (piece := _own_piece(tensor, own_shards=own_shards, is_first=is_first)) is not None
            }
            for group, tensors in groups.items()
        }
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return pieces

    def _copy(self, key: str, piece: Piece) -> Piece:
        buffer = self._buffers.get(key)
        if buffer is None:
            pinned = piece.tensor.is_cuda
            buffer = torch.empty(piece.tensor.shape, dtype=piece.tensor.dtype, pin_memory=pinned)
            self._buffers[key] = buffer
        return Piece(buffer.copy_(piece.tensor, non_blocking=True), piece.offsets)


def _own_piece(tensor: Tensor, *, own_shards: bool, is_first: bool) -> Piece | None:
    """Return what this rank saves of a tensor; None if that is nothing."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return whole(tensor) if is_first else None
    if not own_shards:
        gathered = tensor.full_tensor()
        return whole(gathered) if is_first else None
    local = tensor.to_local()
    if _is_copy(tensor):
        return None
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(local, tuple(offsets)) if local.numel() else None


def _is_copy(tensor: DTensor) -> bool:
    """Whether another rank, of an earlier group, holds the same shard."""
    place = tensor.device_mesh.get_coordinate()
    assert place is not None  # every rank is in the mesh
    return any(idx > 0 and placement.is_replicate() for idx, placement in zip(place, tensor.placements, strict=True))


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return every tensor and every integer of the optimizer's state as `MOMENT.PARAMETER`."""
    return {
        f"{moment}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for moment, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor | int)
    }


def gather_whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return CPU copies of tensors with all their shards, one at a time; nothing on ranks that do not `keep`."""
    gathered = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            gathered[name] = full.detach().to("cpu", copy=True)
    return gathered


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Fill weights and optimizer from a checkpoint, each rank reading its own shards.

    Raises:
        ValueError: the checkpoint trains other parameters than this run; names the first differences.
    """
    parameters = trained_parameters(model)
    saved = checkpoint.specs("model").keys()
    if parameters.keys() != saved:
        missing, surplus = sorted(parameters.keys() - saved)[:3], sorted(saved - parameters.keys())[:3]
        raise ValueError(
            f"the checkpoint holds {len(saved)} trained tensors, this run {len(parameters)}: missing {missing}, "
            f"not expected {surplus}; resume with the model and stage the run was started with"
        )
    targets: dict[str, Tensor] = {name: parameter.detach() for name, parameter in parameters.items()}
    for key, spec in checkpoint.specs("optimizer").items():
        moment, _, name = key.partition(".")
        targets[key] = _empty_moment(moment, spec, parameters[name], optimizer)
        optimizer.state[parameters[name]][moment] = targets[key]
    checkpoint.load_into(targets)
    _restore_integers(optimizer)


def _restore_integers(optimizer: torch.optim.Optimizer) -> None:
    """Restore step counters that were not tensors: the library of 8-bit AdamW counts in integers, torch in floats."""
    for state in optimizer.state.values():
        if _STEP_COUNTER in state and state[_STEP_COUNTER].dtype == torch.int64:
            state[_STEP_COUNTER] = int(state[_STEP_COUNTER])


def _empty_moment(
    moment: str, spec: TensorStorageMetadata, parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> Tensor:
    dtype = spec.properties.dtype
    if moment == _STEP_COUNTER:
        # AdamW keeps its step counter on the CPU, except for the fused kernel
        device = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
        return torch.empty(spec.size, dtype=dtype, device=device)
    if spec.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(spec.size, dtype=dtype, device=parameter.device)
