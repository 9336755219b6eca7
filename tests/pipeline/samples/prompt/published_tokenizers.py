"""Tokenizer folders in the layouts that models are published with, trained with SentencePiece and `tokenizers`."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer

from tests.pipeline.samples.prompt.published_templates import (
    GEMMA,
    LLAMA_2,
    LLAMA_3_2,
    MISTRAL,
    PHI_3,
    QWEN_2_5,
    QWEN_3,
    SMOLLM_2,
    SMOLLM_3,
)
from tests.pipeline.samples.prompt.toy_tokenizers import TEXT

_GPT_4: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern that Llama 3 and Qwen split text with (Qwen takes one digit at a time)."""
_IM: Final = ("<|im_start|>", "<|im_end|>")
_PHI: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_TURNS: Final = ("<start_of_turn>", "<end_of_turn>")


@functools.lru_cache
def train_sentencepiece(**options: Any) -> bytes:
    """Train a tokenizer.model as Llama's: BPE with byte fallback that keeps the text as it is."""
    settings: dict[str, Any] = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
    }
    settings |= {"remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2}
    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(TEXT * 20), model_writer=model, **(settings | options))
    return model.getvalue()


def _write(folder: Path, model_type: str, tokenizer_class: str, **fields: Any) -> Path:
    config = {"model_type": model_type, "vocab_size": 4096, "architectures": ["X"], "transformers_version": "4.40.0"}
    (folder / "config.json").write_text(json.dumps(config))
    given = {"tokenizer_class": tokenizer_class, "model_max_length": 4096, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(given | fields))
    return folder


def _llama_model(folder: Path, model_type: str = "llama", **fields: Any) -> Path:
    """Llama 2 and Vicuna as LLaVA's authors publish them: tokenizer.model and no tokenizer.json."""
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    tokens = {name: {"__type": "AddedToken", "content": text, **plain} for name, text in roles.items()}
    given = {"add_bos_token": True, "add_eos_token": False, "sp_model_kwargs": {}, "pad_token": None}
    return _write(folder, model_type, "LlamaTokenizer", **(given | tokens | fields))


def _llama_json(folder: Path, model_type: str, *, tokens: tuple[AddedToken, ...] = (), **fields: Any) -> Path:
    """The same with the tokenizer.json that transformers 4 converted it to: a normalizer writes the first space."""
    source = folder / "source"
    source.mkdir()
    backend = LlamaTokenizer.from_pretrained(_llama_model(source)).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tree = json.loads(backend.to_str()) | {"pre_tokenizer": None}
    made = Tokenizer.from_str(json.dumps(tree))
    made.add_tokens(list(tokens))
    bos = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    made.save(str(folder / "tokenizer.json"))
    shutil.rmtree(source)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _write(folder, model_type, "LlamaTokenizer", **(roles | fields))


def _gemma(folder: Path) -> Path:
    """No space before the first text, spaces replaced by a normalizer, turns marked by tokens of the vocabulary."""
    source = folder / "source"
    source.mkdir()
    backend = LlamaTokenizer.from_pretrained(_llama_model(source)).backend_tokenizer
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tree = json.loads(backend.to_str())
    for entry in tree["added_tokens"]:
        entry["content"] = {"<s>": "<bos>", "</s>": "<eos>"}.get(entry["content"], entry["content"])
    vocab = tree["model"]["vocab"]
    vocab["<bos>"], vocab["<eos>"] = vocab.pop("<s>"), vocab.pop("</s>")
    made = Tokenizer.from_str(json.dumps(tree))
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<pad>", *_TURNS)])
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))]
    )
    made.save(str(folder / "tokenizer.json"))
    shutil.rmtree(source)
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _write(folder, "gemma2", "GemmaTokenizer", padding_side="left", chat_template=GEMMA, **roles)


def _byte_level(
    folder: Path,
    model_type: str,
    tokenizer_class: str,
    *,
    special: tuple[str, ...],
    further: tuple[str, ...] = (),
    pattern: str | None = _GPT_4,
    adds_prefix_space: bool = False,
    bos: str | None = None,
    **fields: Any,
) -> Path:
    backend = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=adds_prefix_space, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_of]) if split else bytes_of
    backend.decoder = decoders.ByteLevel()
    if model_type.startswith("qwen"):
        backend.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=460, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in further])
    if bos is not None:
        ids = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.save(str(folder / "tokenizer.json"))
    return _write(folder, model_type, tokenizer_class, **fields)


def _llama_3(folder: Path) -> Path:
    names = ("start_header_id", "end_header_id", "eot_id", "end_of_text", "begin_of_text")
    special = tuple(f"<|{name}|>" for name in names)
    roles: dict[str, Any] = {"bos_token": special[4], "eos_token": special[2], "chat_template": LLAMA_3_2}
    return _byte_level(folder, "llama", "PreTrainedTokenizerFast", special=special, bos=special[4], **roles)


def _qwen(folder: Path, model_type: str, template: str, further: tuple[str, ...]) -> Path:
    special = ("<|endoftext|>", *_IM)
    roles: dict[str, Any] = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    pattern = _GPT_4.replace("{1,3}", "")
    return _byte_level(
        folder,
        model_type,
        "Qwen2Tokenizer",
        special=special,
        further=further,
        pattern=pattern,
        chat_template=template,
        add_bos_token=False,
        add_prefix_space=False,
        **roles,
    )


def _smollm(folder: Path, template: str) -> Path:
    special = ("<|endoftext|>", *_IM)
    roles: dict[str, Any] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return _byte_level(folder, "llama", "GPT2Tokenizer", special=special, pattern=None, chat_template=template, **roles)


def _phi_tokens() -> tuple[AddedToken, ...]:
    return tuple(AddedToken(text, special=True, normalized=False, rstrip=True) for text in (*_PHI, "<|endoftext|>"))


LAYOUTS: Final[dict[str, Callable[[Path], Path]]] = {
    "llama_2": lambda folder: _llama_model(folder, legacy=False, chat_template=LLAMA_2),
    "vicuna_1.3": lambda folder: _llama_model(folder, legacy=True, padding_side="right"),
    "yi": lambda folder: _llama_model(folder, legacy=True, add_bos_token=False),
    "llama_adds_eos": lambda folder: _llama_model(folder, legacy=False, add_eos_token=True),
    "llama_no_prefix": lambda folder: _llama_model(folder, legacy=False, add_prefix_space=False),
    "vicuna_1.5_json": lambda folder: _llama_json(folder, "llama", legacy=False, pad_token="<unk>"),
    "vicuna_1.3_json": lambda folder: _llama_json(folder, "llama", legacy=True),
    "mistral": lambda folder: _llama_json(folder, "mistral", legacy=False, chat_template=MISTRAL),
    "mistral_model": lambda folder: _llama_model(folder, "mistral", legacy=True, chat_template=MISTRAL),
    "phi_3": lambda folder: _llama_json(
        folder, "phi3", tokens=_phi_tokens(), legacy=False, chat_template=PHI_3, pad_token="<|endoftext|>"
    ),
    "added_tokens": lambda folder: _llama_json(
        folder,
        "llama",
        tokens=(
            *(AddedToken(text, special=True, normalized=False) for text in _IM),
            AddedToken("[loc]", normalized=True),
            AddedToken("ball", lstrip=True, normalized=False),
            AddedToken("<image>", rstrip=True, normalized=False),
        ),
        legacy=False,
        chat_template=QWEN_2_5,
    ),
    "gemma": _gemma,
    "llama_3": _llama_3,
    "qwen_2.5": lambda folder: _qwen(folder, "qwen2", QWEN_2_5, ("<tool_call>", "</tool_call>")),
    "qwen_3": lambda folder: _qwen(folder, "qwen3", QWEN_3, ("<tool_call>", "</tool_call>", "<think>", "</think>")),
    "smollm_2": lambda folder: _smollm(folder, SMOLLM_2),
    "smollm_3": lambda folder: _smollm(folder, SMOLLM_3),
    "gpt_prefix_space": lambda folder: _byte_level(
        folder,
        "gpt2",
        "GPT2Tokenizer",
        special=("<s>", "</s>", *_IM),
        pattern=None,
        adds_prefix_space=True,
        add_prefix_space=True,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=SMOLLM_2,
    ),
}
"""Name -> writes the folder."""
