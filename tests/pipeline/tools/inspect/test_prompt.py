"""Prompts spelled for people: every token once, what is trained on, control tokens apart from text that looks alike."""

import numpy as np
import pytest

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.samples.prompt.conversation import Span
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import encode_text
from pipeline.tools.inspect.prompt import Piece, read_prompt, visible
from tests.pipeline.samples.prompt.toy_tokenizers import TokenizerKind, build_tokenizer

SPANS = [
    Span("image", "", False),
    Span("text", "\nWhat </s> is caf\u00e9 \U0001f600? ASSISTANT:", False),
    Span("text", " The ball", True),
    Span("special", "</s>", True),
]


@pytest.mark.parametrize("kind", ["legacy", "first", "normalizer"])
def test_read_prompt_spells_text_back_and_tells_trained_from_context(kind: TokenizerKind) -> None:
    tokenizer = TextTokenizer(build_tokenizer(kind))
    text = encode_text(SPANS, tokenizer, None, 5)
    pieces = read_prompt(text.input_ids, text.labels, tokenizer)
    assert [piece.kind for piece in pieces if piece.kind != "text"] == ["special", "image", "special"]
    trained = "".join(piece.text for piece in pieces if piece.trained)
    context = "".join(piece.text for piece in pieces if not piece.trained)
    assert trained.replace(" ", "") == "Theball</s>"
    assert "caf\u00e9 \U0001f600?" in context
    assert "</s>" in context  # typed by a user: letters, no control token


def test_read_prompt_trained_part_of_a_character_marks_the_whole_character() -> None:
    tokenizer = TextTokenizer(build_tokenizer("first"))
    ids = tokenizer.tokenize([Span("text", "\u00e9", False)]).ids
    assert len(ids) > 1
    labels = np.full_like(ids, IGNORE_INDEX)
    spelled = [idx for idx, text in enumerate(tokenizer.spell(ids)) if text is None]
    labels[spelled[0]] = 0
    assert [piece.trained for piece in read_prompt(ids, labels, tokenizer)][-1] is True


def test_read_prompt_two_images_in_a_row_are_two_pieces() -> None:
    tokenizer = TextTokenizer(build_tokenizer("chatml"))
    ids = np.array([IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX])
    assert read_prompt(ids, np.full(2, IGNORE_INDEX), tokenizer) == [Piece("image", "", False)] * 2


def test_visible_escapes_what_would_reorder_or_hide_text() -> None:
    assert visible("a\u202eb\u200bc\x00\x1bd\n\te\u2028") == r"a\u202eb\u200bc\x00\x1bd" + "\n\te" + r"\u2028"
    assert visible("caf\u00e9 \u4e2d \U0001f600") == "caf\u00e9 \u4e2d \U0001f600"
