"""A guess at the language of a text: by its script, and among Latin ones by the small words that are frequent in them.

Enough to find what does not belong in a data set; captions of a few words are too short for statistics over letters.
"""

from __future__ import annotations

import re
from typing import Final

MIN_LETTERS: Final = 12
"""Of a text whose language is guessed."""
_SCRIPTS: Final = (
    ("ja", "\u3040-\u30ff"),
    ("ko", "\u1100-\u11ff\uac00-\ud7af"),
    ("zh", "\u3400-\u4dbf\u4e00-\u9fff"),
    ("uk", "\u0404\u0406\u0407\u0454\u0456\u0457\u0490\u0491"),
    ("ru", "\u0400-\u04ff"),
    ("el", "\u0370-\u03ff"),
    ("ar", "\u0600-\u06ff"),
    ("he", "\u0590-\u05ff"),
    ("hi", "\u0900-\u097f"),
    ("bn", "\u0980-\u09ff"),
    ("ta", "\u0b80-\u0bff"),
    ("th", "\u0e00-\u0e7f"),
)
"""(language, its letters); the first that makes a tenth of a text is taken: Japanese also has Chinese letters."""
_SHARE: Final = 0.1
_WORDS: Final = {
    "en": "the while as by his her its is are and of in on with there what this that it to an at how which does",
    "de": "der die das ein eine einen ist sind und mit auf im nicht was wie von zu den dem es wird hat zwei",
    "fr": "le la les un une des est sont et dans sur avec que qui il elle du au pas pour cette deux quel quelle",
    "es": "el la los las un una es son en con que de del no por para hay esta qu\u00e9 cu\u00e1ntos dos se sobre",
    "it": "il lo la gli un una \u00e8 sono in con che di del non per su c'\u00e8 della nel due cosa questo",
    "pt": "os as um uma \u00e9 s\u00e3o em com que de do da n\u00e3o por para h\u00e1 no na dois uns est\u00e1",
    "nl": "de het een is zijn en van in op met er wat dat niet voor naar die te aan hoe twee wordt",
    "sv": "den det en ett \u00e4r och med p\u00e5 av som inte f\u00f6r till har vad tv\u00e5 om sig",
    "pl": "jest si\u0119 na nie to do co czy s\u0105 jak dwa przez od ten ta kt\u00f3ry",
    "tr": "bir ve bu ne de da i\u00e7in ile var m\u0131 \u00e7ok olan iki gibi kadar",
    "id": "yang di dan ini itu ada dengan apa untuk dari pada adalah tidak seorang sebuah dua",
    "vi": "l\u00e0 m\u1ed9t c\u00f3 v\u00e0 trong c\u1ee7a nh\u1eefng g\u00ec n\u00e0y \u0111ang tr\u00ean v\u1edbi",
}
_SMALL_WORDS: Final = {language: frozenset(words.split()) for language, words in _WORDS.items()}


def guess_language(text: str) -> str:
    """Return the likely language, ISO 639-1; empty where the text is too short or fits none of them."""
    letters = sum(letter.isalpha() for letter in text)
    for language, characters in _SCRIPTS:
        if (found := len(re.findall(f"[{characters}]", text))) and found >= _SHARE * letters:
            return language if found >= 3 else ""
    if letters < MIN_LETTERS:
        return ""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold())
    counts = {language: sum(word in small for word in words) for language, small in _SMALL_WORDS.items()}
    best, second = sorted(counts.values())[-1:-3:-1]
    if not best or best == second:
        return ""
    return max(counts, key=lambda language: counts[language])
