"""The files of an exported folder that tell transformers' processor how prompts and images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from model.hub.hf_classes import DEFAULT_VIDEO_TOKEN, LLAVA_ONEVISION, HfClass, exported_pinpoints
from model.llava_arch import LlavaForCausalLM
from model.vision.image_spec import ImageSpec
from model.vision.vision_tower import VisionTower


def write_processor(
    model: LlavaForCausalLM,
    kind: HfClass,
    folder: Path,
    image_processor: Mapping[str, Any],
    chat_template: str | None,
) -> None:
    """Write preprocessor_config.json, processor_config.json, the chat template, and for videos their processor.

    Args:
        model: exportable as `kind`.
        kind: the class.
        folder: exists.
        image_processor: content of the tower's preprocessor_config.json.
        chat_template: Jinja template of the training conversations.
    """
    spec = ImageSpec.from_preprocessor_config(image_processor)
    images: dict[str, Any] = {**spec.to_preprocessor_config(), **image_fields(model, kind, spec.size)}
    write_json(folder / "preprocessor_config.json", images)
    processor: dict[str, Any] = {"processor_class": kind.processor, **_processor_fields(model, kind, spec.size)}
    write_json(folder / "processor_config.json", processor)
    if kind is LLAVA_ONEVISION:
        shared = ("image_mean", "image_std", "resample", "size")
        frames = {key: images[key] for key in shared if key in images}
        video: dict[str, Any] = {
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "do_sample_frames": False,
            **frames,
        }
        write_json(folder / "video_preprocessor_config.json", video)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def image_fields(model: LlavaForCausalLM, kind: HfClass, side: int) -> dict[str, Any]:
    """Return what the image processor must do differently from the tower's own; tiles have that side, pixels."""
    if not kind.has_tiles:
        pads = model.config.image_aspect_ratio == "pad"
        return {"image_processor_type": kind.image_processor, "do_pad": True} if pads else {}
    size = {"height": side, "width": side}
    return {
        "image_processor_type": kind.image_processor,
        "image_grid_pinpoints": exported_pinpoints(model, side),
        "size": size,  # both sides: the tile that shows the whole image is stretched
        "crop_size": size,
        "do_resize": True,
        "do_center_crop": False,
        "do_pad": True,
    }


def select_strategy(tower: VisionTower) -> str:
    """Return what those classes call the selection: `default` drops one class token, `full` drops nothing."""
    return "default" if tower.spec.select_feature == "patch" and tower.num_class_tokens else "full"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON the same way every time."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _processor_fields(model: LlavaForCausalLM, kind: HfClass, size: int) -> dict[str, Any]:
    tower: Any = model.get_vision_tower()
    strategy = select_strategy(tower)
    common = {"vision_feature_select_strategy": strategy, "image_token": DEFAULT_IMAGE_TOKEN}
    if kind is not LLAVA_ONEVISION:
        return {**common, "patch_size": tower.patch_size, "num_additional_image_tokens": tower.num_class_tokens}
    # This processor takes one off for `default`, and the root of what it is given for the side of the grid.
    dropped = tower.num_class_tokens if strategy == "default" else 0
    return {
        **common,
        "num_image_tokens": tower.num_features_at(size) + dropped,
        "video_token": DEFAULT_VIDEO_TOKEN,
        "vision_aspect_ratio": model.config.image_aspect_ratio,
    }
