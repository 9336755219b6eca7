"""Folders of transformers' LLaVA classes as models of this project; the inverse of `export`."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING
from transformers.image_processing_utils import BaseImageProcessor

from model.backbones.registry import Backbone, backbone_of_language_model
from model.files.checkpoint_files import read_checkpoint_config, read_tensors
from model.hub.hf_classes import HF_CLASSES, LLAVA_ONEVISION, VIPLLAVA
from model.hub.hf_names import imported_name
from model.hub.weights import LlavaModel, load_weights
from model.llava.attention import AttentionKernel, enable_packed_attention
from model.vision.pixels import read_pixel_stats
from model.vision.tower_kinds import TOWER_KINDS, read_tower_config


def import_transformers(
    folder: str | Path, dtype: torch.dtype = torch.float32, attention: AttentionKernel = "auto"
) -> LlavaModel:
    """Read such a folder, all weights included.

    Its tokenizer and processor stay where they are. Both tables keep the row of `<image>`, so that exporting again
    gives the same tensors.

    Raises:
        ValueError: it is of another kind, uses what this project's model has no place for, or lacks tensors.
    """
    path = Path(folder)
    values = read_checkpoint_config(str(path), "LLaVA model")
    if values.get("model_type") not in HF_CLASSES or "text_config" not in values:
        raise ValueError(
            f"{path} has model_type {values.get('model_type')!r}; expected {', '.join(HF_CLASSES)} with a text_config, "
            "as transformers' LLaVA classes save it; this project's own folders are opened by load_llava"
        )
    backbone, config = _config_of(values, path)
    kind = HF_CLASSES[values["model_type"]]
    tensors = read_tensors(str(path), lambda name: "position_ids" not in name)
    state = {imported_name(name, kind): tensor for name, tensor in tensors.items()}
    config.tie_word_embeddings = "lm_head.weight" not in state  # flags on two levels, and defaults of two classes
    model = load_weights(backbone, None, config, dtype, state)
    cast(Any, model.get_vision_tower()).set_frozen(True)
    if model.packs_rows:
        enable_packed_attention(model, attention)
    return model


def _config_of(values: dict[str, Any], path: Path) -> tuple[Backbone, Any]:
    _check_supported(values, path)
    kind = HF_CLASSES[values["model_type"]]
    whole: Any = CONFIG_MAPPING[kind.model_type].from_dict(values)  # what the file leaves out, its class has
    text, vision = whole.text_config.to_dict(), whole.vision_config.to_dict()
    backbone = backbone_of_language_model(text, f"{path} (text_config)")
    if (cap := text.get("final_logit_softcapping")) is not None:
        raise ValueError(
            f"{path}: text_config has final_logit_softcapping {cap}, which transformers' {kind.model_type} class "
            "leaves out when it computes logits, and this project's model does not; set it to null if the model was "
            "trained without"
        )
    stats = read_pixel_stats(str(path))
    layers = whole.vision_feature_layer
    keeps_all = kind is not VIPLLAVA and whole.vision_feature_select_strategy == "full"
    tower = read_tower_config(vision, f"{path} (vision_config)")
    num_class_tokens = TOWER_KINDS[tower.model_type].num_class_tokens(tower)
    if not keeps_all and num_class_tokens != 1:
        raise ValueError(
            f"{path}: its class leaves out the first feature of an image, but the tower {tower.model_type!r} has "
            f"{num_class_tokens} features that stand for no patch, not one; no selection here is like that"
        )
    fields = {
        "model_type": backbone.config_class.model_type,
        "architectures": [backbone.model_class.__name__],
        "tie_word_embeddings": values.get("tie_word_embeddings", False),
        "use_mm_proj": True,
        "mm_projector_type": kind.projector,
        "mm_hidden_size": tower.hidden_size * (1 if isinstance(layers, int) else len(layers)),
        "mm_vision_tower": str(path),
        "mm_vision_config": tower.to_dict(),
        "mm_vision_weights": "checkpoint",
        "mm_vision_select_layer": layers if isinstance(layers, int) else list(layers),
        "mm_vision_select_feature": "cls_patch" if keeps_all and num_class_tokens else "patch",
        "mm_image_mean": None if stats is None else list(stats.mean),
        "mm_image_std": None if stats is None else list(stats.std),
        **_image_fields(whole, path),
    }
    return backbone, backbone.config_class.from_dict({**text, **fields})


def _image_fields(config: Any, path: Path) -> dict[str, Any]:
    """Return how images become tiles; pin points of those classes are (height, width)."""
    if not HF_CLASSES[config.model_type].has_tiles:
        return {"image_aspect_ratio": "pad" if _pads(path) else "crop"}
    is_limited = config.model_type == LLAVA_ONEVISION.model_type
    return {
        "image_aspect_ratio": config.vision_aspect_ratio if is_limited else "anyres",
        "image_grid_pinpoints": [[width, height] for height, width in config.image_grid_pinpoints],
        "mm_patch_merge_type": "spatial_unpad",
    }


def _pads(path: Path) -> bool:
    """Whether the image processor pads to a square; its file may be inside that of the processor."""
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(str(path))
    except OSError:
        return False
    return bool(values.get("do_pad"))


def _check_supported(values: dict[str, Any], path: Path) -> None:
    expected = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True, "projector_layernorm_eps": 1e-5}
    found = {key: values.get(key, value) for key, value in expected.items()}
    if found != expected:
        raise ValueError(f"{path}: expected {expected} in config.json, found {found}; no projector here is like that")
