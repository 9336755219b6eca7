"""The tables of backbones and towers in docs/models.md, made from the registries.

`python -m tests.model.docs_matrix` writes them; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch

from model.backbones.registry import BACKBONES, Backbone
from model.hub.hf_classes import problems_of_language_model
from model.llava.attention import attends_plainly
from model.llava.experts import experts_of
from model.llava.packed_decoder import sliding_windows_of
from model.vision.tower_kinds import IMAGE_HALVES, TOWER_KINDS
from tests.model.tiny import tiny_backbone_config, tiny_tower_config

DOCS: Final = Path(__file__).parents[2] / "docs" / "models.md"


def backbones_table() -> str:
    """One row per entry of BACKBONES, read from its classes and from a skeleton of a tiny model."""
    rows = [
        "| `model_type` of the language model | family | saved as | packed rows | with | export |",
        "|---|---|---|---|---|---|",
    ]
    for kind, backbone in sorted(BACKBONES.items(), key=lambda entry: entry[1].family.lower()):
        model = _skeleton(kind, backbone)
        rows.append(
            f"| `{kind}` | {backbone.family} | `{backbone.config_class.model_type}` | "
            f"{'yes' if model.packs_rows else 'padded'} | {', '.join(_features(model)) or 'plain attention'} | "
            f"{'refused' if problems_of_language_model(model) else 'yes'} |"
        )
    return "\n".join(rows)


def towers_table() -> str:
    """One row per entry of TOWER_KINDS."""
    halves = {kind: half for half, kind in IMAGE_HALVES.items()}
    rows = [
        "| `model_type` of the tower | class of transformers | tokens that stand for no patch | image sizes |",
        "|---|---|---|---|",
    ]
    for kind, tower in sorted(TOWER_KINDS.items()):
        named = f"`{halves[kind]}`, `{kind}`" if kind in halves else f"`{kind}`"
        sizes = (
            "native resolution: any shape" if tower.native else "any square" if tower.any_size else "the trained one"
        )
        config: Any = tiny_tower_config(kind)
        extra = tower.num_class_tokens(config)
        tokens = "none" if extra == 0 else "1" if extra == 1 else "1, and registers"
        rows.append(f"| {named} | `{tower.model_class.__name__}` | {tokens} | {sizes} |")
    return "\n".join(rows)


def _skeleton(kind: str, backbone: Backbone) -> Any:
    values = tiny_backbone_config(kind).to_dict()
    config = backbone.config_class.from_dict({**values, "model_type": backbone.config_class.model_type})
    with torch.device("meta"):
        return backbone.model_class(config)


def _features(model: Any) -> list[str]:
    config = model.config
    default = type(config)()
    kinds = set(config.layer_types or ()) if hasattr(config, "layer_types") else set()
    found = {
        "sliding windows": hasattr(default, "sliding_window") or sliding_windows_of(config) != (None,),
        "capped scores": not attends_plainly(model) and not model.has_sinks,
        "attention sinks": model.has_sinks,
        "capped logits": bool(getattr(config, "final_logit_softcapping", None)),
        "bias of the head": model.head_bias,
        "linear attention": "linear_attention" in kinds,
        "experts": bool(experts_of(model)),
        "linear biases": config.model_type == "llava_mpt",
    }
    return [name for name, has_it in found.items() if has_it]


def with_tables(text: str) -> str:
    """Return docs/models.md with both tables as they should be."""
    for first, table in (
        ("`model_type` of the language model", backbones_table()),
        ("`model_type` of the tower", towers_table()),
    ):
        text = re.sub(rf"\| {first} \|.*?(?=\n\n)", lambda _, new=table: new, text, count=1, flags=re.S)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    DOCS.write_text(with_tables(DOCS.read_text()))
