"""Whole models on disk: put together from a language model and a tower, saved, loaded again, set up for a stage."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from model.backbones.registry import (
    Backbone,
    backbone_of_language_model,
    backbone_of_llava,
    refuse_transformers_folder,
)
from model.files.adapter import load_projector, projector_state, write_projector
from model.files.checkpoint_files import read_checkpoint_config, read_checkpoint_shapes, read_tensors
from model.files.file_mode import follow_umask
from model.files.loading import check_shapes, fill_neutrally, load_strictly
from model.fusion.resolution import PatchMerge
from model.hub.quantization import Quantization, quantization_config
from model.llava.attention import AttentionKernel, enable_packed_attention
from model.llava.published_fields import check_published_fields
from model.llava.vision_tokens import refuse_tied_tables
from model.llava_arch import LlavaForCausalLM
from model.vision.pixels import read_pixel_stats
from model.vision.tower_builder import VisionArgs, build_vision_tower
from model.vision.vision_tower import SelectFeature, VisionTower

__all__ = [
    "LlavaModel",
    "build_llava",
    "check_weights",
    "load_llava",
    "load_projector",
    "load_weights",
    "read_llava_config",
    "pretrained_state",
    "save_llava",
    "save_projector",
    "set_trainable",
]

logger = logging.getLogger(__name__)

LlavaModel = LlavaForCausalLM
"""Any backbone's class: the mixin over a language model of transformers."""

Stage = Literal["pretrain", "finetune"]
_TOWER_PREFIX: Final = r"^(?:model|transformer)\.vision_tower\.vision_tower\."
_UNREAD: Final = r"(?:rotary_emb\.inv_freq|position_ids|attn\.(?:masked_)?bias)$|^(?:model|transformer)\.image_newline$"
"""Buffers that old checkpoints carry and models compute, and the newline of a model that merges tiles without it."""


def build_llava(
    language_model: str,
    vision_tower: str | Sequence[str],
    projector_type: str = "mlp2x_gelu",
    select_layer: int | tuple[int, ...] = -2,
    select_feature: SelectFeature = "patch",
    scales: tuple[int, ...] = (1,),
    projector_path: str | Path | None = None,
    patch_merge: PatchMerge = "flat",
    dtype: torch.dtype = torch.float32,
    attention: AttentionKernel = "auto",
    quantize: Quantization | None = None,
) -> LlavaModel:
    """Join a pretrained language model, a pretrained tower and a new or pretrained projector.

    Code from a checkpoint is not run. The projector stays in float32 for every `dtype`, because it is trained
    next, and rounding it to bfloat16 in between would lose part of the pretraining.

    Args:
        language_model: folder or hub id of a language model.
        vision_tower: folder or hub id of a vision tower, or of several to be joined.
        projector_type: see `build_vision_projector`.
        select_layer: see `TowerSpec`.
        select_feature: see `TowerSpec`.
        scales: see `TowerSpec`.
        projector_path: file or folder written by `save_projector`, or an original `mm_projector.bin`.
        patch_merge: how the features of an image's tiles are laid out; `spatial_unpad` adds a learnt newline.
        dtype: type of the language model and the tower.
        attention: kernel for packed rows.
        quantize: how the language model's weights are kept in few bits; None keeps them whole.

    Raises:
        ValueError: a folder is missing or of an unknown kind, or the projector file does not fit.
    """
    values = read_checkpoint_config(language_model, "language model")
    backbone = backbone_of_language_model(values, language_model)
    config = backbone.config_class.from_dict({**values, "model_type": backbone.config_class.model_type})
    model = load_weights(backbone, language_model, config, dtype, quantize=quantize)
    model.get_model().initialize_vision_modules(
        VisionArgs(
            vision_tower=vision_tower,
            mm_vision_select_layer=select_layer,
            mm_vision_select_feature=select_feature,
            mm_vision_scales=scales,
            mm_projector_type=projector_type,
            mm_patch_merge_type=patch_merge,
            pretrain_mm_mlp_adapter=projector_path,
        )
    )
    _tower(model).to(dtype)
    model.get_model().mm_projector.float()
    if model.packs_rows:
        enable_packed_attention(model, attention)
    return model


def load_llava(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    attention: AttentionKernel = "auto",
    quantize: Quantization | None = None,
    vision_tower: str | None = None,
) -> LlavaModel:
    """Load a complete LLaVA model: one of `save_llava`, or a published one with LLaVA's original tensor names.

    The tower comes from inside the checkpoint when it is there, else from the folder or hub id that its config names,
    or from `vision_tower` in its place.

    Raises:
        ValueError: the folder is missing, is not a LLaVA model, or lacks tensors; all are named.
    """
    backbone, config = _read_llava(str(path), vision_tower)
    model = load_weights(backbone, str(path), config, dtype, quantize=quantize)
    tower = _tower(model)
    if not tower.is_loaded:
        inside = {re.sub(_TOWER_PREFIX, "", name): t for name, t in read_tensors(str(path), _is_in_tower).items()}
        if inside:
            tower.load_state(inside, str(path), dtype)
            model.config.mm_vision_weights = "checkpoint"
        else:
            tower.load_model(dtype)
    _describe_tower(model, str(path))
    tower.set_frozen(True)
    if model.packs_rows:
        enable_packed_attention(model, attention)
    return model


def _describe_tower(model: LlavaModel, path: str) -> None:
    """Note in the config what original checkpoints leave to the tower's folder, so that a copy needs no other folder.

    Args:
        model: with its tower.
        path: of the checkpoint, whose own image processor counts before the tower's.

    Raises:
        ValueError: an image processor is not supported.
    """
    config, tower = model.config, model.get_vision_tower()
    if not isinstance(tower, VisionTower):  # several are described when they are joined
        return
    if config.mm_vision_config is None:
        config.mm_vision_config = tower.config.to_dict()
    if config.mm_image_mean is None or config.mm_image_std is None:
        stats = read_pixel_stats(path) or read_pixel_stats(tower.spec.name)
        if stats is not None:
            config.mm_image_mean, config.mm_image_std = list(stats.mean), list(stats.std)


def load_weights(
    backbone: Backbone,
    name: str | None,
    config: PretrainedConfig,
    dtype: torch.dtype,
    state: dict[str, Tensor] | None = None,
    quantize: Quantization | None = None,
) -> LlavaModel:
    """Make a model with the weights of a folder or hub id, or with `state` when there is no name.

    Raises:
        ValueError: tensors are missing or misshaped; all are named.
    """
    if name is not None:
        read_checkpoint_shapes(name)  # names a damaged file, which the library does not
    loaded, lacking = load_strictly(
        backbone.model_class,
        config,
        name,
        state,
        may_lack=_unneeded_in_tower(backbone, config),
        may_add=_may_stay_unread,
        where=str(name or cast(Any, config).mm_vision_tower),
        dtype=dtype,
        quantization_config=None if quantize is None else quantization_config(quantize, dtype),
    )
    fill_neutrally(loaded, lacking)
    model = cast(LlavaModel, loaded)
    _describe_head(model)
    return model


def check_weights(name: str) -> None:
    """Compare the tensors of a language model, or of a complete LLaVA model, with its config; no value is read.

    Raises:
        ValueError: a file is damaged, or tensors are missing, unexpected or of another shape.
    """
    values = read_checkpoint_config(name, "language model")
    llava = backbone_of_llava(values)
    if llava is not None:
        check_published_fields(values, name)
    backbone = llava or backbone_of_language_model(values, name)
    config = backbone.config_class.from_dict({**values, "model_type": backbone.config_class.model_type})
    shapes = read_checkpoint_shapes(name)
    may_lack = _unneeded_in_tower(backbone, config)
    check_shapes(backbone.model_class, config, shapes, may_lack=may_lack, may_add=_may_stay_unread, where=name)
    fields = cast(Any, config)
    if not fields.mm_vision_tower or fields.mm_vision_weights == "checkpoint":
        return
    tower = build_vision_tower(config, delay_load=True)
    inside = {re.sub(_TOWER_PREFIX, "", own): shape for own, shape in shapes.items() if _is_in_tower(own)}
    if inside and isinstance(tower, VisionTower):
        tower.check_shapes(inside, name)
    else:
        tower.check()


def _unneeded_in_tower(backbone: Backbone, config: PretrainedConfig) -> set[str]:
    """Return the tensors of a tower inside the checkpoint that no selected feature needs, as the model names them."""
    fields = cast(Any, config)
    if not fields.mm_vision_tower or fields.mm_vision_weights != "checkpoint":
        return set()
    prefix = f"{backbone.model_class.base_model_prefix}.vision_tower."
    return {prefix + own for own in build_vision_tower(config, delay_load=True).unneeded_tensors()}


def _may_stay_unread(name: str) -> bool:
    """Whether a tensor may have no place in the model: buffers of old files, a tower that is loaded on its own."""
    return _is_in_tower(name) or re.search(_UNREAD, name) is not None


def _describe_head(model: LlavaModel) -> None:
    """Let the config say whether the output head is the input embeddings: a checkpoint with its own head has it apart,

    whatever its flag says, and readers that go by the flag would drop it.
    """
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and not tied:
        logger.info("%s holds an lm_head of its own; its tie_word_embeddings is taken as false", model.name_or_path)
    model.config.tie_word_embeddings = tied


def read_llava_config(path: str | Path, vision_tower: str | None = None) -> PretrainedConfig:
    """Read the config of a complete LLaVA model, without its weights; `vision_tower` replaces the tower it names.

    Raises:
        ValueError: the folder is missing or is not a LLaVA model.
    """
    return _read_llava(str(path), vision_tower)[1]


def save_llava(model: LlavaModel, path: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write config and all weights, the tower's included, as a folder that `load_llava` reads.

    Args:
        model: the model.
        path: folder.
        state: weights to write in place of the model's own, which may be sharded over processes.
    """
    model.save_pretrained(str(path), state_dict=None if state is None else dict(state))
    follow_umask(path)


def save_projector(model: LlavaModel, path: str | Path) -> Path:
    """Write the model's projector; see `write_projector`."""
    return write_projector(pretrained_state(model), path, model.config.im_start_end_ids)


def pretrained_state(model: LlavaModel) -> dict[str, Tensor]:
    """Return what projector pretraining leaves, possibly sharded: see `projector_state`.

    With `<im_start>` and `<im_end>` the input embeddings are there too, whole; `write_projector` picks the two rows. A
    vision tower that learns is there as well.
    """
    state = projector_state(model.get_model())
    tower = model.get_vision_tower()
    if tower is not None and not tower.frozen:
        state |= {f"vision_tower.{name}": own for name, own in tower.named_parameters() if own.requires_grad}
    if model.config.im_start_end_ids:
        state["embed_tokens.weight"] = model.get_model().embed_tokens.weight
    return state


def set_trainable(model: LlavaModel, stage: Stage) -> None:
    """Choose what learns: `pretrain` the projector, `finetune` projector and language model. The tower is frozen.

    In pretraining with `<im_start>` and `<im_end>` the input embeddings learn too (only those two rows get gradients).

    Raises:
        ValueError: `stage` is unknown, or only the input embeddings are to learn but are one tensor with the output's.
    """
    if stage not in ("pretrain", "finetune"):
        raise ValueError(f"stage is {stage!r}; known: pretrain, finetune")
    for parameter in model.parameters():
        parameter.requires_grad_(stage == "finetune" and parameter.is_floating_point())  # bytes cannot learn
    for parameter in projector_parameters(model):
        parameter.requires_grad_(True)
    _tower(model).set_frozen(True)
    model.config.tune_mm_mlp_adapter = stage == "pretrain"
    if stage == "pretrain" and model.config.mm_use_im_start_end:
        refuse_tied_tables(model)
        model.get_input_embeddings().weight.requires_grad_(True)


def projector_parameters(model: LlavaModel) -> list[nn.Parameter]:
    """Return what projector pretraining learns: the projector's weights and the image newline."""
    body = model.get_model()
    newline = [] if body.image_newline is None else [body.image_newline]
    return [*body.mm_projector.parameters(), *newline]


def _is_in_tower(name: str) -> bool:
    return re.match(_TOWER_PREFIX, name) is not None


def _tower(model: LlavaModel) -> Any:
    tower = model.get_vision_tower()
    if tower is None:
        raise ValueError("the model has no vision tower; build it with build_llava or initialize_vision_modules")
    return tower


def _read_llava(path: str, vision_tower: str | None = None) -> tuple[Backbone, PretrainedConfig]:
    values = read_checkpoint_config(path, "LLaVA model")
    if vision_tower is not None:
        values = {**values, "mm_vision_tower": vision_tower}
    refuse_transformers_folder(values, path)
    backbone = backbone_of_llava(values)
    if backbone is None:
        raise ValueError(
            f"{path} has model_type {values.get('model_type')!r}, which is not a LLaVA model of a known backbone; "
            "a language model alone is joined with a tower by build_llava"
        )
    check_published_fields(values, path)
    return backbone, backbone.config_class.from_dict({**values, "model_type": backbone.config_class.model_type})
