from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model.backbones.llama import LlavaLlamaForCausalLM
from model.hub.weights import build_llava
from model.llava.vision_tokens import add_vision_tokens
from tests.model.conftest import VOCAB, WIDTH
from tests.model.tiny import save_tiny_backbone


def arguments(
    patch: bool = False, wrap: bool = False, tune: bool = False, adapter: str | None = None
) -> SimpleNamespace:
    return SimpleNamespace(
        mm_use_im_patch_token=patch,
        mm_use_im_start_end=wrap,
        tune_mm_mlp_adapter=tune,
        pretrain_mm_mlp_adapter=adapter,
    )


def tables(model: LlavaLlamaForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    return model.model.embed_tokens.weight, model.lm_head.weight


def test_neither_token_changes_nothing(llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    llava.initialize_vision_tokenizer(arguments(tune=True), tokenizer)
    assert len(tokenizer) == VOCAB
    assert tables(llava)[0].shape == (VOCAB, WIDTH)
    assert all(table.requires_grad for table in tables(llava))


def test_patch_token_gets_the_mean_row(llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    before = [table.detach().clone() for table in tables(llava)]
    llava.initialize_vision_tokenizer(arguments(patch=True), tokenizer)
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == VOCAB
    for old, new in zip(before, tables(llava), strict=True):
        assert torch.equal(new[:VOCAB], old)
        assert torch.allclose(new[VOCAB], old.mean(dim=0), atol=1e-6)


def test_patch_token_with_tuning_freezes_both_tables(
    llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    llava.initialize_vision_tokenizer(arguments(patch=True, tune=True), tokenizer)
    assert not any(table.requires_grad for table in tables(llava))


def test_start_end_get_the_mean_of_all_rows_before(
    llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    llava.initialize_vision_tokenizer(arguments(patch=True, wrap=True), tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [VOCAB, VOCAB + 1, VOCAB + 2]
    for table in tables(llava):
        mean = table[: VOCAB + 1].mean(dim=0)
        assert torch.allclose(table[VOCAB + 1 :], mean.expand(2, -1), atol=1e-6)
        assert table.requires_grad
    assert llava.config.mm_use_im_start_end
    assert llava.config.vocab_size == VOCAB + 3


def test_start_end_with_tuning_trains_the_input_table_only(
    llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    llava.requires_grad_(False)
    llava.initialize_vision_tokenizer(arguments(wrap=True, tune=True), tokenizer)
    assert [table.requires_grad for table in tables(llava)] == [True, False]


@pytest.mark.parametrize("whole_table", [True, False])
def test_adapter_rows_are_copied_to_the_tokens_ids(
    llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, whole_table: bool
) -> None:
    saved = torch.randn(VOCAB + 2 if whole_table else 2, WIDTH)
    torch.save({"model.embed_tokens.weight": saved}, tmp_path / "mm_projector.bin")
    llava.initialize_vision_tokenizer(arguments(wrap=True, adapter=str(tmp_path)), tokenizer)
    inputs, outputs = tables(llava)
    assert torch.equal(inputs[VOCAB:], saved[-2:])
    assert torch.allclose(outputs[VOCAB:], outputs[:VOCAB].mean(dim=0).expand(2, -1), atol=1e-6)


def test_adapter_with_tokens_already_present_copies_by_id(
    llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    llava.initialize_vision_tokenizer(arguments(wrap=True), tokenizer)
    tokenizer.add_tokens(["later"])
    llava.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    saved = torch.randn(2, WIDTH)
    torch.save({"model.embed_tokens.weight": saved}, tmp_path / "mm_projector.bin")
    llava.initialize_vision_tokenizer(arguments(wrap=True, adapter=str(tmp_path)), tokenizer)
    assert torch.equal(tables(llava)[0][VOCAB : VOCAB + 2], saved)


def test_adapter_of_other_shape_names_expected_and_found(
    llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.save({"model.embed_tokens.weight": torch.zeros(3, WIDTH)}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match=rf"\[{VOCAB + 2}, {WIDTH}\].*\[2, {WIDTH}\].*found shape \[3, {WIDTH}\]"):
        llava.initialize_vision_tokenizer(arguments(wrap=True, adapter=str(tmp_path)), tokenizer)


def test_padded_table_is_not_shrunk(llava: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    llava.resize_token_embeddings(113, mean_resizing=False)
    llava.initialize_vision_tokenizer(arguments(wrap=True), tokenizer)
    assert tables(llava)[0].shape[0] == 113


def test_tied_tables_with_tuning_are_refused(llama_config: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    tied = LlamaForCausalLM(LlamaConfig.from_dict({**llama_config.to_dict(), "tie_word_embeddings": True}))
    with pytest.raises(ValueError, match="ties them into one tensor"):
        add_vision_tokens(tied, arguments(wrap=True, tune=True), tokenizer)


def test_bias_of_the_head_gets_a_mean_entry_and_is_frozen_with_its_table(
    tower_path: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build_llava(save_tiny_backbone("phi", tmp_path), tower_path)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(VOCAB) / 7)
    model.initialize_vision_tokenizer(arguments(patch=True, tune=True), tokenizer)
    assert model.lm_head.bias.shape == (VOCAB + 1,)
    assert torch.allclose(model.lm_head.bias[VOCAB], torch.tensor((VOCAB - 1) / 14))
    assert not model.lm_head.bias.requires_grad
