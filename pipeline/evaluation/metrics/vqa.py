"""VQA accuracy: an answer is right to the degree that three of ten people gave it (Antol et al. 2015).

Averaged over all sets of nine of the ten people. Answers are normalised as in the evaluation of visualqa.org:
punctuation, number words, articles and contractions. It leaves the people's answers as they are where all ten agree;
here they are always normalised, so that "2" is right where ten people wrote "two".
"""

from __future__ import annotations

import re

from pipeline.evaluation.scores import Answer

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
"""Spellings that lack one apostrophe."""


def vqa_accuracy(answer: Answer) -> float:
    """Return the share of sets of nine people, each counting up to 3 / 3, that gave this answer.

    Raises:
        ValueError: the sample has no `answers`.
    """
    if len(answer.references) < 2:
        raise ValueError(
            f"sample {answer.key}: vqa_accuracy needs the answers of several people (ten, as published) in the field "
            f"`answers` of its JSON, found {len(answer.references)}; add them, or use exact_match"
        )
    given = normalize_vqa(answer.given)
    people = [normalize_vqa(text) for text in answer.references]
    matches = sum(text == given for text in people)
    return sum(min(1.0, (matches - (text == given)) / 3) for text in people) / len(people)


def normalize_vqa(text: str) -> str:
    """Reduce an answer to what is compared."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(_without_punctuation(text))


def _without_punctuation(text: str) -> str:
    """Take marks out where a space is next to one of their kind, or a number has a comma; else put a space there."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        joins = has_number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if joins else " ")
    return _FULL_STOP.sub("", found)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
