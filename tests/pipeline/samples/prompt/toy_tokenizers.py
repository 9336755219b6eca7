"""Small tokenizers of the kinds that differ: SentencePiece-like with and without legacy, byte-level ChatML."""

from __future__ import annotations

import functools
import json
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT:",
    "What colour is the ball? The ball is red. How many cubes are there? There are three cubes.",
    "system user assistant You are a helpful assistant.\n Is there a green triangle left of the blue circle?",
]
TokenizerKind = Literal["legacy", "first", "normalizer", "chatml"]
SENTENCEPIECE: tuple[TokenizerKind, ...] = ("legacy", "first", "normalizer")


@functools.lru_cache
def build_tokenizer(kind: TokenizerKind) -> PreTrainedTokenizerFast:
    """Return a tokenizer.

    `legacy` puts a space before text after every control token, `first` before the very first text only (both as
    Metaspace pre-tokenizers), `normalizer` is `legacy` in the form of older Llama files; these three add BOS. `chatml`
    is byte-level, trims offsets and adds no BOS.
    """
    return _chatml() if kind == "chatml" else _llama(kind)


def _llama(kind: TokenizerKind) -> PreTrainedTokenizerFast:
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tree = json.loads(tokenizer.to_str())
    scheme = "always" if kind == "legacy" else "first"
    tree["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    if kind == "normalizer":
        prepend = {"type": "Prepend", "prepend": "\u2581"}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        tree["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
        tree["pre_tokenizer"] = None
    tree["added_tokens"] = [entry for entry in tree["added_tokens"] if entry["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def _chatml() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>", "</s>")]
    )
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
