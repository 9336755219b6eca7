"""The Jinja template renders chat messages exactly as training renders turns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.samples.prompt.chat_template import chat_template_of
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Span, Turn, render, render_prompt
from pipeline.samples.prompt.rendering import choose_template, render_question
from pipeline.samples.prompt.templates import TEMPLATES
from tests.pipeline.samples.prompt.test_jinja_template import TOKENIZERS
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

texts = st.text(alphabet=[*"ab \n{}%<>\\'", '"', "\u00e9"], min_size=1, max_size=6)
parts = st.lists(st.one_of(texts, st.just(Image())), min_size=1, max_size=4).map(tuple)


def written(spans: list[Span]) -> str:
    return "".join("<image>" if span.kind == "image" else span.text for span in spans)


def message(turn: Turn) -> dict[str, Any]:
    def content(part: Part) -> dict[str, str]:
        return {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part}

    return {"role": turn.role, "content": [content(part) for part in turn.parts]}


def by_jinja(name: str, turns: tuple[Turn, ...], *, prompt: bool) -> str:
    text = build_tokenizer("chatml").apply_chat_template(
        [message(turn) for turn in turns],
        chat_template=chat_template_of(TEMPLATES[name]),
        add_generation_prompt=prompt,
        tokenize=False,
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=30)
@given(
    rounds=st.lists(st.tuples(parts, texts), min_size=1, max_size=3),
    question=parts,
    system=st.one_of(st.none(), texts),
)
def test_messages_are_rendered_as_in_training(
    name: str, rounds: list[tuple[tuple[Part, ...], str]], question: tuple[Part, ...], system: str | None
) -> None:
    turns = [] if system is None else [Turn("system", (system,))]
    for user, answer in rounds:
        turns += [Turn("user", user), Turn("assistant", (answer,))]
    template = TEMPLATES[name]
    whole = Conversation(tuple(turns))
    assert by_jinja(name, whole.turns, prompt=False) == written(render(whole, template))
    asked = Conversation((*turns, Turn("user", question)))
    assert by_jinja(name, asked.turns, prompt=True) == written(render_prompt(asked, template))


def test_plain_string_content_is_text() -> None:
    text = build_tokenizer("chatml").apply_chat_template(
        [{"role": "user", "content": "hello"}],
        chat_template=chat_template_of(TEMPLATES["qwen"]),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert str(text).endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


def test_own_template_of_a_tokenizer_is_given_plain_text() -> None:
    tokenizer = TOKENIZERS["trims"]
    turns = (Turn("user", (Image(), " q ")), Turn("assistant", ("a ",)), Turn("user", ("b", Image(), Image())))
    template = choose_template("tokenizer", tokenizer, wraps_images=True)
    text = tokenizer.apply_chat_template(
        [message(turn) for turn in turns],
        chat_template=chat_template_of(template),
        add_generation_prompt=True,
        tokenize=False,
    )
    written_by_training = written(render_question(Conversation(turns), template))
    assert text == written_by_training
    assert "b<im_start><image><im_end><im_start><image><im_end><|eot_id|>" in written_by_training


def test_wrapping_tokens_are_written_around_every_image() -> None:
    template = choose_template("v1", build_tokenizer("chatml"), wraps_images=True)
    turn = Turn("user", (Image(), "q"))
    text = build_tokenizer("chatml").apply_chat_template(
        [message(turn)], chat_template=chat_template_of(template), add_generation_prompt=True, tokenize=False
    )
    assert text == written(render_question(Conversation((turn,)), template))
    assert "USER: <im_start><image><im_end>\nq" in text
