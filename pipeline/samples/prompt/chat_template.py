"""A conversation template, of either kind, as the Jinja chat template that goes with an exported model.

Chat messages then become the very text that training rendered, with `<image>` where an image belongs. BOS is part of
it, since servers do not let the tokenizer add one to a chat.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.templates import Template

_TEXTS: Final = (
    "{%- macro texts(message) -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
_PARTS: Final = (
    "{%- macro parts(message) -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{{ '<image>' if part.type == 'image' else part.text }}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
_IMAGE: Final = "@IMAGE@"
_CONTENT: Final = _PARTS + (
    "{%- macro content(message) -%}{%- set pieces = parts(message).split('<image>') -%}"
    "{%- if pieces | length == 2 -%}"
    "{%- set text = pieces | join | trim -%}{{ @IMAGE@ }}{%- if text -%}{{ '\\n' ~ text }}{%- endif -%}"
    "{%- else -%}{{ pieces | join(@IMAGE@) }}{%- endif -%}"
    "{%- endmacro -%}"
)
"""A single image comes first, on a line of its own; several stay where they are. A text may spell them `<image>`."""

_FLATTEN: Final = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set text = content(message) if message.role == 'user' else texts(message) -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=text | string)] -%}{%- endfor -%}"
    "{%- set messages = flat.messages %}\n"
)
"""Makes plain text of all contents, which is what a language model's own template expects."""

_IMAGES_ONLY: Final = _PARTS + (
    "{%- macro content(message) -%}"
    "{%- for piece in parts(message).split('<image>')[1:] -%}{{ @IMAGE@ }}{%- endfor -%}{%- endmacro -%}"
)

_BEFORE_SPACING: Final = "{%- set whole_prompt %}\n"
_SPACING: Final = (
    "{%+ endset -%}{%- for piece in whole_prompt.split('<image>') -%}{{ @BOS@ if loop.first else '<image>' }}"
    "{%- if (@BOS@ or not loop.first) and piece and piece[0] != ' ' and not piece.startswith(@TOKENS@) -%}"
    "{{ ' ' }}{%- endif -%}{{ piece }}{%- endfor -%}"
)
"""Writes the space that such a tokenizer reads before a text after BOS or an image when it reads the text alone."""


def chat_template_of(
    template: Template | JinjaTemplate, *, bos: str = "", adds_spaces: bool = False, tokens: Collection[str] = ()
) -> str:
    """Return the Jinja template that renders chat messages as training renders turns.

    Args:
        template: of the training conversations.
        bos: what training puts before the whole, beyond what the template writes.
        adds_spaces: write a space between an image, or `bos`, and a text after it, for a tokenizer that puts one before
            the first text only: training reads each text between images as a first one.
        tokens: all tokens that the tokenizer finds before it splits text; none of them is text.
    """
    image = _literal("<image>".join(template.around_image))
    if isinstance(template, JinjaTemplate):
        source = (_TEXTS + _CONTENT + _FLATTEN).replace(_IMAGE, image) + template.source.removesuffix("\n")
    else:
        source = _jinja_of(template).replace(_IMAGE, image)
    if not adds_spaces:
        return _written(bos) + source
    known = "".join(f"{_literal(token)}, " for token in sorted(tokens))
    return _BEFORE_SPACING + source + _SPACING.replace("@TOKENS@", f"({known})").replace("@BOS@", _literal(bos))


def _jinja_of(template: Template) -> str:
    # 1. Each kind of turn.
    own_system = "{%- set system = texts(messages[0]) -%}" if template.keeps_user_text else ""
    system = (
        f"{{%- set system = {_literal(template.system)} -%}}{{%- set turns = messages -%}}"
        f"{{%- if messages and messages[0].role == 'system' -%}}{own_system}"
        "{%- set turns = messages[1:] -%}{%- endif -%}"
        f"{{%- set system = {_literal(template.before_system)} ~ system ~ {_literal(template.after_system)}"
        " if system else '' -%}"
    )
    user = (
        f"{{{{ {_literal(template.before_next_user)} if not loop.first else '' }}}}{_written(template.before_user)}"
        + ("{{ system if loop.first else '' }}" if template.system_inside_user else "")
        + "{{ content(message) }}"
        + _written(template.after_user)
    )
    assistant = (
        _written(template.before_assistant + template.answer_prefix)
        + "{{ texts(message) }}"
        + _written(template.answer_suffix + template.end_of_answer + template.after_answer)
    )
    # 2. The turns, and the beginning of the answer.
    return (
        _TEXTS
        + (_CONTENT if template.keeps_user_text else _IMAGES_ONLY)
        + system
        + ("" if template.system_inside_user else "{{ system }}")
        + "{%- for message in turns -%}{%- if message.role == 'assistant' -%}"
        + assistant
        + "{%- else -%}"
        + user
        + "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}"
        + _written(template.before_assistant)
        + "{%- endif -%}"
    )


def _literal(text: str) -> str:
    """Spell a string in Jinja; its escapes are JSON's."""
    return json.dumps(text)


def _written(text: str) -> str:
    return f"{{{{ {_literal(text)} }}}}" if text else ""
