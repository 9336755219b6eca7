"""Conversation templates: how turns become a prompt, as data. Rendering is in `conversation`.

Wording and spacing follow LLaVA's `conversation.py` for its own templates, and the chat templates of the published
models for Qwen, Gemma, Phi and Llama 3. The first control token of a text (BOS) is the tokenizer's to add.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Template:
    """How turns become a prompt. Every string is literal."""

    name: str
    system: str = ""
    """System text of conversations without one."""
    before_system: str = ""
    after_system: str = ""
    system_inside_user: bool = False
    """The system text follows `before_user` of the first user turn instead of preceding it."""
    before_user: str = ""
    after_user: str = ""
    before_assistant: str = ""
    """Ends without the space before an answer: the space is part of the answer's first token."""
    answer_prefix: str = ""
    """Supervised, together with the answer."""
    answer_suffix: str = ""
    """Supervised text after the answer."""
    end_of_answer: str = ""
    """Supervised control token after the answer."""
    after_answer: str = ""
    """Not supervised; follows every answer."""
    before_next_user: str = ""
    """Precedes every user turn but the first."""
    control_tokens: tuple[str, ...] = ()
    """Further control tokens that occur in the strings above."""
    around_image: tuple[str, str] = ("", "")
    """Control tokens before and after every image; empty for none."""
    keeps_user_text: bool = True
    """False discards what the user says and keeps the images, as projector pretraining does."""

    @property
    def controls(self) -> set[str]:
        """All control tokens of the template."""
        return {token for token in (*self.control_tokens, self.end_of_answer, *self.around_image) if token}


_VICUNA: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_MPT: Final = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)


def _headed(
    name: str, head: tuple[str, str], end: str, after: str, system: str, roles: tuple[str, str, str]
) -> Template:
    """Describe the formats that open every turn with a role in a header and close it with one control token.

    Args:
        name: of the template.
        head: control token before the role, and what follows the role.
        end: control token after each turn.
        after: text after `end`.
        system: default system text.
        roles: names of system, user and assistant.
    """
    opened = [head[0] + role + head[1] for role in roles]
    return Template(
        name=name,
        system=system,
        before_system=opened[0],
        after_system=end + after,
        before_user=opened[1],
        after_user=end + after,
        before_assistant=opened[2],
        end_of_answer=end,
        after_answer=after,
        control_tokens=tuple(token for token in (*_controls(opened), end) if token),
    )


def _controls(texts: list[str]) -> list[str]:
    """Find the distinct `<|...|>` tokens that texts spell, in order."""
    found = re.findall(r"<\|[^|]+\|>", "".join(texts))
    return list(dict.fromkeys(found))


_ROLES: Final = ("system", "user", "assistant")
_CHATML: Final = ("<|im_start|>", "\n")

_ALL: Final = (
    Template(name="plain", answer_suffix="\n", keeps_user_text=False),
    Template(
        name="v0",
        system=_VICUNA.replace("user", "human"),
        after_system="###",
        before_user="Human: ",
        after_user="###",
        before_assistant="Assistant:",
        answer_prefix=" ",
        answer_suffix="###",
    ),
    Template(
        name="v1",
        system=_VICUNA,
        after_system=" ",
        before_user="USER: ",
        after_user=" ",
        before_assistant="ASSISTANT:",
        answer_prefix=" ",
        end_of_answer="</s>",
    ),
    Template(
        name="llama_2",
        system=_LLAVA,
        before_system="<<SYS>>\n",
        after_system="\n<</SYS>>\n\n",
        system_inside_user=True,
        before_user="[INST] ",
        after_user=" ",
        before_assistant="[/INST]",
        answer_prefix=" ",
        answer_suffix=" ",
        end_of_answer="</s>",
        before_next_user="<s>",
        control_tokens=("<s>",),
    ),
    Template(
        name="mistral_instruct",
        before_system="<<SYS>>\n",
        after_system="\n<</SYS>>\n\n",
        system_inside_user=True,
        before_user="[INST] ",
        after_user=" ",
        before_assistant="[/INST]",
        answer_prefix=" ",
        answer_suffix=" ",
        end_of_answer="</s>",
    ),
    _headed("llama_3", ("<|start_header_id|>", "<|end_header_id|>\n\n"), "<|eot_id|>", "", _LLAVA, _ROLES),
    _headed("mpt", _CHATML, "<|im_end|>", "", _MPT, _ROLES),
    _headed("chatml", _CHATML, "<|im_end|>", "\n", "", _ROLES),
    _headed("qwen", _CHATML, "<|im_end|>", "\n", "You are a helpful assistant.", _ROLES),
    _headed("phi", ("", "\n"), "<|end|>", "\n", "", ("<|system|>", "<|user|>", "<|assistant|>")),
    Template(
        name="gemma",
        after_system="\n\n",
        system_inside_user=True,
        before_user="<start_of_turn>user\n",
        after_user="<end_of_turn>\n",
        before_assistant="<start_of_turn>model\n",
        end_of_answer="<end_of_turn>",
        after_answer="\n",
        control_tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
)

TEMPLATES: Final[dict[str, Template]] = {template.name: template for template in _ALL}
"""Name -> template."""


def get_template(name: str) -> Template:
    """Return a registered template.

    Raises:
        ValueError: unknown name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"unknown conversation template {name!r}; known ones: {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]
