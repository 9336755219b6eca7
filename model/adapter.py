"""The projector on disk: what projector pretraining produces and finetuning starts from, image newline included.

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
_PREFIX: Final = "model."
_PROJECTOR: Final = "mm_projector"
_NEWLINE: Final = "image_newline"
EMBEDDING_KEY: Final = "model.embed_tokens.weight"
"""Input embeddings, present in adapters trained with `<im_start>` and `<im_end>`."""


def projector_state(body: nn.Module) -> dict[str, Tensor]:
    """Return what projector pretraining learns: the weights of `mm_projector`, and `image_newline` if there is one.

    Args:
        body: a decoder body with vision modules.
    """
    names = (f"{_PROJECTOR}.", _NEWLINE)
    return {name: tensor for name, tensor in body.state_dict().items() if name.startswith(names)}


def write_projector(state: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the projector's weights atomically and return the file's path.

    Args:
        state: whole tensors, named as `projector_state` does.
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


def load_projector(body: nn.Module, path: str | Path) -> None:
    """Load an adapter's weights into a decoder body; every tensor must be there, fit, and be known.

    Only `image_newline` may be missing, as it is from original files, and keeps its value then.

    Raises:
        ValueError: the file is missing, or tensors are missing, unexpected or of another shape; all are named.
    """
    found = projector_tensors(read_adapter(path))
    expected = projector_state(body)
    problems = [
        f"missing {_PREFIX}{name} {list(expected[name].shape)}"
        for name in expected
        if name not in found and name != _NEWLINE
    ]
    problems += [f"unexpected {name} {list(found[name].shape)}" for name in found if name not in expected]
    problems += [
        f"{_PREFIX}{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        kind = type(body.get_submodule(_PROJECTOR)).__name__
        raise ValueError(f"{path} does not fit the projector {kind}: " + "; ".join(problems))
    body.load_state_dict(found, strict=False)


def projector_tensors(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the tensors of `projector_state`, with everything before their names removed.

    Other tensors are left out only when they are the input embeddings, so that nothing trained is lost unnoticed.
    """
    picked: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        if name == EMBEDDING_KEY:
            continue
        match = re.fullmatch(rf"(?:.*?\.)?({_PROJECTOR}\..+|{_NEWLINE})", name)
        picked[match[1] if match else name] = tensor
    return picked
