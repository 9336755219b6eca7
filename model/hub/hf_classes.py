"""Which of transformers' LLaVA classes expresses a model, and how its folder differs from the others.

`LlavaForConditionalGeneration` shows an image in one square, `LlavaNext...` in anyres tiles with newlines, and
`LlavaOnevision...` the same with a limit to their features, and videos.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from model.llava.packed_decoder import logit_cap_of
from model.llava_arch import LlavaForCausalLM
from model.vision.vision_tower import VisionTower

PROJECTOR_TYPE: Final = "mlp2x_gelu"
TOWER_TYPES: Final = ("clip_vision_model", "siglip_vision_model")
DEFAULT_VIDEO_TOKEN: Final = "<video>"


class HfClass(NamedTuple):
    """One of the classes."""

    model_type: str
    architecture: str
    processor: str
    image_processor: str

    @property
    def has_tiles(self) -> bool:
        """Whether it knows tiles and the newline."""
        return self.model_type != "llava"


LLAVA: Final = HfClass("llava", "LlavaForConditionalGeneration", "LlavaProcessor", "LlavaImageProcessor")
LLAVA_NEXT: Final = HfClass(
    "llava_next", "LlavaNextForConditionalGeneration", "LlavaNextProcessor", "LlavaNextImageProcessor"
)
LLAVA_ONEVISION: Final = HfClass(
    "llava_onevision",
    "LlavaOnevisionForConditionalGeneration",
    "LlavaOnevisionProcessor",
    "LlavaOnevisionImageProcessor",
)
HF_CLASSES: Final = {kind.model_type: kind for kind in (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION)}
"""`model_type` -> class."""


def hf_class_of(config: Any) -> HfClass:
    """Return the class that matches the image settings of a LLaVA config.

    Raises:
        ValueError: there is none; names why.
    """
    aspect_ratio, merge = config.image_aspect_ratio or "crop", config.mm_patch_merge_type
    if aspect_ratio.startswith("dynamic"):
        raise ValueError(f"image_aspect_ratio {aspect_ratio!r}: none of transformers' LLaVA classes cuts such tiles")
    has_tiles = aspect_ratio.startswith("anyres")
    if has_tiles != (merge == "spatial_unpad"):
        raise ValueError(
            f"image_aspect_ratio {aspect_ratio!r} with mm_patch_merge_type {merge!r}: transformers' LLaVA classes "
            "merge the tiles of anyres by spatial_unpad, and the features of one square not at all"
        )
    if not has_tiles:
        return LLAVA
    return LLAVA_ONEVISION if re.fullmatch(r"anyres_max_\d+", aspect_ratio) else LLAVA_NEXT


def check_exportable(model: LlavaForCausalLM) -> HfClass:
    """Return the class that expresses a model.

    Raises:
        ValueError: there is none; names every reason.
    """
    problems, kind = [], LLAVA
    try:
        kind = hf_class_of(model.config)
    except ValueError as error:
        problems.append(str(error))
    if model.config.mm_projector_type != PROJECTOR_TYPE:
        problems.append(
            f"projector type {model.config.mm_projector_type!r}: those classes have exactly two linear layers with "
            f"GELU between them ({PROJECTOR_TYPE!r})"
        )
    problems += _problems_of_tower(model)
    problems += _problems_of_language_model(model)
    if model.config.mm_use_im_start_end:
        problems.append("mm_use_im_start_end: their processors put no tokens around images")
    if problems:
        raise ValueError("the model cannot be exported for transformers: " + "; ".join(problems))
    return kind


def exported_pinpoints(model: LlavaForCausalLM, tile_size: int) -> list[list[int]]:
    """Return the pin points as those classes have them: (height, width), in the order that decides ties."""
    resolution = model.get_model().resolution_at(tile_size, model.get_model().get_vision_tower().num_features)
    return [[height, width] for width, height in resolution.pinpoints]


def _problems_of_language_model(model: LlavaForCausalLM) -> list[str]:
    problems = []
    if model.config.model_type == "llava_mpt":
        problems.append("backbone 'mpt': its body is not laid out as those classes expect")
    if model.head_bias:
        problems.append(f"{model.config.model_type}: its output head has a bias, theirs has none")
    if logit_cap_of(model.config) is not None:
        problems.append(
            f"final_logit_softcapping {logit_cap_of(model.config)} ({model.config.model_type}): those classes do not "
            "cap logits, so loss and probabilities would differ"
        )
    return problems


def _problems_of_tower(model: LlavaForCausalLM) -> list[str]:
    tower = model.get_vision_tower()
    if tower is None:
        return ["there is no vision tower"]
    if not isinstance(tower, VisionTower):
        return [f"{len(tower.names)} joined vision towers: those classes have one"]
    if tower.spec.scales != (1,):
        return [f"mm_vision_scales {list(tower.spec.scales)}: those classes show an image in one size"]
    if tower.config.model_type not in TOWER_TYPES:
        return [f"vision tower {tower.config.model_type!r}: exported are {', '.join(TOWER_TYPES)}"]
    return []
