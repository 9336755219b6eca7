"""Rotary position fields in two spellings: transformers 5 reads `rope_parameters`, 4.x `rope_theta` and `rope_scaling`.

A reader of one kind passes over the fields of the other: without these, 4.x takes a base of 10000, silently.
"""

from collections.abc import Mapping
from typing import Any, Final

_NOT_SCALING: Final = ("rope_theta", "partial_rotary_factor")
"""Entries that 4.x has next to `rope_scaling`, not in it."""
_LONGROPE_ENTRIES: Final = ("type", "short_factor", "long_factor")
"""The only ones that Phi-3's config accepts there."""


def with_rope_of_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a language model's config.json of transformers 5 with the fields of 4.x added.

    Layers of two kinds (Gemma 3) have `rope_theta` for full attention and `rope_local_base_freq` for windows there.
    """
    parameters = config.get("rope_parameters")
    if not parameters:
        return dict(config)
    if "full_attention" not in parameters:
        return {**config, **_flat_fields(parameters, str(config["model_type"]))}
    fields = _flat_fields(parameters["full_attention"], str(config["model_type"]))
    if windows := parameters.get("sliding_attention"):
        fields["rope_local_base_freq"] = windows["rope_theta"]
    return {**config, **fields}


def _flat_fields(parameters: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    fields = {name: parameters[name] for name in _NOT_SCALING if name in parameters}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return {**fields, "rope_scaling": None}
    scaling = {name: value for name, value in parameters.items() if name not in _NOT_SCALING}
    if model_type == "phi3":
        outside = {name: scaling[name] for name in ("original_max_position_embeddings",) if name in scaling}
        scaling = {name: {**scaling, "type": kind}[name] for name in _LONGROPE_ENTRIES}
        return {**fields, **outside, "rope_scaling": scaling}
    return {**fields, "rope_scaling": scaling}
