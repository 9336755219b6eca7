"""A tokenizer read from a published folder and written to another one gives the same ids, for every reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from model.hub.tokenizer_files import portable, read_tokenizer, write_tokenizer
from tests.pipeline.samples.prompt.published_tokenizers import LAYOUTS, train_sentencepiece
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

TEXTS = ("What colour is the ball?", " two  spaces ", "a\nb</s>USER: c", "\u00e9 \u00bd 12", "<s>ball<unk> [loc] x")


def published(layout: str, folder: Path) -> Path:
    folder.mkdir()
    return LAYOUTS[layout](folder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_type", ["llava", "llava_next", "llava_onevision", "llava_qwen2"])
def test_ids_do_not_depend_on_the_folder_that_a_tokenizer_is_written_to(
    layout: str, model_type: str, tmp_path: Path
) -> None:
    tokenizer = read_tokenizer(str(published(layout, tmp_path / "published")))
    write_tokenizer(tokenizer, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": model_type}))
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert (again.padding_side, again.special_tokens_map) == (tokenizer.padding_side, tokenizer.special_tokens_map)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["add_eos_token"]) == ("PreTrainedTokenizerFast", False)
    assert config["add_bos_token"] == (tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


@pytest.mark.parametrize("layout", ["llama_2", "vicuna_1.3", "yi", "mistral_model"])
def test_tokenizer_model_alone_is_read_as_sentencepiece_reads_it(layout: str, tmp_path: Path) -> None:
    folder = published(layout, tmp_path / "published")
    assert not (folder / "tokenizer.json").exists()
    tokenizer = read_tokenizer(str(folder))
    reference = SentencePieceProcessor(model_proto=train_sentencepiece())
    for text in ("What colour is the ball?", "a\nb", "\u00e9 \u00bd 12", "two  spaces "):
        assert tokenizer(text, add_special_tokens=False).input_ids == reference.encode(text)


def spaces_first_by_id_and_last_by_score() -> bytes:
    """Return a tokenizer.model with runs of spaces as in Mistral's."""
    messages: Any = sentencepiece_model_pb2  # its members are made when it is imported
    proto = messages.ModelProto.FromString(train_sentencepiece())
    normal = next(idx for idx, piece in enumerate(proto.pieces) if piece.type == piece.NORMAL)
    runs = [proto.SentencePiece(piece="\u2581" * length, score=-1e9) for length in (2, 4, 3)]
    kept = [piece for piece in proto.pieces if set(piece.piece) != {"\u2581"} or len(piece.piece) == 1]
    ordered = [*kept[:normal], *runs, *kept[normal:]]
    del proto.pieces[:]
    proto.pieces.extend(ordered)
    data: bytes = proto.SerializeToString()
    return data


def test_merges_of_a_tokenizer_model_are_ordered_by_score_as_sentencepiece_does(tmp_path: Path) -> None:
    folder, model = published("llama_2", tmp_path / "published"), spaces_first_by_id_and_last_by_score()
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer, reference = read_tokenizer(str(folder)), SentencePieceProcessor(model_proto=model)
    by_transformers: Any = LlamaTokenizer.from_pretrained(folder)
    differ = 0
    for text in [f"ball{' ' * spaces}is red" for spaces in range(1, 12)] + ["a\n   the  ball", "is    the   ball"]:
        expected = reference.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        differ += by_transformers(text, add_special_tokens=False).input_ids != expected
    assert differ > 3


def test_legacy_decides_about_the_space_after_a_control_token(tmp_path: Path) -> None:
    def tokens(layout: str) -> list[str]:
        tokenizer = read_tokenizer(str(published(layout, tmp_path / layout)))
        found: list[str] = tokenizer.tokenize("ball</s>USER")
        return found

    legacy, new = tokens("vicuna_1.3"), tokens("llama_2")
    assert legacy[:2] == new[:2] == ["\u2581ball", "</s>"]
    assert (legacy[2][0], new[2][0]) == ("\u2581", "U")


@pytest.mark.parametrize("options", [{"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}])
def test_sentencepiece_model_that_transformers_reads_otherwise_is_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    folder = published("llama_2", tmp_path / "published")
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(**options))
    with pytest.raises(ValueError, match=r"tokenizer\.model: SentencePiece reads 'two  spaces ' as"):
        read_tokenizer(str(folder))


def test_length_eos_and_cleaning_that_a_tokenizer_asks_for_are_left_out(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(build_tokenizer("first").backend_tokenizer.to_str())
    backend.enable_truncation(5)
    backend.enable_padding(length=7, pad_id=0, pad_token="<unk>")
    special = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    source = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=True,
    )
    write_tokenizer(portable(source), tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0]).input_ids
    assert ids == build_tokenizer("first")(TEXTS[0]).input_ids
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (tree["truncation"], tree["padding"]) == (None, None)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["clean_up_tokenization_spaces"] is False


def test_tokenizer_that_puts_something_else_before_a_text_is_refused() -> None:
    source = portable(build_tokenizer("first"))
    source.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> <s> $A", special_tokens=[("<s>", 1), ("<unk>", 0)]
    )
    with pytest.raises(ValueError, match=r"puts \['<unk>', '<s>'\] before and \[\] after every text"):
        portable(source)


def test_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="no tokenizer found") as refused:
        read_tokenizer(str(tmp_path))
    assert "\n" not in str(refused.value)
