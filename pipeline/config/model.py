"""Config section `model`: the parts a LLaVA model is put together from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model.fusion.resolution import PatchMerge
from pipeline.config.section import Fixed, Free, Section


class ModelConfig(Section):
    """The parts a LLaVA model is put together from."""

    language_model: Annotated[str, Fixed]
    """Hugging Face folder or hub id of the causal language model; for finetuning it may be a LLaVA folder."""
    vision_tower: Annotated[str | tuple[str, ...] | None, Fixed] = None
    """Folder or hub id of the vision tower; a list joins several; null when the language model is a LLaVA folder."""
    mm_projector_type: Annotated[str, Fixed] = "mlp2x_gelu"
    """linear, mlpNx_gelu, resamplerQ_N and more; `pool2_` or `shuffle2_` before it merges 2 x 2 patches."""
    mm_vision_select_layer: Annotated[int | tuple[int, ...], Fixed] = -2
    """Index into the tower's hidden states; 0 is the embedding output. A list joins several along the width."""
    mm_vision_select_feature: Annotated[Literal["patch", "cls_patch"], Fixed] = "patch"
    """`patch` drops the class token, `cls_patch` keeps it."""
    mm_vision_scales: Annotated[tuple[int, ...], Fixed, Field(min_length=1)] = (1,)
    """Rising multiples of the tower's image size at which it sees every image (S2); [1, 2] doubles the width."""
    mm_use_im_start_end: Annotated[bool, Fixed] = False
    """Put every image between `<im_start>` and `<im_end>`, whose embeddings learn in both stages."""
    mm_use_im_patch_token: Annotated[bool, Fixed] = False
    """Add `<im_patch>` to the vocabulary, as some published checkpoints have it; it stands for nothing."""
    mm_patch_merge_type: Annotated[PatchMerge | None, Fixed] = None
    """Order of tiles' features; spatial_unpad learns a newline per row. Null: that of a LLaVA folder, else flat."""
    pretrain_mm_mlp_adapter: Annotated[str | None, Fixed] = None
    """Projector file (safetensors, or an original mm_projector.bin), or the folder of a finished pretraining run."""
    accept_projector: Annotated[bool, Free] = False
    """Use a projector file although it says that it was trained on another tower, layer, pooling or language model."""
    attention: Annotated[Literal["auto", "sdpa", "varlen", "flex", "flash_attention_2", "flash_attention_4"], Free] = (
        "auto"
    )
    """Attention kernel for packed rows; `auto` on a GPU: flash_attention_4 (extra `flash4`) if it runs, else varlen."""
