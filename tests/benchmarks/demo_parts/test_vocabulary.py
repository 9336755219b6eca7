"""The committed tokenizer is the one that the code builds, spells any text, and keeps words whole."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.demo_parts.vocabulary import build_tokenizer
from benchmarks.demo_parts.worded_scenes import find_word_ids
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL


@pytest.fixture(scope="module")
def committed() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    return tokenizer


def test_committed_tokenizer_keeps_answers_whole(committed: PreTrainedTokenizerBase) -> None:
    answers = ["red", "circle", "zero", "nine", "yes", "no", "first", "third"]
    pieces = [committed.tokenize(f" {answer}") for answer in answers]
    assert pieces == [[f"\u2581{answer}"] for answer in answers]


def test_built_tokenizer_puts_bos_first_and_special_tokens_like_llama() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("a red circle</s>").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.convert_ids_to_tokens([0, 3, 258]) == ["<unk>", "<0x00>", "<0xFF>"]


@pytest.mark.parametrize("text", ["two crosses.\nWhich?", "caf\u00e9 \u4e2d <image> 100%", "  spaces  "])
def test_any_text_survives_encoding_and_decoding(committed: PreTrainedTokenizerBase, text: str) -> None:
    assert committed.decode(committed(text, add_special_tokens=False).input_ids) == text


def test_find_word_ids_without_the_words_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer()
    pieces = {k: v for k, v in tokenizer.get_vocab().items() if k not in ("\u2581star", "\u2581left")}
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: pieces)
    with pytest.raises(ValueError, match="no single token for left, star"):
        find_word_ids(tokenizer)
