"""What a Jinja chat template would take from the day it runs or from its caller, written into the template itself.

Training, `generate` and readers of the exported folder then render the same text: the date is always the same one,
and a model that can think before it answers (Qwen 3, SmolLM 3) is asked not to, as the answers it learns do not think.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

_DATE: Final = {
    "%d": "26", "%-d": "26", "%e": "26", "%j": "208",
    "%m": "07", "%-m": "7", "%b": "Jul", "%h": "Jul", "%B": "July",
    "%y": "24", "%Y": "2024", "%G": "2024", "%V": "30", "%U": "29", "%W": "30",
    "%a": "Fri", "%A": "Friday", "%u": "5", "%w": "5",
    "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%f": "000000", "%z": "", "%Z": "",
    "%D": "07/26/24", "%F": "2024-07-26", "%x": "07/26/24", "%X": "00:00:00", "%T": "00:00:00", "%R": "00:00",
}  # fmt: skip
"""26 July 2024, which Llama 3's template falls back to; an unknown directive stays as it is."""

_MARK: Final = "{#- pinned -#}"


def pin_source(source: str) -> str:
    """Return a template that depends on its messages and on special tokens only; one that already does is unchanged."""
    if _MARK in source:
        return source
    pins = []
    if "strftime_now" in source:
        filters = "".join(f" | replace({_literal(name)}, {_literal(text)})" for name, text in _DATE.items())
        pins.append(f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}")
    if "enable_thinking" in source:
        pins.append("{%- set enable_thinking = false -%}")
    return _put_before(source, _MARK + "".join(pins)) if pins else source


def pin_variables(source: str, variables: Mapping[str, str]) -> str:
    """Return a template that is independent of what the caller gives for `variables`."""
    pins = (f"{{%- set {name} = {_literal(text)} -%}}" for name, text in variables.items() if name in source)
    return _put_before(source, "".join(pins))


def _put_before(source: str, pins: str) -> str:
    # transformers removes a line break after a block and the blanks before one at the beginning of a line: with this
    # line break the source begins a line, as it does alone
    return f"{pins.removesuffix('-%}')}%}}\n{source}" if pins else source


def _literal(text: str) -> str:
    """Spell a string in Jinja; its escapes are JSON's."""
    return json.dumps(text)
