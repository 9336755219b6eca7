"""A conversation template, of either kind, as the Jinja chat template that goes with an exported model.

Chat messages then become the very text that training rendered, with `<image>` where an image belongs. As in published
LLaVA models the first control token (BOS) is left to the tokenizer.
"""

from __future__ import annotations

import json
from typing import Final

from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.templates import Template

_TEXTS: Final = (
    "{%- macro texts(message) -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
_IMAGE: Final = "'<image>'"
_CONTENT: Final = (
    "{%- macro content(message) -%}"
    "{%- set images = [] if message.content is string"
    " else message.content | selectattr('type', 'equalto', 'image') | list -%}"
    "{%- if images | length == 1 -%}"
    "{%- set text = texts(message) | trim -%}{{ '<image>' }}{%- if text -%}{{ '\\n' ~ text }}{%- endif -%}"
    "{%- elif message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{{ '<image>' if part.type == 'image' else part.text }}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
"""A single image comes first, on a line of its own; several stay where they are."""

_FLATTEN: Final = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set text = content(message) if message.role == 'user' else texts(message) -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=text | string)] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
"""Makes plain text of all contents, which is what a language model's own template expects."""

_IMAGES_ONLY: Final = (
    "{%- macro content(message) -%}{%- if message.content is not string -%}{%- for part in message.content"
    " if part.type == 'image' -%}{{ '<image>' }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)


def chat_template_of(template: Template | JinjaTemplate) -> str:
    """Return the Jinja template that renders chat messages as training renders turns."""
    before, after = template.around_image
    image = _literal(f"{before}<image>{after}")
    if isinstance(template, JinjaTemplate):
        return (_TEXTS + _CONTENT + _FLATTEN).replace(_IMAGE, image) + template.source
    return _jinja_of(template).replace(_IMAGE, image)


def _jinja_of(template: Template) -> str:
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
