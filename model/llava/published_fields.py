"""Fields of published LLaVA configs that change what is computed, and which of their values mean what happens here.

A field that is not honoured is refused when the folder is opened, by name; one that only training reads is passed over.
Sources: `LLaVA` and `LLaVA-NeXT` (`train.py`, `llava_arch.py`, `multimodal_resampler`), InternVL `internvl_chat_llava`.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, get_args

from model.fusion.resolution import ASPECT_RATIO_PATTERN, PatchMerge
from model.llava.llava_config import LlavaFields


class _Rule(NamedTuple):
    """The values of a field that mean what is computed here; null and false always do."""

    accepted: tuple[object, ...]
    meaning: str
    """What other values would change."""


_RULES: Final[dict[str, _Rule]] = {
    "mm_resampler_type": _Rule(("", "identity"), "features would pass a resampler, which no projector here has"),
    "mm_spatial_pool_mode": _Rule(("bilinear",), "frames of videos are shrunk bilinearly here"),
    "mm_spatial_pool_stride": _Rule((2,), "frames of videos are shrunk to half the sides here"),
    "mm_newline_position": _Rule(("one_token",), "one newline follows the last frame of a video here"),
    "add_faster_video": _Rule((), "videos would be shown in slow and fast frames"),
    "add_time_instruction": _Rule((), "prompts would tell the times of frames"),
    "use_pos_skipping": _Rule((), "positions would be skipped at random in training"),
    "s2": _Rule((), "the tower would see several scales: set mm_vision_scales to their multiples, such as [1, 2, 3]"),
    "mm_patch_merge_type": _Rule(get_args(PatchMerge), f"known are {', '.join(get_args(PatchMerge))}"),
}
_TRAINING_ONLY: Final = (
    r"mm_(projector|vision_tower|vision_resampler|language_model)_lr|mm_tunable_parts|mm_perceiver_\w+|mm_qformer_\w+|"
    r"mm_spatial_pool_out_channels|mm_vision_tower_pretrained"
)
"""`mm_*` fields that only training reads, or only the part that another field would switch on."""


def check_published_fields(values: Mapping[str, Any], where: str) -> None:
    """Refuse a LLaVA config.json that asks for what is not computed here.

    Args:
        values: content of config.json.
        where: its folder or hub id, for the message.

    Raises:
        ValueError: names every such field, its value, and what it would change.
    """
    problems = [
        f"{name} is {values[name]!r}: {rule.meaning}"
        for name, rule in _RULES.items()
        if values.get(name) not in (None, False, *rule.accepted)
    ]
    ratio = values.get("image_aspect_ratio")
    if ratio not in (None, "square") and re.fullmatch(ASPECT_RATIO_PATTERN, str(ratio)) is None:
        problems.append(f"image_aspect_ratio is {ratio!r}: images are not cut that way here")
    layers = values.get("mm_vision_select_layer", -2)
    if not all(type(layer) is int for layer in (layers if isinstance(layers, list) else [layers])):
        problems.append(f"mm_vision_select_layer is {layers!r}: expected a whole number, or a list of them")
    known = {*LlavaFields.__annotations__, *_RULES}
    problems += [
        f"{name} is {value!r}: not known here, it may change what is computed; take it out if it was for training alone"
        for name, value in values.items()
        if name.startswith("mm_")
        and name not in known
        and value not in (None, False)
        and re.fullmatch(_TRAINING_ONLY, name) is None
    ]
    if problems:
        raise ValueError(f"{where} is a LLaVA model that cannot be computed as published: " + "; ".join(problems))
