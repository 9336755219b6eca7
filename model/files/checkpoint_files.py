"""Checkpoint folders and hub ids as files: their config.json, and single tensors out of their weights.

Whole models are loaded by transformers; this is for parts of them. Pickles are read restricted to tensors.
"""

import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from model.files.weight_files import Shapes, check_not_pointer, read_shapes

ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
"""A folder that has one of them holds adapters, not a model."""
_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Whole, or an index of parts; the first that is there counts, as in transformers."""


def read_checkpoint_config(name: str, what: str) -> dict[str, Any]:
    """Read config.json of a checkpoint folder or hub id.

    Raises:
        ValueError: there is no such folder or hub repository, or it holds no config.json.
    """
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    if not Path(name).is_dir() and not is_hub_id:
        raise ValueError(f"{what}: folder {name!r} does not exist; expected a Hugging Face checkpoint folder or hub id")
    refuse_other_folders(name, what)
    check_json_files(name, ("config.json", "generation_config.json"))
    try:
        values, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        raise ValueError(f"{what}: no config.json found for {name!r}, neither as a folder nor on the hub") from error
    if not values:
        raise ValueError(f"{what}: {name!r} holds no config.json")
    return dict(values)


def refuse_exported(name: str, what: str) -> None:
    """Refuse a LLaVA model in the layout of transformers' own classes, by the two configs that it nests.

    Raises:
        ValueError: it is one; the message names what to give instead.
    """
    if not (Path(name) / "config.json").is_file():
        return
    values = read_checkpoint_config(name, what)
    if {"vision_config", "text_config", "image_token_index"} <= values.keys():
        raise ValueError(
            f"{what}: {name} is a model exported for transformers ({values.get('model_type')}), which is not trained "
            "further here; give the model folder of the run that it was exported from (RUN/model)"
        )


def refuse_other_folders(name: str, what: str) -> None:
    """Refuse folders that are often given in place of a model: of a run, or of adapters.

    Raises:
        ValueError: it is one; the message names what to give instead.
    """
    folder = Path(name)
    if any((folder / file).is_file() for file in ADAPTER_FILES):
        ours = (folder / "ray_llava.json").is_file()
        command = f"run `ray-llava merge {name} WHOLE`" if ours else "merge them with the library that made them"
        raise ValueError(
            f"{what}: {name} holds adapters, which need another model; {command} first, and give the folder WHOLE"
        )
    if not (folder / "config.yaml").is_file() or (folder / "config.json").is_file():
        return
    inside = folder / "model"
    if any((inside / file).is_file() for file in ADAPTER_FILES):
        raise ValueError(
            f"{what}: {name} is the folder of a run whose result is adapters, which need another model; run "
            f"`ray-llava merge {name} WHOLE` first, and give the folder WHOLE"
        )
    if inside.is_dir():
        raise ValueError(f"{what}: {name} is the folder of a run; give its model: {inside}")
    raise ValueError(
        f"{what}: {name} is the folder of a run that holds no whole model; give the folder of a language model, and "
        "for the projector of a pretraining run set model.pretrain_mm_mlp_adapter to that run"
    )


def check_json_files(name: str, files: Sequence[str]) -> None:
    """Refuse a local folder whose JSON files are damaged, before a library stumbles over one without naming it.

    Args:
        name: folder, or hub id, which is left to the hub's own checks.
        files: names; those that are not there are left out.

    Raises:
        ValueError: names the file and what it is instead.
    """
    for file in (Path(name) / own for own in files):
        if not file.is_file():
            continue
        check_not_pointer(file)
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is not readable as JSON ({error}); fetch or copy it again") from error


def read_checkpoint_shapes(name: str) -> Shapes:
    """Return name and shape of every tensor of a checkpoint from its files' headers, values unread.

    Raises:
        ValueError: there are no weights, a part is missing, or a file is damaged; names it.
    """
    shapes: Shapes = {}
    for file in _weight_files(name, lambda _: True):
        shapes |= read_shapes(file)
    return shapes


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
        read_shapes(file)
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
    for candidate in _WEIGHTS:
        file = _find(name, candidate)
        if file is not None:
            return _parts_of(name, file, wanted) if file.suffix == ".json" else [file]
    raise ValueError(f"{name} has no weights; expected one of {', '.join(_WEIGHTS)}")


def _parts_of(name: str, index: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Return the files that an index names for the tensors that are wanted."""
    check_json_files(str(index.parent), (index.name,))
    parts: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = {part: _find(name, part) for part in sorted({parts[key] for key in parts if wanted(key)})}
    missing = [part for part, file in files.items() if file is None]
    if missing:
        raise ValueError(f"{name}: {index.name} names {', '.join(missing)}, which do not exist; copy them there")
    return [file for file in files.values() if file is not None]


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
        # `opened` is not a mapping and cannot be iterated over
        return {key: opened.get_tensor(key) for key in opened.keys() if wanted(key)}  # noqa: SIM118


def _read_pickle(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in read_pickled_tensors(file).items() if wanted(key)}
