"""Streamed text only grows, holds no broken characters, and ends before the first stop text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation.answer_text import AnswerText


def spell_bytes(ids: Sequence[int]) -> str:
    """Every token is a byte, so that characters and stop texts are spread over tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


def stream(text: str | bytes, *stops: str) -> tuple[list[str], AnswerText]:
    answer = AnswerText(spell_bytes, stops)
    pieces = []
    for byte in text.encode() if isinstance(text, str) else text:
        pieces.append(answer.add(byte))
        if answer.has_stopped:
            break
    return [*pieces, answer.close()], answer


@given(st.text(alphabet=st.sampled_from("ab \n\u00e9\u4f60\U0001f600"), max_size=17), st.data())
def test_any_text_comes_whole_up_to_the_first_stop(text: str, data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text(alphabet="ab \n\u4f60", min_size=1, max_size=3), max_size=2))
    pieces, answer = stream(text, *stops)
    ends = [text.index(stop) for stop in stops if stop in text]
    # the text ends as soon as a stop is complete, and then at the earliest one
    complete = min((text.index(stop) + len(stop) for stop in stops if stop in text), default=len(text))
    seen = text[:complete]
    begin = min((seen.index(stop) for stop in stops if stop in seen), default=len(text))
    assert "".join(pieces) == text[:begin].strip()
    assert answer.has_stopped == bool(ends)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    pieces, _ = stream(" a\u00e9 b##", "###")
    assert pieces == ["", "a", "", "\u00e9", "", " b", "", "", "##"]


def test_an_unfinished_character_is_left_out() -> None:
    pieces, _ = stream("\U0001f600".encode()[:3])
    assert "".join(pieces) == ""


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff\xffab", b"\xe4\xe4\xe4\xe4\xe4\xe4a", b"a\x80\x80b"])
def test_bytes_that_spell_nothing_do_not_hold_back_what_follows(garbage: bytes) -> None:
    pieces, _ = stream(garbage)
    assert "".join(pieces).endswith(garbage.decode(errors="ignore")[-1])
    assert "".join(pieces).replace("\ufffd", "") == garbage.decode(errors="ignore")


def test_a_first_token_that_is_spelled_otherwise_alone_gets_its_space_back() -> None:
    words = {1: "\u2581one", 2: "\u2581two", 3: "s"}

    def spell(ids: Sequence[int]) -> str:
        return "".join(words[token] for token in ids).replace("\u2581", " ").removeprefix(" ")

    answer = AnswerText(spell, ())
    assert [answer.add(token) for token in (1, 2, 3, 1)] == ["one", " two", "s", " one"]
