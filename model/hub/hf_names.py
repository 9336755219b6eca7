"""Tensor names of this project's models against those in folders of transformers' LLaVA classes.

Written names are the ones that both transformers and vLLM read (vLLM's CLIP and SigLIP still have a `vision_model`
level). Read names may be any of the four spellings that transformers has used.
"""

import re
from typing import Final

from model.hub.hf_classes import HfClass

_TOWER: Final = "model.vision_tower.vision_tower."
_LEVELS: Final = {"clip_vision_model": "vision_model.", "siglip_vision_model": "vision_model."}
"""`model_type` of a tower -> level between the LLaVA class and its tensors, in published checkpoints."""
_WRITTEN: Final = (
    (r"model\.image_newline", r"image_newline"),
    (r"(model|lm_head)\.(.+)", r"language_model.\1.\2"),
)
_READ: Final = (
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)", r"model.vision_tower.vision_tower.\1"),
    (r"(?:model\.)?image_newline", r"model.image_newline"),
    (r"(?:language_model\.)?lm_head\.(.+)", r"lm_head.\1"),
    (r"(?:model\.)?language_model\.(?:model\.)?(.+)", r"model.\1"),
)


def exported_name(name: str, kind: HfClass, tower_type: str) -> str:
    """Return what a tensor of ours is called in an exported folder.

    Args:
        name: in our model.
        kind: class of the folder.
        tower_type: `model_type` of the vision tower.
    """
    parts = [(rf"model\.mm_projector\.{number}\.(.+)", part) for number, part in enumerate(kind.projector_parts)]
    projector = tuple((pattern, rf"multi_modal_projector.{part}.\1") for pattern, part in parts if part)
    tower = ((rf"{re.escape(_TOWER)}(.+)", rf"vision_tower.{_LEVELS.get(tower_type, '')}\1"),)
    return _renamed(name, (*projector, *tower, *_WRITTEN))


def imported_name(name: str, kind: HfClass) -> str:
    """Return what a tensor of such a folder is called here.

    Raises:
        ValueError: it belongs to nothing that those classes have.
    """
    projector = tuple(
        (rf"(?:model\.)?multi_modal_projector\.{part}\.(.+)", rf"model.mm_projector.{number}.\1")
        for number, part in enumerate(kind.projector_parts)
        if part
    )
    return _renamed(name, (*projector, *_READ))


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise ValueError(f"tensor {name} has no place in a LLaVA model of language model, tower and projector")
