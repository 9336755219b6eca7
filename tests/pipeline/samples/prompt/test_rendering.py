"""Which conversations a template takes: captions only where what the user says is left out."""

from __future__ import annotations

import pytest

from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Turn
from pipeline.samples.prompt.rendering import render_conversation, render_question
from pipeline.samples.prompt.templates import TEMPLATES

PLAIN = TEMPLATES["plain"]


def talk(*contents: tuple[Part, ...]) -> Conversation:
    return Conversation(tuple(Turn("assistant" if idx % 2 else "user", parts) for idx, parts in enumerate(contents)))


@pytest.mark.parametrize(
    ("conversation", "what"),
    [
        (talk(("Say a colour.",), ("red",)), "no image, but template plain"),
        (talk((Image(), "What?"), ("a cat",), ("And?",), ("a dog",)), "4 turns, but template plain"),
        (talk((Image(),), ("a cat",), (Image(),), ("a dog",)), "4 turns, but template plain"),
    ],
)
def test_plain_refuses_what_is_no_caption_of_images(conversation: Conversation, what: str) -> None:
    with pytest.raises(DataError, match=what) as refused:
        render_conversation(conversation, PLAIN)
    assert refused.value.reason is Reason.NOT_A_CAPTION
    assert render_conversation(conversation, TEMPLATES["chatml"])


def test_plain_takes_a_caption_of_one_or_more_images() -> None:
    for images in ((Image(),), (Image(), Image())):
        spans = render_conversation(talk((*images, "Describe."), ("a cat",)), PLAIN)
        assert [span.kind for span in spans] == ["image"] * len(images) + ["text"]
    assert [
        span.kind
        for span in render_question(
            talk(
                (Image(), "Describe."),
            ),
            PLAIN,
        )
    ] == ["image"]
