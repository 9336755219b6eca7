"""A tokenizer that keeps control tokens of the template apart from the same letters in user text.

Wraps the Rust tokenizer of a Hugging Face fast tokenizer. Ordinary text goes through it unchanged. Text that spells a
control token (`</s>`, `<|im_end|>`) is tokenized again without those tokens, so that it stays text.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from model.fusion.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)
from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.conversation import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKENS = frozenset((DEFAULT_IMAGE_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN))

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class TokenizedRun(NamedTuple):
    """Tokens of text and control tokens between two images."""

    ids: Ids
    """int64 `[T]`."""
    supervised: Mask
    """bool `[T]`: the token overlaps a supervised span."""


class TextTokenizer:
    """Tokenizes runs of spans; picklable, without state that changes.

    Attributes:
        bos_id: id that the tokenizer puts before every text, or None when it puts none.
        definition: everything that decides ids, as JSON.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool = True) -> None:
        """Copy what is needed out of a Hugging Face tokenizer.

        Args:
            tokenizer: with a fast backend.
            adds_bos: put the id before every text that the tokenizer puts there; False where the template writes it.

        Raises:
            ValueError: it is not backed by the `tokenizers` library.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__} has no fast backend; convert it to a tokenizer.json first"
            )
        first = tokenizer("a").input_ids[:1]
        bos_id = first[0] if adds_bos and first == [tokenizer.bos_token_id] else None
        facts = {"tokenizer": _plain_definition(backend), "bos_id": bos_id, "unk_id": tokenizer.unk_token_id}
        self._build(json.dumps(facts, sort_keys=True))

    def __reduce__(self) -> tuple[object, ...]:
        """Travel as JSON; a process that receives the same tokenizer again reuses the one it has built."""
        return _restore, (self.definition,)

    def _build(self, definition: str) -> None:
        facts = json.loads(definition)
        tree = facts["tokenizer"]
        self.definition = definition
        self.bos_id: int | None = facts["bos_id"]
        controls = [entry for entry in tree["added_tokens"] if _is_control(entry)]
        self._control_ids = {entry["content"]: int(entry["id"]) for entry in controls}
        self._swallowing = {int(entry["id"]): entry for entry in controls if entry["lstrip"] or entry["rstrip"]}
        self._whole = _load(tree)
        literal = {**tree, "added_tokens": [entry for entry in tree["added_tokens"] if not _is_control(entry)]}
        self._literal_first = _load(literal)
        self._literal_next = _load(_without_first_prefix(literal))
        self._is_control = np.zeros(max(self._whole.get_vocab(with_added_tokens=True).values()) + 1, dtype=np.bool_)
        self._is_control[list(self._control_ids.values())] = True
        # the id of unk also stands for ordinary text outside the vocabulary: only its letters show that it was typed
        self._unk_letters = [text for text, token_id in self._control_ids.items() if token_id == facts["unk_id"]]
        self._is_control[[self._control_ids[text] for text in self._unk_letters]] = False

    def check_control_tokens(self, tokens: set[str], template: str) -> None:
        """Verify that each control token of a template is one token here.

        Raises:
            ValueError: one is not; the model could never learn to end an answer.
        """
        missing = sorted(tokens - self._control_ids.keys())
        if missing:
            known = ", ".join(sorted(self._control_ids)[:12]) or "none"
            raise ValueError(
                f"template {template!r} needs the special tokens {', '.join(missing)}, the tokenizer has: {known}; "
                "choose the template of this language model, or add the tokens to its tokenizer"
            )

    def tokenize(self, spans: list[Span]) -> TokenizedRun:
        """Tokenize adjacent text and control spans, without BOS.

        Raises:
            DataError: user text that this tokenizer can only encode as a control token.
        """
        text = "".join(span.text for span in spans)
        ids, offsets = _arrays(self._whole.encode(text, add_special_tokens=False))
        self._leave_out_swallowed(ids, offsets, text)
        supervised, special = _character_marks(spans)
        controls = self._is_control[ids]
        typed = controls.any() and (controls & _overlaps(offsets, ~special)).any()
        if typed or any(letters in text for letters in self._unk_letters):
            return self._tokenize_literally(spans)
        return TokenizedRun(ids, _overlaps(offsets, supervised))

    def is_control(self, token_id: int) -> bool:
        """Whether an id is a control token, which no ordinary text can produce."""
        return bool(self._is_control[token_id])

    def spell(self, ids: Ids) -> list[str | None]:
        """Return the letters of each token of a run, for people to read.

        None stands for a token that spells only part of a character: the letters are those of the next one with text.
        """
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._whole, token_id) for token_id in ids.tolist()]

    def _leave_out_swallowed(self, ids: Ids, offsets: npt.NDArray[np.int64], text: str) -> None:
        """Narrow the offsets of control tokens that include white space next to them (Phi 3's) to their letters."""
        for idx in np.flatnonzero(np.isin(ids, list(self._swallowing))) if self._swallowing else ():
            letters = self._swallowing[int(ids[idx])]["content"]
            begin = text.find(letters, *offsets[idx])
            if begin >= 0:
                offsets[idx] = begin, begin + len(letters)

    def _takes_in(self, control: Span | None, side: str) -> bool:
        """Whether a control token takes in the white space on its `lstrip` or `rstrip` side."""
        entry = None if control is None else self._swallowing.get(self._control_ids[control.text])
        return entry is not None and bool(entry[side])

    def _tokenize_literally(self, spans: list[Span]) -> TokenizedRun:
        """Tokenize span by span, control tokens by their id and text without them."""
        ids: list[Ids] = []
        supervised: list[Mask] = []
        before: Span | None = None
        for texts, control in _between_controls(spans):
            texts = _stripped(texts, left=self._takes_in(before, "rstrip"), right=self._takes_in(control, "lstrip"))
            before = control
            run = self._literal_run(texts, is_first=not ids)
            ids.append(run.ids)
            supervised.append(run.supervised)
            if control is not None:
                ids.append(np.array([self._control_ids[control.text]], dtype=np.int64))
                supervised.append(np.array([control.supervised]))
        return TokenizedRun(np.concatenate(ids), np.concatenate(supervised))

    def _literal_run(self, spans: list[Span], *, is_first: bool) -> TokenizedRun:
        text = "".join(span.text for span in spans)
        backend = self._literal_first if is_first else self._literal_next
        ids, offsets = _arrays(backend.encode(text, add_special_tokens=False))
        if self._is_control[ids].any():
            raise DataError(Reason.TEXT_CONTROL_TOKEN, "text that the tokenizer turns into a control token")
        return TokenizedRun(ids, _overlaps(offsets, _character_marks(spans)[0]))


@functools.lru_cache(maxsize=4)
def _restore(definition: str) -> TextTokenizer:
    tokenizer = TextTokenizer.__new__(TextTokenizer)
    tokenizer._build(definition)
    return tokenizer


def _arrays(encoding: Any) -> tuple[Ids, npt.NDArray[np.int64]]:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return np.array(encoding.ids, dtype=np.int64), offsets


def _character_marks(spans: list[Span]) -> tuple[Mask, Mask]:
    """Return, per character, whether it is supervised and whether a control token spells it."""
    lengths = [len(span.text) for span in spans]
    supervised = np.repeat(np.array([span.supervised for span in spans], dtype=np.bool_), lengths)
    return supervised, np.repeat(np.array([span.kind == "special" for span in spans], dtype=np.bool_), lengths)


def _overlaps(offsets: npt.NDArray[np.int64], marks: Mask) -> Mask:
    """Whether each token covers a marked character; one that covers no character follows its successor."""
    before = np.concatenate([[0], np.cumsum(marks)])
    overlaps = before[offsets[:, 1]] > before[offsets[:, 0]]
    for idx in np.flatnonzero(offsets[:, 1] == offsets[:, 0])[::-1]:
        overlaps[idx] = idx + 1 < len(overlaps) and overlaps[idx + 1]
    return np.asarray(overlaps, dtype=np.bool_)


def _between_controls(spans: list[Span]) -> list[tuple[list[Span], Span | None]]:
    """Cut spans into (text spans, the control token after them)."""
    runs: list[tuple[list[Span], Span | None]] = []
    texts: list[Span] = []
    for span in spans:
        if span.kind == "special":
            runs.append((texts, span))
            texts = []
        else:
            texts.append(span)
    return [*runs, (texts, None)] if texts else runs


def _stripped(spans: list[Span], *, left: bool, right: bool) -> list[Span]:
    """Return text without white space at its ends."""
    texts = [span.text for span in spans]
    for wanted, order, strip in ((left, range(len(texts)), str.lstrip), (right, range(len(texts))[::-1], str.rstrip)):
        for idx in order if wanted else ():
            texts[idx] = strip(texts[idx])
            if texts[idx]:
                break
    return [span._replace(text=text) for span, text in zip(spans, texts, strict=True)]


def _plain_definition(backend: Tokenizer) -> dict[str, Any]:
    """Return the tokenizer's JSON without what depends on the call: truncation, padding, added BOS, trimmed offsets."""
    tree: dict[str, Any] = json.loads(backend.to_str())
    return {**tree, "truncation": None, "padding": None, "post_processor": None}


def _is_control(entry: dict[str, Any]) -> bool:
    return bool(entry["special"]) or entry["content"] in IMAGE_TOKENS


def _without_first_prefix(node: Any) -> Any:
    """Return the definition for text that is not the first: SentencePiece's leading space belongs to the first only."""
    if isinstance(node, dict):
        changed = {name: _without_first_prefix(value) for name, value in node.items() if name != "model"}
        if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
            changed["prepend_scheme"] = "never"
        return {**node, **changed}
    return [_without_first_prefix(item) for item in node] if isinstance(node, list) else node


def _load(tree: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tree))
