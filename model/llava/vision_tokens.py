"""Special tokens around images: added to the tokenizer, given embedding rows, and made trainable as LLaVA does.

Shapes: V vocabulary rows, D language-model width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.files.adapter import EMBEDDING_KEY, read_adapter
from model.fusion.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN

_START_END: Final = [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]


class VisionTokenArgs(Protocol):
    """The model arguments that decide about special tokens."""

    mm_use_im_patch_token: bool
    mm_use_im_start_end: bool
    tune_mm_mlp_adapter: bool
    pretrain_mm_mlp_adapter: str | Path | None


def add_vision_tokens(model: PreTrainedModel, model_args: VisionTokenArgs, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the tokens that `model_args` asks for; new rows of both tables start as the mean of the rows before them.

    With `mm_use_im_start_end` and `tune_mm_mlp_adapter` the input table becomes trainable (the forward pass lets a
    gradient through to the two wrapping tokens only) and the output table is frozen; with only the patch token both
    are frozen. Rows of the two tokens are taken from `pretrain_mm_mlp_adapter` when given, their ids noted in the
    config.

    Raises:
        ValueError: input and output table are one tied tensor although one is to be trained and the other not, or
            the adapter holds no embedding rows that fit.
    """
    wraps, tunes = model_args.mm_use_im_start_end, model_args.tune_mm_mlp_adapter
    if wraps and tunes:
        refuse_tied_tables(model)
    if model_args.mm_use_im_patch_token:
        _add_rows(model, tokenizer, extend_tokenizer(tokenizer, with_patch=True, with_start_end=False))
    if wraps:
        _add_rows(model, tokenizer, extend_tokenizer(tokenizer, with_patch=False, with_start_end=True))
        model.config.im_start_end_ids = _ids(tokenizer)
        if model_args.pretrain_mm_mlp_adapter:
            load_wrapping_rows(
                model, read_adapter(model_args.pretrain_mm_mlp_adapter), model_args.pretrain_mm_mlp_adapter
            )
    if tunes and (wraps or model_args.mm_use_im_patch_token):
        _set_trainable(model, input_table=wraps)


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, *, with_patch: bool, with_start_end: bool) -> int:
    """Add the tokens around images to a tokenizer, unless it has them; returns its size before.

    Data side and model side both call this, so that their ids agree.
    """
    old_size = len(tokenizer)
    patch = [DEFAULT_IMAGE_PATCH_TOKEN] if with_patch else []
    tokenizer.add_tokens(patch + (_START_END if with_start_end else []), special_tokens=True)
    return old_size


def load_wrapping_rows(model: PreTrainedModel, adapter: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy the embeddings of `<im_start>` and `<im_end>` from an adapter's tensors.

    Raises:
        ValueError: the adapter holds no embedding rows that fit.
    """
    ids = model.config.im_start_end_ids
    table = cast(nn.Embedding, model.get_input_embeddings()).weight
    with torch.no_grad():
        table[ids] = _wrapping_rows(adapter, ids, table, where).to(table)


def refuse_tied_tables(model: PreTrainedModel) -> None:
    """Raise ValueError if input and output embeddings, of which only the first are to learn, are one tensor."""
    inputs, outputs = _tables(model)
    if inputs is outputs:
        raise ValueError(
            "mm_use_im_start_end in projector pretraining trains the input embeddings and freezes the output "
            "embeddings, but this model ties them into one tensor; choose a language model with tie_word_embeddings "
            "false, or leave mm_use_im_start_end out"
        )


def _tables(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    head = cast(nn.Linear, model.get_output_embeddings())
    return cast(nn.Embedding, model.get_input_embeddings()).weight, head.weight


def _head_bias(model: PreTrainedModel) -> list[Tensor]:
    """Return the bias [V] of the output head, as a list that is empty without one."""
    bias = cast(nn.Linear, model.get_output_embeddings()).bias
    return [] if bias is None else [bias]


def _add_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_size: int) -> None:
    """Give tokens from `old_size` on their rows, each the mean of the rows before them; rows that are missing too."""
    old_size = min(old_size, _tables(model)[0].shape[0])
    if len(tokenizer) > _tables(model)[0].shape[0]:
        # mean_resizing would draw new rows from a normal distribution; the mean itself is deterministic.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if len(tokenizer) > old_size:
        with torch.no_grad():
            for table in (*_tables(model), *_head_bias(model)):
                table[old_size : len(tokenizer)] = table[:old_size].mean(dim=0)


def _ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [cast(int, tokenizer.convert_tokens_to_ids(token)) for token in _START_END]


def _wrapping_rows(adapter: Mapping[str, Tensor], ids: list[int], table: Tensor, path: str | Path) -> Tensor:
    saved = adapter.get(EMBEDDING_KEY)
    if saved is not None and saved.shape == table.shape:
        return saved[ids]
    if saved is not None and saved.shape == (len(ids), table.shape[1]):
        return saved
    found = "nothing under that name" if saved is None else f"shape {list(saved.shape)}"
    raise ValueError(
        f"{path}: expected {EMBEDDING_KEY} of shape {list(table.shape)} (whole table) or "
        f"{[len(ids), table.shape[1]]} (<im_start>, <im_end>), found {found}"
    )


def _set_trainable(model: PreTrainedModel, input_table: bool) -> None:
    inputs, outputs = _tables(model)
    inputs.requires_grad_(input_table)
    for frozen in (outputs, *_head_bias(model)):
        frozen.requires_grad_(False)
