"""The text of a row in any dialect: turns, question and answer, a caption, or a document of texts and pictures.

Shapes read: LLaVA and ShareGPT (`from`, `value`), OpenAI (`role`, `content`), pairs as structs or as two-item lists, a
list per field, maps, JSON as text, Alpaca and ms-swift (`instruction` or `query` with `history` and `system`), VQA
(`question`, `answers`), OBELICS (`texts` and `images` side by side).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import TURNS, either, either_field, read_annotation

TURN_NAMES = ("conversations", "messages", "texts", "conversation", "dialogue", "dialog", "chat")
CAPTION_NAMES = ("caption", "text", "txt", "TEXT", "captions")
QUESTION_NAMES = ("question", "query", "instruction", "prompt", "user")
ANSWER_NAMES = ("multiple_choice_answer", "answer", "answers", "response", "output", "completion", "assistant")
_PAIRS = (("user", "assistant"), ("question", "answer"), ("human", "gpt"), ("q", "a"), ("query", "response"))
_UNREAD_IN_TURNS = ("tool_calls", "function_call", "reasoning_content", "thinking")
_JSON_TURNS = re.compile(r"[\s\ufeff]*(?:\[\s*\{|\{.*\"(?:conversations|messages)\"\s*:)", re.DOTALL)

Form = Literal["turns", "pairs", "caption", "document"]


class Said(NamedTuple):
    """The texts of a row."""

    form: Form
    field: str
    """The field they are in; of a question and its answer the question's."""
    turns: list[dict[str, Any]]
    """Empty for a caption; for a document one dict per item, its text or None where a picture is."""
    caption: Any = None
    fields: frozenset[str] = frozenset()
    """All fields that were read."""
    stored: Any = None
    """The content of `field` as a list of dicts, for any shape that it had."""


def read_said(row: Mapping[str, Any], text_field: str | None = None) -> Said:
    """Return what a row says.

    Args:
        row: a row with all its fields.
        text_field: the field with turns or captions; found by the usual names when not given.

    Raises:
        DataError: nothing, two different things, or none of the known shapes.
    """
    names = [text_field] if text_field else [name for name in TURN_NAMES if _holds(row, name)]
    names = [name for name in names if _holds(row, name)]
    if not names and (asked := _question(row)) is not None:
        return asked
    captions = [name for name in CAPTION_NAMES if _holds(row, name)]
    name = next(iter(names or captions), None)
    if name is None and text_field is None and (field := either_field(row, TURNS)) is not None and row[field] == []:
        raise DataError(Reason.CONVERSATION_EMPTY, f"`{field}` holds no turn")
    if name is None:
        raise DataError(Reason.MISSING_ANNOTATION, _nothing(row, text_field))
    _check_same(row, names)
    value = row[name]
    if name in CAPTION_NAMES and isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str) and not (name in TURN_NAMES or _JSON_TURNS.match(value)):
        return Said("caption", name, [], value, frozenset((name,)), value)
    if _is_document(row, name):
        return Said("document", name, [{"text": one} for one in value], None, frozenset((name,)), value)
    turns = _parsed(value)
    pairs = _as_pairs(turns)
    read = {name, "history"} if pairs is not None else {name}
    if pairs is not None:
        return _with_system(row, Said("pairs", name, [*_history(row), *pairs], None, frozenset(read), turns))
    _check_turns(turns)
    return _with_system(row, Said("turns", name, turns, None, frozenset(read), turns))


def _holds(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return value is not None and value not in ("", [], {})


def _nothing(row: Mapping[str, Any], text_field: str | None) -> str:
    if text_field:
        return f"column {text_field[:40]!a} is empty"
    empty = next((name for name in (*TURN_NAMES, *CAPTION_NAMES) if name in row), None)
    if empty is not None:
        return f"column {empty[:40]!a} is empty"
    return f"an entry with no turns, question or caption; it has {', '.join(sorted(row))[:120]!a}"


def _check_same(row: Mapping[str, Any], names: list[str]) -> None:
    """Check that of two fields with turns, the second says the same."""
    for name in names[1:]:
        value = row[name]
        is_turns = isinstance(value, list) and all(isinstance(one, dict) for one in value)
        if is_turns and value != row[names[0]]:
            raise DataError(Reason.TEXT_UNREAD, f"two fields of turns that differ, `{names[0]}` and `{name}`")


def _parsed(value: Any) -> list[dict[str, Any]]:
    """Return a list of dicts from the shapes in which turns are stored."""
    if isinstance(value, str):
        value = read_annotation(value.encode("utf-8", "surrogatepass"), max_bytes=len(value) * 4 + 4)
    if isinstance(value, dict):  # the annotation as a whole, of which a row needs the turns
        value = _rows_of_columns(value) or either(value, TURNS)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        raise DataError(
            Reason.JSON_INVALID,
            f"{len(value)} texts in one row: choose one, or give each a row of its own (in datasets: `map` with "
            "batched=True)",
        )
    if isinstance(value, list) and value and all(_is_map(one) for one in value):
        value = [dict(one) for one in value]
    if isinstance(value, list) and value and all(_is_two_texts(one) for one in value):
        value = [{"user": question, "assistant": answer} for question, answer in value]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DataError(Reason.JSON_INVALID, "text that is neither a caption nor a list of turns")
    return value


def _is_map(one: Any) -> bool:
    """Whether pyarrow read this as a map: a list of (key, value) tuples."""
    return isinstance(one, list) and bool(one) and all(isinstance(item, tuple) and len(item) == 2 for item in one)


def _is_two_texts(one: Any) -> bool:
    return isinstance(one, list | tuple) and len(one) == 2 and all(isinstance(text, str) for text in one)


def _rows_of_columns(text: dict[str, Any]) -> list[dict[str, Any]]:
    """Return turns stored as a list per field, as datasets' `Sequence` of a struct is; none for anything else."""
    if not text or not all(isinstance(values, list) for values in text.values()):
        return []
    if not {"from", "role"} & text.keys() or len({len(values) for values in text.values()}) != 1:
        return []
    return [dict(zip(text, values, strict=True)) for values in zip(*text.values(), strict=True)]


def _as_pairs(turns: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return turns of question-answer pairs, or None when these are turns already."""
    names = next((pair for pair in _PAIRS if turns and set(pair) <= turns[0].keys()), None)
    if names is None or {"role", "from"} & turns[0].keys():
        return None
    paired: list[dict[str, Any]] = []
    for idx, pair in enumerate(turns):
        for name, role in zip(names, ("user", "assistant"), strict=True):
            text = pair.get(name)
            if name not in pair or not isinstance(text, str | None):
                raise DataError(Reason.JSON_INVALID, f"pair {idx} has no text of the {role}")
            paired.append({"role": role, "content": text or ""})
    return paired


def _check_turns(turns: list[dict[str, Any]]) -> None:
    """Check that no turn says more than what is read of it."""
    for idx, turn in enumerate(turns):
        said = [turn[name] for name in ("value", "content", "text") if turn.get(name) not in (None, "", [])]
        if len(said) > 1 and any(one != said[0] for one in said):
            raise DataError(Reason.TEXT_UNREAD, f"turn {idx} has several texts that differ")
        for name in _UNREAD_IN_TURNS:
            if turn.get(name):
                raise DataError(Reason.TEXT_UNREAD, f"field `{name}` of turn {idx} is not read")


def _with_system(row: Mapping[str, Any], said: Said) -> Said:
    """Return the turns with the row's own field `system` before them."""
    system = row.get("system", row.get("system_prompt"))
    if not isinstance(system, str) or not system.strip():
        return said
    first = said.turns[0] if said.turns else {}
    fields = said.fields | {"system", "system_prompt"}
    if first.get("from", first.get("role")) == "system":
        if first.get("value", first.get("content")) != system:
            raise DataError(Reason.TEXT_UNREAD, "field `system` in addition to a turn of the system")
        return said._replace(fields=fields)
    return said._replace(turns=[{"role": "system", "content": system}, *said.turns], fields=fields)


def _question(row: Mapping[str, Any]) -> Said | None:
    """Return the turns of a question and its answer in fields of their own; None for any other row."""
    asked = next((name for name in QUESTION_NAMES if isinstance(row.get(name), str) and _holds(row, name)), None)
    answered = next((name for name in ANSWER_NAMES if _holds(row, name)), None)
    if asked is None or answered is None:
        return None
    question = str(row[asked])
    more = row.get("input")
    if asked == "instruction" and isinstance(more, str) and more.strip():
        question = f"{question}\n{more}"
    hint = row.get("hint")
    if isinstance(hint, str) and hint.strip():
        question = f"{hint}\n{question}"
    options = _options(row)
    question = "\n".join([question, *(f"{letter}. {option}" for letter, option in options)])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": _answer(row[answered])}]
    read = {asked, answered, "input", "hint", "history", "choices", "options", *(letter for letter, _ in options)}
    return _with_system(row, Said("pairs", asked, [*_history(row), *turns], None, frozenset(read), row[asked]))


def _options(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (letter, text) of the choices of a question: columns A, B, C ... as MMBench has them, or one list."""
    listed = next((row[name] for name in ("choices", "options") if isinstance(row.get(name), list)), None)
    if listed and all(isinstance(one, str) for one in listed):
        return [(chr(ord("A") + idx), one) for idx, one in enumerate(listed[:26])]
    columns = [(letter, row[letter]) for letter in "ABCDEFGH" if letter in row]
    return [
        (letter, str(text)) for letter, text in columns if text is not None and str(text).strip() not in ("", "nan")
    ]


def _answer(value: Any) -> str:
    """Return an answer; of those of several people the most frequent, the first one where they tie."""
    if isinstance(value, list) and value:
        given = [one.get("answer") if isinstance(one, dict) else one for one in value]
        if all(isinstance(one, str) for one in given):
            return str(Counter(given).most_common(1)[0][0])
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(Reason.JSON_INVALID, f"an answer of type {type(value).__name__}, expected text")


def _history(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the earlier turns of Alpaca and ms-swift rows: a list of [question, answer]."""
    history = row.get("history")
    if history in (None, [], ""):
        return []
    if isinstance(history, str):
        history = json.loads(history) if history.lstrip().startswith("[") else history
    if not isinstance(history, list) or not all(_is_two_texts(one) for one in history):
        raise DataError(Reason.TEXT_UNREAD, "field `history` is not a list of [question, answer]")
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _is_document(row: Mapping[str, Any], name: str) -> bool:
    """Whether texts and pictures take turns, as in OBELICS and MINT: lists of one length, one of the two null."""
    texts, images = row.get(name), row.get("images")
    return (
        isinstance(texts, list)
        and isinstance(images, list)
        and len(texts) == len(images) > 0
        and all(isinstance(one, str | None) for one in texts)
        and all((text is None) != (image is None) for text, image in zip(texts, images, strict=True))
    )
