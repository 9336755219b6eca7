"""Special tokens around images: added to the tokenizer, given embedding rows, and made trainable as LLaVA does.

Shapes: V vocabulary rows, D language-model width.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.adapter import EMBEDDING_KEY, read_adapter
from model.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN


class VisionTokenArgs(Protocol):
    """The model arguments that decide about special tokens."""

    mm_use_im_patch_token: bool
    mm_use_im_start_end: bool
    tune_mm_mlp_adapter: bool
    pretrain_mm_mlp_adapter: str | None


def add_vision_tokens(model: PreTrainedModel, model_args: VisionTokenArgs, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the tokens that `model_args` asks for; new rows of both tables start as the mean of the rows before them.

    With `mm_use_im_start_end` and `tune_mm_mlp_adapter` the input table becomes trainable (the forward pass lets a
    gradient through to the two wrapping tokens only) and the output table is frozen; with only the patch token both
    are frozen. Rows of the two tokens are taken from `pretrain_mm_mlp_adapter` when given.

    Raises:
        ValueError: input and output table are one tied tensor although one is to be trained and the other not, or
            the adapter holds no embedding rows that fit.
    """
    if model_args.mm_use_im_patch_token:
        _add_tokens(model, tokenizer, [DEFAULT_IMAGE_PATCH_TOKEN])
    if model_args.mm_use_im_start_end:
        if model_args.tune_mm_mlp_adapter and _tables(model)[0] is _tables(model)[1]:
            raise ValueError(
                "mm_use_im_start_end with tune_mm_mlp_adapter trains the input embeddings and freezes the output "
                "embeddings, but this model ties them into one tensor; set tie_word_embeddings to false"
            )
        _add_tokens(model, tokenizer, [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN])
        if model_args.pretrain_mm_mlp_adapter:
            _load_rows(model, tokenizer, model_args.pretrain_mm_mlp_adapter)
        if model_args.tune_mm_mlp_adapter:
            _set_trainable(model, input_table=True)
    elif model_args.mm_use_im_patch_token and model_args.tune_mm_mlp_adapter:
        _set_trainable(model, input_table=False)


def _tables(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    head = cast(nn.Linear, model.get_output_embeddings())
    return cast(nn.Embedding, model.get_input_embeddings()).weight, head.weight


def _add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    old_size = len(tokenizer)
    tokenizer.add_tokens(tokens, special_tokens=True)
    if len(tokenizer) > _tables(model)[0].shape[0]:
        # mean_resizing would draw new rows from a normal distribution; the mean itself is deterministic.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if len(tokenizer) > old_size:
        with torch.no_grad():
            for table in _tables(model):
                table[old_size : len(tokenizer)] = table[:old_size].mean(dim=0)


def _load_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    ids = [cast(int, tokenizer.convert_tokens_to_ids(t)) for t in (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN)]
    table, _ = _tables(model)
    rows = _wrapping_rows(read_adapter(path), ids, table, path)
    with torch.no_grad():
        table[ids] = rows.to(table)


def _wrapping_rows(adapter: dict[str, Tensor], ids: list[int], table: Tensor, path: str) -> Tensor:
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
    outputs.requires_grad_(False)
