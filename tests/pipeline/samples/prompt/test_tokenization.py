"""Ids equal LLaVA's way of tokenizing a finished prompt; labels cover answers, their end tokens and nothing else."""

from __future__ import annotations

import functools
import pickle
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.conversation import Conversation, Image, Span, Turn, render, render_prompt
from pipeline.samples.prompt.templates import Template, get_template
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import EncodedText, encode_prompt, encode_text
from tests.pipeline.samples.prompt.toy_tokenizers import SENTENCEPIECE, TokenizerKind, build_tokenizer

V1, PLAIN = get_template("v1"), get_template("plain")
CHATML = Template(
    name="chatml",
    system="You are a helpful assistant.",
    before_system="<|im_start|>system\n",
    after_system="<|im_end|>\n",
    before_user="<|im_start|>user\n",
    after_user="<|im_end|>\n",
    before_assistant="<|im_start|>assistant\n",
    end_of_answer="<|im_end|>",
    after_answer="\n",
    control_tokens=("<|im_start|>", "<|im_end|>"),
)
FEATURES = 7
KINDS: tuple[TokenizerKind, ...] = (*SENTENCEPIECE, "chatml")


@functools.lru_cache
def wrapped_tokenizer(kind: TokenizerKind) -> TextTokenizer:
    return TextTokenizer(build_tokenizer(kind))


def template_of(kind: TokenizerKind) -> Template:
    return CHATML if kind == "chatml" else V1


def dialogue(*texts: str, images: int = 0) -> Conversation:
    turns = []
    for idx, text in enumerate(texts):
        pictures = tuple(Image() for _ in range(images)) if idx == 0 else ()
        turns.append(Turn("assistant" if idx % 2 else "user", (*pictures, text)))
    return Conversation(tuple(turns))


def prompt_of(spans: list[Span]) -> str:
    return "".join("<image>" if span.kind == "image" else span.text for span in spans)


def reference_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Tokenize the text between images with BOS each time, and keep only the first BOS."""
    chunks = [tokenizer(chunk).input_ids if chunk else [] for chunk in prompt.split("<image>")]
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = list(bos)
    for idx, chunk in enumerate(chunks):
        ids += [IMAGE_TOKEN_INDEX] if idx else []
        ids += chunk[1:] if bos and chunk[:1] == bos else chunk
    return ids


def encode(conversation: Conversation, template: Template, kind: TokenizerKind, **options: Any) -> EncodedText:
    options = {"max_length": None, "features_per_image": FEATURES, **options}
    return encode_text(render(conversation, template), wrapped_tokenizer(kind), **options)


def trained_pieces(text: EncodedText, kind: TokenizerKind) -> list[str]:
    """Decode each run of supervised tokens."""
    tokenizer = build_tokenizer(kind)
    pieces: list[list[int]] = []
    previous = IGNORE_INDEX
    for label in text.labels.tolist():
        if label != IGNORE_INDEX:
            if previous == IGNORE_INDEX:
                pieces.append([])
            pieces[-1].append(label)
        previous = label
    return [str(tokenizer.decode(piece)) for piece in pieces]


words = st.text(string.ascii_letters + " .,?'\n\u00e9\u4e2d\U0001f600", min_size=1, max_size=30)
answers = words.filter(lambda text: bool(text.strip()))


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
@given(rounds=st.lists(st.tuples(answers, answers), min_size=1, max_size=3), images=st.integers(0, 3))
def test_ids_without_control_tokens_equal_the_reference(
    kind: TokenizerKind, rounds: list[tuple[str, str]], images: int
) -> None:
    conversation = dialogue(*(text for pair in rounds for text in pair), images=images)
    spans = render(conversation, template_of(kind))
    text = encode(conversation, template_of(kind), kind)
    assert text.input_ids.tolist() == reference_ids(prompt_of(spans), build_tokenizer(kind))
    assert text.input_ids.dtype == text.labels.dtype == np.int64
    assert int((text.input_ids == IMAGE_TOKEN_INDEX).sum()) == images
    assert text.num_tokens == len(text.input_ids) + images * (FEATURES - 1)


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
@given(questions=st.lists(words, min_size=1, max_size=3), answer=answers)
def test_labels_decode_to_the_answers_with_their_end_tokens(
    kind: TokenizerKind, questions: list[str], answer: str
) -> None:
    end = template_of(kind).end_of_answer
    texts = [text for question in questions for text in (question, answer)]
    text = encode(dialogue(*texts), template_of(kind), kind)
    assert [piece.lstrip(" ") for piece in trained_pieces(text, kind)] == [answer.lstrip(" ") + end] * len(questions)
    learnt = text.labels != IGNORE_INDEX
    assert (text.labels[learnt] == text.input_ids[learnt]).all()
    assert text.num_supervised_tokens == int(learnt.sum())


def test_v1_prompt_and_labels_written_out() -> None:
    conversation = dialogue("What colour is the ball?", "red", "How many?", "three", images=1)
    spans = render(conversation, V1)
    assert prompt_of(spans) == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat colour is the ball? ASSISTANT: red</s>"
        "USER: How many? ASSISTANT: three</s>"
    )
    text = encode(conversation, V1, "first")
    tokens = build_tokenizer("first").convert_ids_to_tokens([label for label in text.labels.tolist() if label >= 0])
    assert "".join(tokens) == "\u2581red</s>\u2581three</s>"


def test_plain_trains_caption_and_newline_only() -> None:
    conversation = Conversation((Turn("user", (Image(), Image(), "Describe.")), Turn("assistant", ("a red ball",))))
    text = encode(conversation, PLAIN, "first")
    assert text.input_ids[:3].tolist() == [1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX]
    assert text.labels[:3].tolist() == [IGNORE_INDEX] * 3
    assert trained_pieces(text, "first") == [" a red ball\n"]


def test_plain_text_without_bos_does_not_train_its_first_token() -> None:
    text = encode(dialogue("ignored", "the ball"), PLAIN, "chatml")
    assert text.labels[0] == IGNORE_INDEX
    assert (text.labels[1:] == text.input_ids[1:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_without_bos_gets_none_and_loses_no_token(kind: TokenizerKind) -> None:
    wrapped = wrapped_tokenizer(kind)
    assert wrapped.bos_id == (None if kind == "chatml" else 1)
    ids = encode_prompt([Span("image", "", False), Span("text", "a photo", False)], wrapped)
    expected = [] if kind == "chatml" else [1]
    assert ids[: len(expected) + 1].tolist() == [*expected, IMAGE_TOKEN_INDEX]
    assert str(build_tokenizer(kind).decode(ids[len(expected) + 1 :].tolist())).strip() == "a photo"


CONTROLS = ("</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "<image>", "<im_patch>", "[INST]", "ASSISTANT: ")


@settings(max_examples=80, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
@given(
    pieces=st.lists(st.one_of(st.sampled_from(CONTROLS), words), min_size=1, max_size=6),
    answer=st.lists(st.one_of(st.sampled_from(CONTROLS), words), min_size=1, max_size=4),
)
def test_control_tokens_in_text_stay_text_and_labels_stay_right(
    kind: TokenizerKind, pieces: list[str], answer: list[str]
) -> None:
    template, tokenizer = template_of(kind), build_tokenizer(kind)
    conversation = dialogue("q" + "".join(pieces), "b" + "".join(answer), "more", "c", images=2)
    text = encode(conversation, template, kind)
    counts = {
        token: int((text.input_ids == tokenizer.convert_tokens_to_ids(token)).sum()) for token in template.controls
    }
    clean = encode(dialogue("q", "b", "more", "c", images=2), template, kind)
    expected = {
        token: int((clean.input_ids == tokenizer.convert_tokens_to_ids(token)).sum()) for token in template.controls
    }
    assert counts == expected
    assert int((text.input_ids == IMAGE_TOKEN_INDEX).sum()) == 2
    first, second = trained_pieces(text, kind)
    assert first.lstrip(" ") == "b" + "".join(answer) + template.end_of_answer
    assert second.lstrip(" ") == "c" + template.end_of_answer


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_control_token_in_one_turn_leaves_the_other_turns_as_they_were(kind: TokenizerKind) -> None:
    clean = encode(dialogue("What?", "red", "How many cubes?", "three"), V1, kind).input_ids.tolist()
    typed = encode(dialogue("What?</s>", "red", "How many cubes?", "three"), V1, kind).input_ids.tolist()
    tail = clean[clean.index(2) :]
    assert typed[-len(tail) :] == tail
    assert typed[:10] == clean[:10]


def test_truncation_cuts_text_from_the_end_and_counts_it() -> None:
    conversation = dialogue("What?", "The ball is red. " * 5, images=2)
    whole = encode(conversation, V1, "first")
    for max_length in range(whole.num_tokens - 11, whole.num_tokens + 2):
        cut = encode(conversation, V1, "first", max_length=max_length)
        kept = min(max_length, whole.num_tokens)
        assert cut.num_tokens == kept
        assert cut.truncated_tokens == whole.num_tokens - kept
        assert cut.input_ids.tolist() == whole.input_ids.tolist()[: len(cut.input_ids)]
        assert cut.num_supervised_tokens == int((cut.labels != IGNORE_INDEX).sum())


def test_truncation_never_cuts_an_image() -> None:
    conversation = Conversation((Turn("user", (Image(), "a", Image(), "b")), Turn("assistant", ("red",))))
    whole = encode(conversation, V1, "first")
    last_image = int(np.flatnonzero(whole.input_ids == IMAGE_TOKEN_INDEX)[-1])
    end_of_image = last_image + 2 * FEATURES - 1
    reasons = {}
    for max_length in range(1, whole.num_tokens):
        try:
            encode(conversation, V1, "first", max_length=max_length)
            reasons[max_length] = ""
        except DataError as error:
            reasons[max_length] = error.reason.value
    assert {length for length, reason in reasons.items() if reason == "too_long"} == set(range(1, end_of_image))
    assert reasons[end_of_image] == "no_supervised_tokens"
    assert reasons[whole.num_tokens - 1] == ""


@pytest.mark.parametrize("features", [[], [3], [3, 5, 7]])
def test_encode_text_of_prompt_that_shows_another_number_of_images_is_refused(features: list[int]) -> None:
    with pytest.raises(DataError, match=f"the prompt shows 2 of {len(features)} images") as caught:
        encode(dialogue("which?", "red", images=2), V1, "first", features_per_image=features)
    assert caught.value.reason == Reason.IMAGE_TOKEN_MISMATCH


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_for_generation_is_a_prefix_of_the_training_sequence(kind: TokenizerKind) -> None:
    question = Turn("user", (Image(), "\nWhat colour is the ball?"))
    tokenizer, template = wrapped_tokenizer(kind), template_of(kind)
    prompt = encode_prompt(render_prompt(Conversation((question,)), template), tokenizer)
    trained = encode(Conversation((question, Turn("assistant", ("red",)))), template, kind)
    assert trained.input_ids[: len(prompt)].tolist() == prompt.tolist()
    assert trained.labels[len(prompt)] != IGNORE_INDEX
    assert (trained.labels[: len(prompt)] == IGNORE_INDEX).all()


def test_text_tokenizer_survives_pickling() -> None:
    wrapped = TextTokenizer(build_tokenizer("chatml"))
    again = pickle.loads(pickle.dumps(wrapped))
    spans = render(dialogue("a</s>b", "c"), CHATML)
    assert encode_prompt(spans, again).tolist() == encode_prompt(spans, wrapped).tolist()
    assert again.definition == wrapped.definition
    assert pickle.loads(pickle.dumps(wrapped)) is again


def word_tokenizer() -> TextTokenizer:
    """Return a tokenizer without bytes to fall back on, whose vocabulary holds the end token as a word."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "red": 2, "ASSISTANT:": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>"))


def test_text_outside_the_vocabulary_is_unknown_and_not_refused() -> None:
    text = encode_text(render(dialogue("zebra <unk>", "red"), V1), word_tokenizer(), None, FEATURES)
    assert text.labels[text.labels != IGNORE_INDEX].tolist() == [2, 1]
    assert int((text.input_ids == 1).sum()) == 1


def test_text_that_only_a_control_token_can_spell_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        encode_text(render(dialogue("zebra </s> red", "red"), V1), word_tokenizer(), None, FEATURES)
    assert caught.value.reason == Reason.TEXT_CONTROL_TOKEN


def test_template_whose_control_tokens_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"template 'chatml' needs the special tokens <\|im_end\|>, <\|im_start\|>"):
        TextTokenizer(build_tokenizer("first")).check_control_tokens(CHATML.controls, CHATML.name)
