"""Facts about the text of a conversation: its hash, length, language, and signs of damage.

For people and filters; nothing is rejected here.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.samples.language import guess_language
from pipeline.samples.prompt.conversation import Conversation

_SPOILT = re.compile("[\ufffd\ue000-\uf8ff\u0080-\u009f\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Replacement and private characters, and control characters but for tabs and line ends."""
_MIN_ECHO = 12
"""Letters of a question whose repetition counts; short ones are answered by their own words."""
_WINDOWS = {bytes([code]).decode("cp1252", "ignore"): code for code in range(0x80, 0xA0)}
"""Characters that Windows-1252 has where Latin-1 has control characters."""
_FOREIGN_RUN = re.compile(f"[\u00c2-\u00f4][\u0080-\u00bf{''.join(_WINDOWS)}]{{1,3}}")
_SAMPLE_CHARS = 4000


class TextFacts(NamedTuple):
    """Facts about one conversation."""

    hash: int
    """64 bits of all turns with their speakers, but for images, capitals, punctuation and spaces."""
    answer_chars: int
    """Characters of all that the assistant says."""
    language: str
    """Guess for the answers, or for all text where these are short: ISO 639-1; empty where it is too short."""
    is_broken: bool
    """Characters that were decoded wrongly, replacement or control characters."""
    repeats_question: bool
    """An answer that is its question again, or begins with it."""


def text_facts(conversation: Conversation) -> TextFacts:
    """Return the facts about a conversation."""
    plain = [(turn.role, plain_text(turn.text)) for turn in conversation.turns]
    answers = "\n".join(turn.text for turn in conversation.turns if turn.role == "assistant")
    everything = "\n".join(turn.text for turn in conversation.turns)
    return TextFacts(
        hash=_hash("\n".join(f"{role} {text}" for role, text in plain)),
        answer_chars=len(answers),
        language=guess_language(answers[:_SAMPLE_CHARS]) or guess_language(everything[:_SAMPLE_CHARS]),
        is_broken=bool(_SPOILT.search(everything)) or is_mojibake(everything),
        repeats_question=_repeats(plain),
    )


def plain_text(text: str) -> str:
    r"""Return the letters and digits of a text in small letters, with one space between its words.

    >>> plain_text("A  Cat, on\na mat!")
    'a cat on a mat'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded)) or folded.strip()


def is_mojibake(text: str) -> bool:
    r"""Whether some of a text is UTF-8 that was read as Windows-1252: what it was written as then still decodes.

    >>> is_mojibake("caf\u00c3\u00a9"), is_mojibake("caf\u00e9")
    (True, False)
    """
    for run in _FOREIGN_RUN.findall(text):
        try:
            bytes(_WINDOWS.get(letter, ord(letter)) for letter in run).decode("utf-8")
        except (UnicodeDecodeError, ValueError):
            continue
        return True
    return False


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _repeats(plain: Sequence[tuple[str, str]]) -> bool:
    pairs = itertools.pairwise(plain)
    return any(
        asker == "user" and speaker == "assistant" and len(asked) >= _MIN_ECHO and said.startswith(asked)
        for (asker, asked), (speaker, said) in pairs
    )
