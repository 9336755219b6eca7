"""The kinds of image encoder that can be a vision tower, by the `model_type` of their config.json, as data.

A new kind is one line here, if transformers has its classes and its encoder is a stack of layers.

Shapes: N images, H x W pixels, T hidden states per image (class tokens, then patches), V vision width.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3VLVisionConfig,
    Qwen3VLVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from model.files.tower_layouts import ORIGINAL_INTERNVIT, internvit_fields
from model.vision.native_encoders import QWEN, SIGLIP2, NativeEncoder


class TowerKind(NamedTuple):
    """What a tower must know of an image encoder."""

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    embed: Callable[[Any, Tensor], Tensor]
    """Model and pixels [N, 3, H, W] -> hidden states before the first layer [N, T, V]."""
    layers: Callable[[Any], nn.ModuleList]
    """Model -> its encoder layers, each called with hidden states and `layer_arguments`."""
    before_layers: Callable[[Any], list[nn.Module]]
    """Model -> the modules that `embed` uses."""
    num_class_tokens: Callable[[Any], int]
    """Config -> leading hidden states that stand for no patch: class token and registers."""
    any_size: bool
    """Whether position embeddings are resized (bicubically) to images of another size than the config's."""
    layer_arguments: Callable[[Any, Tensor], tuple[Any, ...]] = lambda _model, _pixels: ()
    """Model and pixels -> further arguments of every layer: an attention mask of None, rotary positions."""
    native: NativeEncoder | None = None
    """How images of any shape go through it; None for an encoder of squares. See `native_tower`."""


def _embed(model: Any, pixels: Tensor) -> Tensor:
    return cast(Tensor, model.embeddings(pixels))


def _embed_clip(model: Any, pixels: Tensor) -> Tensor:
    return cast(Tensor, model.pre_layrnorm(model.embeddings(pixels)))


def _no_mask(_model: Any, _pixels: Tensor) -> tuple[Any, ...]:
    return (None,)


def _rotary_positions(model: Any, pixels: Tensor) -> tuple[Any, ...]:
    return None, model.rope_embeddings(pixels)


def _none(_config: Any) -> int:
    return 0


def _one(_config: Any) -> int:
    return 1


def _one_and_registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


def _start(model: Any) -> list[nn.Module]:
    return [model.embeddings]


def _clip_start(model: Any) -> list[nn.Module]:
    return [model.embeddings, model.pre_layrnorm]


def _qwen_start(model: Any) -> list[nn.Module]:
    return [model.patch_embed, *([model.pos_embed] if hasattr(model, "pos_embed") else [])]


def _blocks(model: Any) -> nn.ModuleList:
    return cast(nn.ModuleList, model.blocks)


def _layers(model: Any) -> nn.ModuleList:
    return cast(nn.ModuleList, model.encoder.layers)


def _layer(model: Any) -> nn.ModuleList:
    return cast(nn.ModuleList, model.encoder.layer)


def _layer_of_dinov3(model: Any) -> nn.ModuleList:
    return cast(nn.ModuleList, model.model.layer)


TOWER_KINDS: Final[dict[str, TowerKind]] = {
    "clip_vision_model": TowerKind(
        CLIPVisionConfig, CLIPVisionModel, _embed_clip, _layers, _clip_start, _one, False, _no_mask
    ),
    "siglip_vision_model": TowerKind(
        SiglipVisionConfig, SiglipVisionModel, _embed, _layers, _start, _none, False, _no_mask
    ),
    "dinov2": TowerKind(Dinov2Config, Dinov2Model, _embed, _layer, _start, _one, True),
    "dinov2_with_registers": TowerKind(
        Dinov2WithRegistersConfig, Dinov2WithRegistersModel, _embed, _layer, _start, _one_and_registers, True
    ),
    "dinov3_vit": TowerKind(
        DINOv3ViTConfig, DINOv3ViTModel, _embed, _layer_of_dinov3, _start, _one_and_registers, True, _rotary_positions
    ),
    "internvl_vision": TowerKind(InternVLVisionConfig, InternVLVisionModel, _embed, _layer, _start, _one, True),
    "siglip2_vision_model": TowerKind(
        Siglip2VisionConfig, Siglip2VisionModel, _embed, _layers, _start, _none, True, native=SIGLIP2
    ),
    "qwen2_5_vl_vision": TowerKind(
        Qwen2_5_VLVisionConfig,
        Qwen2_5_VisionTransformerPretrainedModel,
        _embed,
        _blocks,
        _qwen_start,
        _none,
        True,
        native=QWEN,
    ),
    "qwen3_vl_vision": TowerKind(
        Qwen3VLVisionConfig, Qwen3VLVisionModel, _embed, _blocks, _qwen_start, _none, True, native=QWEN
    ),
}
"""`model_type` -> kind. SigLIP 2 checkpoints of fixed resolution are of type `siglip`, NaFlex ones `siglip2`."""

IMAGE_HALVES: Final = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
}
"""`model_type` of a checkpoint with an image and a text encoder -> the kind of its image half."""


def read_tower_config(values: dict[str, Any], name: str) -> PretrainedConfig:
    """Make the encoder's config from the values of a config.json.

    Args:
        values: of an image encoder, or of a checkpoint that has one as its image half.
        name: folder or hub id, for the message.

    Raises:
        ValueError: the `model_type` is unknown.
    """
    kind = values.get("model_type")
    if kind == ORIGINAL_INTERNVIT:
        kind, values = "internvl_vision", internvit_fields(values)
    elif "auto_map" in values:
        named = ", ".join(values.get("architectures") or ["a class of its own"])
        raise ValueError(
            f"vision tower {name} has model_type {kind!r} but is published with code of its own ({named}): it only "
            "resembles that kind (EVA-CLIP does so), and code from a checkpoint is never run. Choose a tower that "
            "transformers has classes for"
        )
    if kind in IMAGE_HALVES:
        kind, values = IMAGE_HALVES[kind], values["vision_config"]
    if kind not in TOWER_KINDS:
        known = ", ".join(sorted((*TOWER_KINDS, *IMAGE_HALVES, ORIGINAL_INTERNVIT)))
        raise ValueError(f"vision tower {name} has model_type {kind!r}; known: {known}")
    return TOWER_KINDS[kind].config_class.from_dict({**values, "model_type": kind})
