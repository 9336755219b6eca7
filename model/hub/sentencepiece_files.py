"""A tokenizer.model of SentencePiece as a fast tokenizer, with the ids that SentencePiece itself gives.

transformers 5.23 orders the merges of such a file by id. SentencePiece merges by score, and the two differ in the files
of Mistral: runs of spaces come first by id and last by score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_PROBES: Final = (
    "What colour is the ball?",
    "two  spaces ",
    "a\nb\n\nc",
    "a:    indented   by spaces",
    "\u00e9 \u00bd 12 \uff21\uff11 3.14",
    "The assistant gives helpful, detailed, and polite answers.",
)
"""Texts on which normalization rules, prefix spaces, byte fallback and the order of merges show."""


def open_sentencepiece(file: Path) -> SentencePieceProcessor | None:
    """Open a tokenizer.model; None if it is a vocabulary of tiktoken under the same name."""
    from sentencepiece import SentencePieceProcessor  # loaded only where there is such a file

    try:
        return SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):
        return None


def order_merges(tokenizer: PreTrainedTokenizerFast, reference: SentencePieceProcessor) -> None:
    """Put the merges of a BPE tokenizer into the order of SentencePiece, in place."""
    tree: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if tree["model"]["type"] == "BPE":
        tree["model"]["merges"] = merges_by_score(reference)
        tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(tree))


def merges_by_score(reference: SentencePieceProcessor) -> list[list[str]]:
    """Return every pair of pieces that makes a piece, the best score first; of equal scores the longest first."""
    ids = {reference.id_to_piece(piece_id): piece_id for piece_id in range(reference.get_piece_size())}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, piece_id in ids.items():
        if reference.is_control(piece_id) or reference.is_unknown(piece_id) or reference.is_byte(piece_id):
            continue
        score = reference.get_score(piece_id)
        pairs = [(piece[:end], piece[end:]) for end in range(1, len(piece))]
        known = sorted((ids[left], ids[right], left, right) for left, right in pairs if left in ids and right in ids)
        ranked += [(score, len(left), len(right), left, right) for _, _, left, right in known]
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    return [[left, right] for *_, left, right in ranked]


def check_sentencepiece(tokenizer: PreTrainedTokenizerFast, reference: SentencePieceProcessor, file: Path) -> None:
    """Compare with the library that the file belongs to.

    Raises:
        ValueError: a text gets other ids, because the model normalizes text in a way that transformers does not repeat.
    """
    for text in _PROBES:
        expected: list[int] = reference.encode(text)
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        if expected != found:
            raise ValueError(
                f"{file}: SentencePiece reads {text!r} as {reference.id_to_piece(expected)}, transformers as "
                f"{tokenizer.convert_ids_to_tokens(found)}; put the tokenizer.json next to it that belongs to it"
            )
