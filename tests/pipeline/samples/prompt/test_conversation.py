"""Templates: pieces, their supervision, and that a further template is one entry of data."""

from __future__ import annotations

import pytest

from pipeline.samples.prompt.conversation import (
    Conversation,
    Image,
    Part,
    Span,
    Turn,
    place_images,
    render,
    render_prompt,
    split_placeholders,
)
from pipeline.samples.prompt.templates import TEMPLATES


def talk(*texts: str | tuple[Part, ...]) -> Conversation:
    turns = [
        Turn("assistant" if idx % 2 else "user", (text,) if isinstance(text, str) else text)
        for idx, text in enumerate(texts)
    ]
    return Conversation(tuple(turns))


def written(spans: list[Span]) -> str:
    return "".join("<image>" if span.kind == "image" else span.text for span in spans)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("a", ("a",)),
        ("<image>", (Image(),)),
        ("<image><image>\na", (Image(), Image(), "\na")),
        ("a <image> b", ("a ", Image(), " b")),
        ("<Image>", ("<Image>",)),
    ],
)
def test_split_placeholders_cuts_at_each(text: str, parts: tuple[Part, ...]) -> None:
    assert split_placeholders(text) == parts


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("What is this?\n", Image()), (Image(), "\nWhat is this?")),
        ((Image(), "\nWhat?"), (Image(), "\nWhat?")),
        ((" a ", Image(), " b "), (Image(), "\na  b")),
        ((Image(),), (Image(),)),
        ((" text ",), (" text ",)),
        (("first ", Image(), "second ", Image()), ("first ", Image(), "second ", Image())),
    ],
)
def test_place_images_moves_a_single_image_only(parts: tuple[Part, ...], expected: tuple[Part, ...]) -> None:
    assert place_images(parts) == expected


def test_v1_renders_spans_with_answers_supervised() -> None:
    spans = render(talk((Image(), "q"), "a", "r", "b"), TEMPLATES["v1"])
    assert spans == [
        Span("text", TEMPLATES["v1"].system + " USER: ", False),
        Span("image", "", False),
        Span("text", "\nq ASSISTANT:", False),
        Span("text", " a", True),
        Span("special", "</s>", True),
        Span("text", "USER: r ASSISTANT:", False),
        Span("text", " b", True),
        Span("special", "</s>", True),
    ]


def test_v1_with_own_system_turn_replaces_the_default() -> None:
    conversation = Conversation((Turn("system", ("Be brief.",)), *talk("q", "a").turns))
    assert written(render(conversation, TEMPLATES["v1"])) == "Be brief. USER: q ASSISTANT: a</s>"


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (talk((Image(),), "a cat"), "<image>a cat\n"),
        (talk((Image(), Image(), "Describe."), "a cat"), "<image><image>a cat\n"),
        (talk("Write.", "a cat"), "a cat\n"),
        (talk((Image(), "x"), "a", (Image(), "y"), "b"), "<image>a\n<image>b\n"),
        (Conversation((Turn("system", ("S",)), *talk((Image(),), "a").turns)), "<image>a\n"),
    ],
)
def test_plain_keeps_images_and_answers_only(conversation: Conversation, expected: str) -> None:
    spans = render(conversation, TEMPLATES["plain"])
    assert written(spans) == expected
    assert all(span.supervised == (span.kind == "text") for span in spans)


def test_text_that_looks_like_a_control_token_stays_text() -> None:
    spans = render(talk("q</s>", "a</s>b"), TEMPLATES["v1"])
    assert [span.text for span in spans if span.kind == "special"] == ["</s>"]
    assert Span("text", " a</s>b", True) in spans


def test_render_prompt_ends_where_the_answer_begins() -> None:
    spans = render_prompt(talk("q", "a", "r"), TEMPLATES["v1"])
    assert written(spans).endswith("ASSISTANT: a</s>USER: r ASSISTANT:")
    with pytest.raises(ValueError, match="ends with the user's turn"):
        render_prompt(talk("q", "a"), TEMPLATES["v1"])


def test_conversation_counts_images_of_all_turns() -> None:
    assert talk((Image(), "a", Image()), "b", (Image(),), "c").num_images == 3
