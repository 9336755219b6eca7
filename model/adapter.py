"""The projector on disk: what projector pretraining produces and finetuning starts from.

Tensors are stored as safetensors under the names of published LLaVA checkpoints (`model.mm_projector.0.weight`, ...).
Original `mm_projector.bin` files are read too, restricted to tensors.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PROJECTOR_FILE: Final = "mm_projector.safetensors"
"""File name used when a folder is given."""
_LEGACY_FILE: Final = "mm_projector.bin"
_PREFIX: Final = "model.mm_projector."
EMBEDDING_KEY: Final = "model.embed_tokens.weight"
"""Input embeddings, present in adapters trained with `<im_start>` and `<im_end>`."""


def write_projector(state: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the projector's weights atomically and return the file's path.

    Args:
        state: the projector's state dict, whole tensors.
        path: target file ending in `.safetensors`, or a folder, which then gets `mm_projector.safetensors`.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target / PROJECTOR_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    save_file(tensors, part, metadata={"format": "pt"})
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(target)
    return target


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of an adapter file, or of the one inside a folder, onto the CPU.

    Raises:
        ValueError: there is no such file, or a pickle holds more than tensors.
    """
    source = Path(path)
    if source.is_dir():
        candidates = [source / PROJECTOR_FILE, source / _LEGACY_FILE]
        source = next((file for file in candidates if file.is_file()), candidates[0])
    if not source.is_file():
        raise ValueError(f"projector file {source} does not exist; expected {PROJECTOR_FILE} or {_LEGACY_FILE}")
    if source.suffix == ".safetensors":
        return load_file(source)
    # weights_only: an original .bin is a pickle, which could otherwise run code.
    try:
        return dict(torch.load(source, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{source} holds something other than tensors and is not read: {error}") from error


def load_projector(projector: nn.Module, path: str | Path) -> None:
    """Load an adapter's projector weights; every tensor must be there, fit, and be known.

    Raises:
        ValueError: the file is missing, or tensors are missing, unexpected or of another shape; all are named.
    """
    adapter = read_adapter(path)
    found = projector_tensors(adapter)
    expected = projector.state_dict()
    problems = [f"missing {_PREFIX}{name} {list(expected[name].shape)}" for name in expected if name not in found]
    problems += [f"unexpected {name} {list(found[name].shape)}" for name in found if name not in expected]
    problems += [
        f"{_PREFIX}{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit the projector {type(projector).__name__}: " + "; ".join(problems))
    projector.load_state_dict(found, strict=True)


def projector_tensors(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the projector's tensors by name, with everything up to the first `mm_projector.` removed.

    Other tensors are left out only when they are the input embeddings, so that nothing trained is lost unnoticed.
    """
    picked: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        if name == EMBEDDING_KEY:
            continue
        match = re.fullmatch(r"(?:.*?\.)?mm_projector\.(.+)", name)
        picked[match[1] if match else name] = tensor
    return picked
