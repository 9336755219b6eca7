"""Where a projector comes from: the parts that it was trained between, noted in its file and compared where it is used.

Shapes do not tell: another tower, layer or pooling of the same width gives features that the projector has never seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from model.files.adapter import read_metadata
from model.files.fingerprint import fingerprint_at_start
from pipeline.assembly.facts import read_tower_facts
from pipeline.assembly.parts import find_projector
from pipeline.config import ConfigError, ModelConfig

logger = logging.getLogger(__name__)

PROVENANCE_KEY: Final = "ray_llava.trained_on"
"""In the metadata of a projector file."""
_DIGITS = 12


def describe_parts(parts: ModelConfig) -> dict[str, Any]:
    """Return what decides the meaning of a projector's inputs and outputs, as JSON values.

    Folders are identified by their content; a hub id, or the tower inside a LLaVA folder, by name only.
    """
    found: dict[str, Any] = {"num_features": read_tower_facts(parts).num_features}
    if parts.vision_tower is None:
        return found  # a LLaVA folder says the rest itself
    names = (parts.vision_tower,) if isinstance(parts.vision_tower, str) else parts.vision_tower
    layer = parts.mm_vision_select_layer
    return found | {
        "language_model": _part(parts.language_model),
        "vision_tower": [_part(name) for name in names],
        "mm_vision_select_layer": [layer] if isinstance(layer, int) else list(layer),
        "mm_vision_select_feature": parts.mm_vision_select_feature,
        "mm_vision_scales": list(parts.mm_vision_scales),
        "mm_projector_type": parts.mm_projector_type,
    }


def provenance_metadata(parts: ModelConfig) -> dict[str, str]:
    """Return the metadata for a projector file that was trained between these parts."""
    return {PROVENANCE_KEY: json.dumps(describe_parts(parts), sort_keys=True)}


def check_provenance(parts: ModelConfig) -> None:
    """Refuse a projector file that was trained between other parts; one that does not say so is named in the log.

    Raises:
        ConfigError: says what differs, with both values.
    """
    projector = find_projector(parts.pretrain_mm_mlp_adapter)
    if projector is None:
        return
    written = read_metadata(projector).get(PROVENANCE_KEY)
    if written is None:
        logger.info("%s does not say what it was trained on, which is therefore not compared", projector)
        return
    try:
        before = json.loads(written)
    except ValueError as error:
        raise ConfigError(f"{projector}: its metadata are damaged ({error}); copy the file again") from error
    differences = list(_differences(before, describe_parts(parts)))
    if not differences:
        return
    told = f"model.pretrain_mm_mlp_adapter {projector} was trained on other parts: {'; '.join(differences)}"
    if parts.accept_projector:
        logger.warning("%s; used all the same (model.accept_projector)", told)
        return
    raise ConfigError(
        f"{told}. Use the parts it was trained on, train a projector for these, or set model.accept_projector=true"
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, found in now.items():
        trained = before.get(name, found)
        if not _equal(trained, found):
            yield f"{name} {_show(trained)}, now {_show(found)}"


def _part(name: str) -> dict[str, str | None]:
    return {"name": name, "sha256": fingerprint_at_start(name) if Path(name).is_dir() else None}


def _equal(trained: Any, found: Any) -> bool:
    """Compare values; parts by content where both are known, else by name."""
    if isinstance(trained, dict) and isinstance(found, dict):
        digests = (trained.get("sha256"), found.get("sha256"))
        return digests[0] == digests[1] if all(digests) else None in digests
    if isinstance(trained, list) and isinstance(found, list):
        return len(trained) == len(found) and all(map(_equal, trained, found))
    return bool(trained == found)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        digest = value.get("sha256")
        return f"{value.get('name')}{f' ({digest[:_DIGITS]})' if digest else ''}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_show, value)) + "]" if len(value) != 1 else _show(value[0])
    return str(value)
