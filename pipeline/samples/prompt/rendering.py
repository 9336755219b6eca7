"""From a conversation to marked spans with either kind of template: one of ours, or a tokenizer's own in Jinja."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from model.fusion.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN
from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.conversation import Conversation, Span, render, render_prompt
from pipeline.samples.prompt.jinja_template import JinjaTemplate, read_jinja_template, render_jinja, render_jinja_prompt
from pipeline.samples.prompt.templates import Template, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_TEMPLATE = "tokenizer"
"""Name that stands for the chat template which comes with the tokenizer."""


def choose_template(
    name: str, tokenizer: PreTrainedTokenizerBase, *, wraps_images: bool = False
) -> Template | JinjaTemplate:
    """Return the template of a name.

    Args:
        name: of a built-in template, or `tokenizer`.
        tokenizer: has its own template.
        wraps_images: put `<im_start>` and `<im_end>` around every image.

    Raises:
        ValueError: unknown name, or the tokenizer has no template that can be trained with.
    """
    template = read_jinja_template(tokenizer) if name == OWN_TEMPLATE else get_template(name)
    if not wraps_images:
        return template
    return dataclasses.replace(template, around_image=(DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN))


def render_conversation(conversation: Conversation, template: Template | JinjaTemplate) -> list[Span]:
    """Render a complete conversation for training.

    Raises:
        DataError: a Jinja template refuses it, or template `plain` is given more than images and their caption.
    """
    if isinstance(template, JinjaTemplate):
        return render_jinja(conversation, template)
    if not template.keeps_user_text:
        _check_caption(conversation)
    return render(conversation, template)


def _check_caption(conversation: Conversation) -> None:
    """Refuse what would leave an answer without the question that it answers."""
    num_spoken = sum(turn.role != "system" for turn in conversation.turns)
    if num_spoken != 2:
        what = f"{num_spoken} turns"
    elif not conversation.num_images:
        what = "no image"
    else:
        return
    raise DataError(
        Reason.NOT_A_CAPTION, f"{what}, but template plain leaves out what the user says: expected images and a caption"
    )


def render_question(conversation: Conversation, template: Template | JinjaTemplate) -> list[Span]:
    """Render a conversation that ends with the user's turn up to where the assistant's answer begins.

    Raises:
        ValueError: the last turn is not the user's.
        DataError: a Jinja template refuses it.
    """
    if isinstance(template, JinjaTemplate):
        return render_jinja_prompt(conversation, template)
    return render_prompt(conversation, template)
