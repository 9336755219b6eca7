"""Which of transformers' LLaVA classes expresses a model, and how its folder differs from the others.

`LlavaForConditionalGeneration` shows an image in one square, `LlavaNext...` in anyres tiles with newlines, and
`LlavaOnevision...` the same with a limit to their features, and videos. `VipLlava...` is the first with a LayerNorm
before the projector.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from model.llava.packed_decoder import logit_cap_of
from model.llava_arch import LlavaForCausalLM
from model.vision.vision_tower import VisionTower

DEFAULT_VIDEO_TOKEN: Final = "<video>"
_TWO_LAYERS: Final = ("linear_1", None, "linear_2")
_NORM_AND_TWO_LAYERS: Final = ("projector_layernorm", "linear_1", None, "linear_2")


class HfClass(NamedTuple):
    """One of the classes."""

    model_type: str
    architecture: str
    processor: str
    image_processor: str
    projector: str = "mlp2x_gelu"
    """`mm_projector_type` that it has."""
    projector_parts: tuple[str | None, ...] = _TWO_LAYERS
    """Its names for the projector's layers, in order; None for those without weights."""

    @property
    def has_tiles(self) -> bool:
        """Whether it knows tiles and the newline."""
        return self.model_type in ("llava_next", "llava_onevision")


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
VIPLLAVA: Final = HfClass(
    "vipllava",
    "VipLlavaForConditionalGeneration",
    "LlavaProcessor",
    "LlavaImageProcessor",
    "ln_mlp2x_gelu",
    _NORM_AND_TWO_LAYERS,
)
HF_CLASSES: Final = {kind.model_type: kind for kind in (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, VIPLLAVA)}
"""`model_type` -> class."""


def hf_class_of(config: Any) -> HfClass:
    """Return the class that matches the image settings and the projector of a LLaVA config.

    Raises:
        ValueError: there is none; names why.
    """
    aspect_ratio, merge = config.image_aspect_ratio or "crop", config.mm_patch_merge_type
    if aspect_ratio.startswith(("dynamic", "native")):
        raise ValueError(f"image_aspect_ratio {aspect_ratio!r}: none of transformers' LLaVA classes shows images so")
    has_tiles = aspect_ratio.startswith("anyres")
    if has_tiles != (merge == "spatial_unpad"):
        raise ValueError(
            f"image_aspect_ratio {aspect_ratio!r} with mm_patch_merge_type {merge!r}: transformers' LLaVA classes "
            "merge the tiles of anyres by spatial_unpad, and the features of one square not at all"
        )
    if not has_tiles:
        return VIPLLAVA if _usual_name(config.mm_projector_type) == VIPLLAVA.projector else LLAVA
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
    if _usual_name(model.config.mm_projector_type) != kind.projector:
        problems.append(
            f"projector type {model.config.mm_projector_type!r}: those classes have two linear layers with GELU "
            f"between them ({LLAVA.projector!r}), or the same after a LayerNorm on one square ({VIPLLAVA.projector!r})"
        )
    problems += _problems_of_tower(model, kind)
    problems += problems_of_language_model(model)
    if model.config.mm_use_im_start_end:
        problems.append("mm_use_im_start_end: their processors put no tokens around images")
    if problems:
        raise ValueError("the model cannot be exported for transformers: " + "; ".join(problems))
    return kind


def _usual_name(projector_type: str) -> str:
    """Return the name of a projector that has two: InternVL writes mlp2x_gelu_ln for ln_mlp2x_gelu."""
    return f"ln_{projector_type.removesuffix('_ln')}" if projector_type.endswith("_gelu_ln") else projector_type


def exported_pinpoints(model: LlavaForCausalLM, tile_size: int) -> list[list[int]]:
    """Return the pin points as those classes have them: (height, width), in the order that decides ties."""
    tower = model.get_model().get_vision_tower()
    resolution = model.get_model().resolution_at(tile_size, tower.num_features_at(tile_size))
    return [[height, width] for width, height in resolution.pinpoints]


def problems_of_language_model(model: LlavaForCausalLM) -> list[str]:
    """Return why transformers' LLaVA classes do not compute what a backbone computes; nothing when they do."""
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


def _problems_of_tower(model: LlavaForCausalLM, kind: HfClass) -> list[str]:
    tower = model.get_vision_tower()
    if tower is None:
        return ["there is no vision tower"]
    if not isinstance(tower, VisionTower):
        return [f"{len(tower.names)} joined vision towers: those classes have one"]
    if tower.sizing is not None:
        return [f"vision tower {tower.config.model_type!r}: those classes show images as squares"]
    problems = []
    if tower.spec.scales != (1,):
        problems.append(f"mm_vision_scales {list(tower.spec.scales)}: those classes show an image in one size")
    if tower.spec.select_feature == "patch" and tower.num_class_tokens > 1:
        problems.append(
            f"vision tower {tower.config.model_type!r} has a class token and {tower.num_class_tokens - 1} registers: "
            "those classes leave out the first token alone; with mm_vision_select_feature 'cls_patch' all stay"
        )
    if kind is VIPLLAVA and (tower.spec.select_feature != "patch" or tower.num_class_tokens == 0):
        problems.append(
            f"projector type {model.config.mm_projector_type!r}: the class that has it leaves out the first token of "
            "every tower, which is to be a class token (mm_vision_select_feature 'patch')"
        )
    if kind.has_tiles and not isinstance(tower.config.image_size, int):
        problems.append(
            f"vision tower {tower.config.model_type!r} with tiles: those classes that cut them need an image_size of "
            "one number, and its config has two"
        )
    return problems
