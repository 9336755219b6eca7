"""Tensor names of this project's models against those in folders of transformers' LLaVA classes.

Written names are the ones that both transformers and vLLM read (vLLM's towers still have a `vision_model` level). Read
names may be any of the four spellings that transformers has used.
"""

import re
from typing import Final

_WRITTEN: Final = (
    (r"model\.mm_projector\.0\.(.+)", r"multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(.+)", r"multi_modal_projector.linear_2.\1"),
    (r"model\.vision_tower\.vision_tower\.(.+)", r"vision_tower.vision_model.\1"),
    (r"model\.image_newline", r"image_newline"),
    (r"(model|lm_head)\.(.+)", r"language_model.\1.\2"),
)
_READ: Final = (
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.+)", r"model.mm_projector.0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.+)", r"model.mm_projector.2.\1"),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)", r"model.vision_tower.vision_tower.\1"),
    (r"(?:model\.)?image_newline", r"model.image_newline"),
    (r"(?:language_model\.)?lm_head\.(.+)", r"lm_head.\1"),
    (r"(?:model\.)?language_model\.(?:model\.)?(.+)", r"model.\1"),
)


def exported_name(name: str) -> str:
    """Return what a tensor of ours is called in an exported folder."""
    return _renamed(name, _WRITTEN)


def imported_name(name: str) -> str:
    """Return what a tensor of such a folder is called here.

    Raises:
        ValueError: it belongs to nothing that those classes have.
    """
    return _renamed(name, _READ)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise ValueError(f"tensor {name} has no place in a LLaVA model of language model, tower and two-layer projector")
