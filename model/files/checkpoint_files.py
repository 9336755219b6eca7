"""Checkpoint folders and hub ids as files: their config.json, and single tensors out of their weights.

Whole models are loaded by transformers; this is for parts of them. Pickles are read restricted to tensors.
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

_WHOLE: Final = ("model.safetensors", "pytorch_model.bin")
_INDEX: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def read_checkpoint_config(name: str, what: str) -> dict[str, Any]:
    """Read config.json of a checkpoint folder or hub id.

    Raises:
        ValueError: there is no such folder or hub repository, or it holds no config.json.
    """
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    if not Path(name).is_dir() and not is_hub_id:
        raise ValueError(f"{what}: folder {name!r} does not exist; expected a Hugging Face checkpoint folder or hub id")
    try:
        values, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        raise ValueError(f"{what}: no config.json found for {name!r}, neither as a folder nor on the hub") from error
    if not values:
        raise ValueError(f"{what}: {name!r} holds no config.json")
    return dict(values)


def read_tensors(name: str, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read the tensors whose names are wanted, onto the CPU, in the types they are stored in.

    Args:
        name: checkpoint folder or hub id with `model.safetensors` or `pytorch_model.bin`, whole or in parts.
        wanted: chooses by name.

    Raises:
        ValueError: there is no such file, a part is missing, or a pickle holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(name, wanted):
        tensors |= _read_safetensors(file, wanted) if file.suffix == ".safetensors" else _read_pickle(file, wanted)
    return tensors


def read_pickled_tensors(file: Path) -> dict[str, Tensor]:
    """Read a file of torch.save that holds a dictionary of tensors and nothing else.

    Raises:
        ValueError: it holds something else, which could run code when it is read.
    """
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} holds something other than tensors and is not read: {error}") from error


def _weight_files(name: str, wanted: Callable[[str], bool]) -> list[Path]:
    for candidate in _WHOLE:
        if (file := _find(name, candidate)) is not None:
            return [file]
    for candidate in _INDEX:
        if (index := _find(name, candidate)) is not None:
            parts: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {part: _find(name, part) for part in sorted({parts[key] for key in parts if wanted(key)})}
            missing = [part for part, file in files.items() if file is None]
            if missing:
                raise ValueError(f"{name}: {candidate} names {', '.join(missing)}, which do not exist; copy them there")
            return [file for file in files.values() if file is not None]
    raise ValueError(f"{name} has no weights; expected one of {', '.join((*_WHOLE, *_INDEX))}")


def _find(name: str, file: str) -> Path | None:
    path = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if path is None else Path(path)


def _read_safetensors(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        # `opened` is no mapping: it cannot be iterated over
        return {key: opened.get_tensor(key) for key in opened.keys() if wanted(key)}  # noqa: SIM118


def _read_pickle(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in read_pickled_tensors(file).items() if wanted(key)}
