"""Facts about texts: what counts as the same, as broken, as a repetition, and when a language is guessed."""

from __future__ import annotations

import pytest

from pipeline.samples.language import guess_language
from pipeline.samples.prompt.conversation import Conversation, Image, Role, Turn
from pipeline.samples.text_facts import text_facts


def talk(*texts: str) -> Conversation:
    roles: tuple[Role, Role] = ("user", "assistant")
    return Conversation(tuple(Turn(roles[idx % 2], (text,)) for idx, text in enumerate(texts)))


def test_text_facts_hash_ignores_spelling_and_images_but_not_words_or_speakers() -> None:
    plain = text_facts(talk("What is it?", "A cat.")).hash
    shown = Conversation((Turn("user", (Image(), "what is it")), Turn("assistant", ("a  CAT",))))
    assert text_facts(shown).hash == plain
    assert text_facts(talk("What is it?", "A dog.")).hash != plain
    assert text_facts(talk("A cat.", "What is it?")).hash != plain


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [
        ("A caf\u00e9 in Paris, \u201cquoted\u201d \u2014 and an emoji \U0001f408", False),
        ("\u56fe\u4e2d\u6709\u4e00\u53ea\u732b", False),
        ("A caf\u00c3\u00a9 in Paris", True),
        ("it\u00e2\u20ac\u2122s broken", True),
        ("lost \ufffd letter", True),
        ("bell \x07", True),
        ("\u00c9t\u00e9 \u00e0 No\u00ebl, \u00abguillemets\u00bb, 20 \u00b0C \u00d7 3", False),
        ("\u00e3o, S\u00c3O PAULO, \u00c2ngelo", False),
        ("tab\tand\nline", False),
    ],
)
def test_text_facts_tell_broken_text(text: str, is_broken: bool) -> None:
    assert text_facts(talk("What?", text)).is_broken is is_broken


@pytest.mark.parametrize(
    ("question", "answer", "repeats"),
    [
        ("Is the red ball left of the box?", "is the red ball left of the box", True),
        ("Is the red ball left of the box?", "Is the red ball left of the box? Yes.", True),
        ("Is the red ball left of the box?", "Yes, it is.", False),
        ("Red?", "Red", False),
    ],
)
def test_text_facts_tell_an_answer_that_repeats_its_question(question: str, answer: str, repeats: bool) -> None:
    assert text_facts(talk(question, answer)).repeats_question is repeats


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("A man rides a bicycle down the street while a dog watches.", "en"),
        ("Ein Mann f\u00e4hrt mit dem Fahrrad die Stra\u00dfe hinunter.", "de"),
        ("\u4e00\u4e2a\u4eba\u9a91\u7740\u81ea\u884c\u8f66\u5728\u8857\u4e0a\u8d70", "zh"),
        ("\u041c\u0443\u0436\u0447\u0438\u043d\u0430 \u0435\u0434\u0435\u0442", "ru"),
        ("\u7537\u306e\u4eba\u304c\u81ea\u8ee2\u8eca\u306b\u4e57\u308b", "ja"),
        ("Un homme est dans la rue avec un chien.", "fr"),
        ("Hay un hombre en la calle con una bicicleta.", "es"),
        ("Yes.", ""),
        ("qwertz uiop asdfghjkl", ""),
        ("1234567890 1234567890 1234567890", ""),
    ],
)
def test_guess_language_needs_some_letters(text: str, language: str) -> None:
    assert guess_language(text) == language


def test_text_facts_count_the_characters_of_answers_only() -> None:
    assert text_facts(talk("A long question here?", "Yes.", "And?", "No.")).answer_chars == len("Yes.\nNo.")
