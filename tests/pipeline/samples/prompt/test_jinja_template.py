"""A tokenizer's own chat template: same ids as the tokenizer makes, and exactly the answers and their ends learnt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.chat_template import chat_template_of
from pipeline.samples.prompt.conversation import Conversation, Image, Turn, render
from pipeline.samples.prompt.jinja_template import read_jinja_template, render_jinja, render_jinja_prompt
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.templates import TEMPLATES
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import encode_prompt, encode_text
from tests.pipeline.samples.prompt.test_templates import CONTROLS, written
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system here') }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
THINKS = CHATML.replace(
    "m['content'] +",
    "('<think>\n\n</think>\n\n' if m['role'] == 'assistant' and loop.last else '') + m['content'] +",
)
OWN = {"as_read": CHATML, "tagged": TAGGED, "trims": LLAMA_3, "mistral": MISTRAL}
ENDS = dict.fromkeys(OWN, "<|im_end|>") | {"trims": "<|eot_id|>", "mistral": "</s>"}
ALL = OWN | {name: chat_template_of(template) for name, template in TEMPLATES.items() if template.end_of_answer}


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """One token per byte, every control token of every template, BOS added by default."""
    alphabet = {letter: idx for idx, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*CONTROLS, "<s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template)


TOKENIZERS = {name: tokenizer_with(source) for name, source in ALL.items()}


def talk(*turns: tuple[Any, ...]) -> Conversation:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return Conversation(tuple(Turn(roles[role], parts) for role, *parts in turns))  # type: ignore[arg-type]


def messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in conversation.turns]


@pytest.mark.parametrize("name", ALL)
def test_ids_are_those_that_the_tokenizer_itself_makes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    conversation = talk(("u", " what is it? "), ("a", "a ball "), ("u", "sure?"), ("a", "yes"))
    wrapped = TextTokenizer(tokenizer, adds_bos=False)
    template = read_jinja_template(tokenizer)
    ids = encode_text(render_jinja(conversation, template), wrapped, None, 3).input_ids
    expected = tokenizer.apply_chat_template(messages(conversation), return_dict=False)
    assert ids.tolist() == expected
    asked = Conversation(conversation.turns[:-1])
    prompt = encode_prompt(render_jinja_prompt(asked, template), wrapped)
    assert prompt.tolist() == tokenizer.apply_chat_template(
        messages(asked), add_generation_prompt=True, return_dict=False
    )
    assert prompt.tolist() == ids[: len(prompt)].tolist()


texts = st.lists(st.sampled_from(["dog", "red ball", " ", "\n", "ball?", *CONTROLS]), min_size=1, max_size=4).map(
    "".join
)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=20)
@given(rounds=st.lists(st.tuples(texts, texts, st.integers(0, 2)), min_size=1, max_size=3))
def test_answers_and_their_ends_are_learnt_and_nothing_else(name: str, rounds: list[tuple[str, str, int]]) -> None:
    """Also when the text of a turn spells control tokens, of this template or of another."""
    tokenizer, template = TOKENIZERS[name], read_jinja_template(TOKENIZERS[name])
    turns = []
    for question, answer, num_images in rounds:
        turns += [Turn("user", (*[Image()] * num_images, question)), Turn("assistant", (answer,))]
    spans = render_jinja(Conversation(tuple(turns)), template)
    encoded = encode_text(spans, TextTokenizer(tokenizer, adds_bos=False), None, features_per_image=3)
    learnt = tokenizer.decode(encoded.labels[encoded.labels != IGNORE_INDEX], skip_special_tokens=False)
    if name in OWN:
        said = [answer.strip() if name in ("trims", "mistral") else answer for _, answer, _ in rounds]
        parts = [(" " if name == "mistral" else "") + answer + ENDS[name] for answer in said]
        assert learnt == "".join(parts)
    else:
        ours = render(Conversation(tuple(turns)), TEMPLATES[name])
        assert spans == ours
    assert int((encoded.input_ids == IMAGE_TOKEN_INDEX).sum()) == sum(count for _, _, count in rounds)
    structural = [span.text for span in spans if span.kind == "special"]
    specials = set(tokenizer.convert_tokens_to_ids([*CONTROLS, "<s>"]))  # type: ignore[arg-type]
    found = [int(token) for token in encoded.input_ids if token in specials]
    assert found == tokenizer.convert_tokens_to_ids(structural)


def test_wrapping_tokens_stand_around_every_image_and_are_never_learnt() -> None:
    template = choose_template("tokenizer", TOKENIZERS["as_read"], wraps_images=True)
    spans = render_jinja(talk(("u", "a", Image(), "b", Image()), ("a", Image(), "c")), template)  # type: ignore[arg-type]
    assert "a<im_start><image><im_end>b<im_start><image><im_end><|im_end|>" in written(spans)
    assert [span.supervised for span in spans if span.text in ("<im_start>", "<im_end>")] == [False] * 6
    assert {"<im_start>", "<im_end>"} <= template.controls


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CHATML.replace("m['content']", "m['content'] | upper + m['content']"), "drops, repeats or reorders"),
        (CHATML.replace("<|im_end|>", "###"), "no control token follows an answer"),
        (CHATML.replace("assistant\n' }}{% endif %}", "assistant:' }}{% endif %}"), "prompt for answer 1"),
        (TAGGED.replace("== 'assistant'", "== 'user'"), "tags what the user says wrongly"),
        (
            TAGGED.replace("+ '<|im_end|>' }}{% endg", "}}{% endg").replace("n %}{% el", "n %}{{ '<|im_end|>' }}{% el"),
            "without a control token",
        ),
        (THINKS, "makes '<think>.*' part of an answer"),
        (CHATML.replace("+ '<|im_end|>'", "+ ' (end)' + '<|im_end|>'"), r"makes '\(end\)' part of an answer"),
        ("{{ raise_exception('never') }}", "it says: never"),
    ],
)
def test_template_that_cannot_be_trained_with_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be trained with.*{message}"):
        read_jinja_template(tokenizer_with(source))


HYBRID = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""Thinks before an answer unless told not to, and writes no thoughts into earlier answers, as Qwen 3 does."""


def test_template_that_can_think_is_asked_not_to_and_its_empty_thoughts_are_never_learnt() -> None:
    template = read_jinja_template(tokenizer_with(HYBRID))
    spans = render_jinja(talk(("u", "q"), ("a", "red")), template)
    assert written(spans).endswith("assistant\n<think>\n\n</think>\n\nred<|im_end|>\n")
    assert "".join(span.text for span in spans if span.supervised) == "red<|im_end|>"
    asked = written(render_jinja_prompt(talk(("u", "q")), template))
    assert written(spans) == asked + "red<|im_end|>\n"
    with pytest.raises(DataError, match="prompt for answer 1 is not what precedes that answer") as refused:
        render_jinja(talk(("u", "q"), ("a", "red"), ("u", "and?"), ("a", "blue")), template)
    assert refused.value.reason is Reason.TEMPLATE_REFUSED


def test_header_that_a_template_tags_as_generated_is_still_prompt() -> None:
    tagged = TAGGED.replace("{{ '<|im_start|>' + m['role'] + '\n' }}{% if m", "{% if m").replace(
        "{% generation %}{{ m", "{% generation %}{{ '<|im_start|>assistant\n' + m"
    )
    tagged = tagged.replace("{% else %}{{ m", "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m")
    template = read_jinja_template(tokenizer_with(tagged))
    spans = render_jinja(talk(("u", "q"), ("a", "red"), ("u", "and?"), ("a", "blue")), template)
    assert "".join(span.text for span in spans if span.supervised) == "red<|im_end|>blue<|im_end|>"


def test_conversation_that_a_template_rewrites_or_refuses_is_rejected() -> None:
    template = read_jinja_template(TOKENIZERS["mistral"])
    with pytest.raises(DataError, match="it says: no system here") as refused:
        render_jinja(talk(("s", "S"), ("u", "q"), ("a", "b")), template)
    assert refused.value.reason is Reason.TEMPLATE_REFUSED
    cuts = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    with pytest.raises(DataError, match="rewrites what was said"):
        render_jinja(talk(("u", "q"), ("a", "x</think>b")), read_jinja_template(tokenizer_with(cuts)))


def test_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        choose_template("tokenizer", build_tokenizer("chatml"))


def test_today_is_the_same_every_day() -> None:
    dated = copy.copy(CHATML).replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)
    template = read_jinja_template(tokenizer_with(dated))
    assert written(render_jinja(talk(("u", "q"), ("a", "b")), template)).startswith("26 Jul 2024<|im_start|>")
    other = tokenizer_with(dated.replace("%d %b %Y", "%Y-%m-%d, a %A"))
    assert written(render_jinja(talk(("u", "q"), ("a", "b")), read_jinja_template(other))).startswith(
        "2024-07-26, a Friday<|im_start|>"
    )
    assert read_jinja_template(tokenizer_with(template.source)).source == template.source  # pinned once
