"""Checks of the files that a run's model is put together from, without loading them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pipeline.config import ConfigError, ModelConfig
from pipeline.tools.doctor.finding import Finding

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAX_HEADER_BYTES = 100_000_000  # of the safetensors library


def check_weights(parts: ModelConfig) -> Finding:
    """Look for the weights of the language model, if it is a folder."""
    folder = Path(parts.language_model)
    if not folder.is_dir():
        return Finding("language model", "ok", f"{folder} is not on this machine: the run fetches it from the hub")
    try:
        if problem := _missing_weights(folder):
            return Finding("language model", "error", f"{folder}: {problem}; copy or fetch them again")
        for path in sorted(folder.glob("*.safetensors")):
            num_elements(path)
    except ValueError as error:
        return Finding("language model", "error", str(error))
    return Finding("language model", "ok", f"{folder} has its weights")


def _missing_weights(folder: Path) -> str:
    """Say which files are not there that loading needs; empty when all are."""
    if any((folder / name).is_file() for name in _WHOLE):
        return ""
    for index in (folder / name for name in _INDEX):
        if index.is_file():
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(part for part in parts if not (folder / part).is_file())
            return f"{index.name} names {', '.join(missing)}, which do not exist" if missing else ""
    return f"no weights, expected one of {', '.join((*_WHOLE, *_INDEX))}"


def num_elements(path: Path) -> int:
    """Return how many numbers a safetensors file holds, from its header.

    Raises:
        ValueError: it has none.
    """
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"{header_bytes} bytes long")
            header = json.loads(file.read(header_bytes))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: no safetensors header ({error}); the file is damaged, fetch it again") from error


def check_projector(parts: ModelConfig) -> Finding:
    """Look for the projector file that the run starts from."""
    from pipeline.assembly.parts import find_projector  # torch takes seconds to load

    try:
        projector = find_projector(parts.pretrain_mm_mlp_adapter)
    except ConfigError as error:
        return Finding("projector", "error", str(error))
    return Finding("projector", "ok", projector or "a new one (model.pretrain_mm_mlp_adapter)")
