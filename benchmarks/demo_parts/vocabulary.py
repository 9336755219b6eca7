"""Builds the demo's tokenizer: BPE with byte fallback in the manner of Llama's, trained on the demo's own sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.tools.demo.samples import caption_sample, conversation_sample

VOCABULARY_SIZE = 1024
_NUM_SENTENCES = 2000
_SPECIALS = ("<unk>", "<s>", "</s>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PRINTABLE = [chr(code) for code in range(33, 127)]
_TEMPLATE_WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT: "
)
# Not asked about in the demo; training the small language model on other pictures will need them.
_FURTHER_WORDS = (
    "The There This How Is Are What Which Who In On the and of in on at to is are was with there this that it "
    "has have only all each every least most more than same different other one two three four five six seven "
    "eight nine ten exactly box boxes tower towers block blocks item items object objects picture scene wall "
    "base top bottom side edge corner touching near below above between left right small medium large big "
    "statement true false yes no what which where how many number largest total contain contains both white "
    "pink brown gray rectangle color shape describe question answer none nothing empty background not any "
    "some either another"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same every time."""
    tokenizer = Tokenizer(_with_bytes(_trained_pieces()))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cut at line breaks and punctuation, so that a word is the same token wherever it stands."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never", split=True),
        ]
    )


def _trained_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(_SPECIALS) - len(_BYTES),
        initial_alphabet=[*_PRINTABLE, "\n", "\u2581"],
        limit_alphabet=len(_PRINTABLE) + 2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _with_bytes(trained: Tokenizer) -> models.BPE:
    """Put special tokens and the 256 byte tokens before the trained pieces, as Llama's vocabulary does."""
    pieces = json.loads(trained.to_str())["model"]
    ordered = sorted(pieces["vocab"], key=pieces["vocab"].__getitem__)
    vocab = {token: index for index, token in enumerate([*_SPECIALS, *_BYTES, *ordered])}
    merges = [tuple(merge) for merge in pieces["merges"]]
    return models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)


def _corpus() -> Iterator[str]:
    for index in range(_NUM_SENTENCES):
        yield caption_sample("backbones", index).caption
        for turn in conversation_sample("backbones", index).conversations():
            # With and without a space in front: a question follows a line break or a word, an answer always a word.
            text = turn["value"].replace(DEFAULT_IMAGE_TOKEN, "")
            yield f" {text}" if turn["from"] == "gpt" else f"{text}\n {text}"
    for _ in range(20):
        yield _TEMPLATE_WORDS
        yield _FURTHER_WORDS
