"""Checks of the files that a run's model is put together from, without loading them."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import ModelConfig
from pipeline.tools.doctor.finding import Finding


def check_weights(parts: ModelConfig) -> Finding:
    """Look at the weights of the language model, if it is a folder."""
    from pipeline.assembly.part_files import check_language_model  # torch takes seconds to load

    return _finding("language model", check_language_model, parts)


def check_vision_tower(parts: ModelConfig) -> Finding:
    """Look at the weights of the vision tower, if it is a folder."""
    from pipeline.assembly.part_files import check_tower

    return _finding("vision tower", check_tower, parts)


def check_projector(parts: ModelConfig) -> Finding:
    """Look at the projector file that the run starts from."""
    from pipeline.assembly.part_files import check_projector_file

    return _finding("projector", check_projector_file, parts)


def _finding(name: str, check: Callable[[ModelConfig], str], parts: ModelConfig) -> Finding:
    try:
        return Finding(name, "ok", check(parts))
    except ValueError as error:  # ConfigError is one
        return Finding(name, "error", str(error))
