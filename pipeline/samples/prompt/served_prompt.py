"""The prompt as a server of an exported model makes it: from the exported tokenizer, chat template and processor.

`check_served` compares it with the prompts of training and of `generate` before a run starts; what cannot be made equal
is refused then, by name, and not found out with the finished model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, cast

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from model.fusion.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from model.hub.tokenizer_files import portable
from pipeline.errors import DataError
from pipeline.samples.prompt.chat_template import chat_template_of
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Turn
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.pinned_source import pin_variables
from pipeline.samples.prompt.rendering import render_conversation, render_question
from pipeline.samples.prompt.templates import Template
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import encode_prompt

_TEXTS: Final = ("What colour is the ball?", "How many cubes, 12 or 3.5?\nAnswer briefly.", "\u00bfQu\u00e9 es? \u00bd")
_ANSWERS: Final = ("red", "There are three cubes.\nYes.", "\u00c9 um c\u00edrculo \U0001f535")


def served_tokenizer(tokenizer: PreTrainedTokenizerFast, template: Template | JinjaTemplate) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the exported folder: with `<image>`, the chat template, and the template's end as EOS.

    The chat template writes BOS and the tokenizer adds none, so that a prompt has one whichever way it is made.

    Args:
        tokenizer: as `read_tokenizer` returns it.
        template: of the training conversations, made with this tokenizer.
    """
    served = portable(tokenizer, adds_bos=False)
    if DEFAULT_IMAGE_TOKEN in served.get_added_vocab():
        _make_plain(served)
    else:
        served.add_tokens([AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if template.end_of_answer:
        served.eos_token = template.end_of_answer
    if served.pad_token is None:
        served.pad_token = tokenizer.unk_token or tokenizer.eos_token or served.eos_token
    served.padding_side = "left"  # answers of a batch continue its prompts
    adds_bos = tokenizer.add_bos_token and not isinstance(template, JinjaTemplate)
    served.chat_template = served_chat_template(served, template, adds_bos=adds_bos)
    return served


def served_chat_template(
    tokenizer: PreTrainedTokenizerFast, template: Template | JinjaTemplate, *, adds_bos: bool
) -> str:
    """Return the Jinja template that makes, with a tokenizer, the prompts of a run.

    Args:
        tokenizer: reads what the template writes; without `<image>` it can read conversations without images.
        template: of the training conversations.
        adds_bos: whether training puts BOS before what the template writes.
    """
    backend = tokenizer.backend_tokenizer
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]
    alone = backend.encode("a", add_special_tokens=False).ids
    adds_spaces = any(
        backend.encode(f"{token}a", add_special_tokens=False).ids[1:] != alone
        for token in (DEFAULT_IMAGE_TOKEN, tokenizer.bos_token)
        if token in tokens
    )
    bos = str(tokenizer.bos_token) if adds_bos else ""
    text = chat_template_of(template, bos=bos, adds_spaces=adds_spaces, tokens=tokens)
    if not isinstance(template, JinjaTemplate):
        return text
    given = tokenizer.special_tokens_map
    return pin_variables(text, {name: value for name, value in template.variables if given.get(name) != value})


def served_ids(served: PreTrainedTokenizerFast, conversation: Conversation, *, prompt: bool) -> list[int]:
    """Return the ids that transformers' processor makes of a conversation, with one `<image>` per image.

    Args:
        served: of `served_tokenizer`.
        conversation: all of it.
        prompt: end where the assistant's answer begins.
    """
    messages = [_message(turn) for turn in conversation.turns]
    text = cast(str, served.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    has_bos = served.bos_token is not None and text.startswith(served.bos_token)
    return cast(list[int], served(text, add_special_tokens=not has_bos).input_ids)


def check_served(
    tokenizer: PreTrainedTokenizerFast, template: Template | JinjaTemplate, wrapped: TextTokenizer
) -> None:
    """Compare the prompts of training, of `generate` and of the exported folder on conversations of every kind.

    Args:
        tokenizer: as `read_tokenizer` returns it, with all tokens around images.
        template: of the run.
        wrapped: what training tokenizes with.

    Raises:
        ValueError: a conversation gets other ids in one of them.
    """
    served = served_tokenizer(tokenizer, template)
    image_id = cast(int, served.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN))
    where = f"template {template.name!r} with the tokenizer of {tokenizer.name_or_path or 'this run'}"
    advice = "choose another data.template or another tokenizer"
    for conversation in _probes(template):
        try:
            learnt = encode_prompt(render_conversation(conversation, template), wrapped).tolist()
            asked = encode_prompt(render_question(Conversation(conversation.turns[:-1]), template), wrapped).tolist()
        except DataError:
            continue  # refused by reason where it occurs in the data
        if learnt[: len(asked)] != asked:
            difference = _difference(served, asked, learnt)
            raise ValueError(
                f"{where}: an answer is learnt after another prompt than it is asked with: {difference}; {advice}"
            )
        for ids, turns, prompt in ((asked, conversation.turns[:-1], True), (learnt, conversation.turns, False)):
            expected = [image_id if token_id == IMAGE_TOKEN_INDEX else token_id for token_id in ids]
            found = served_ids(served, Conversation(turns), prompt=prompt)
            if found != expected:
                difference = _difference(served, expected, found)
                raise ValueError(f"{where}: an exported model would be asked with other tokens: {difference}; {advice}")


def _make_plain(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make `<image>` strip no white space next to it, also where the tokenizer already had the token."""
    tree: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for entry in tree["added_tokens"]:
        if entry["content"] == DEFAULT_IMAGE_TOKEN:
            entry.update(flags)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(tree))


def _message(turn: Turn) -> dict[str, Any]:
    parts = [{"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in turn.parts]
    return {"role": turn.role, "content": parts}


def _probes(template: Template | JinjaTemplate) -> Iterator[Conversation]:
    """Yield conversations: without, with one and with several images, of one turn and of several."""
    first, second, third = _TEXTS
    questions: list[tuple[Part, ...]] = [(Image(), first), (Image(),), (Image(), "\n", second), (third, Image())]
    if not (isinstance(template, Template) and not template.keeps_user_text):
        questions += [(first,), (Image(), Image(), second), ("First ", Image(), " then ", Image(), " same?")]
        questions += [(" and ", Image(), third, Image())]
    for number, question in enumerate(questions):
        user, assistant = Turn("user", question), Turn("assistant", (_ANSWERS[number % 3],))
        yield Conversation((user, assistant))
        if len(questions) > 4:
            yield Conversation((Turn("system", ("Be brief.",)), user, assistant))
            again = Turn("user", (_TEXTS[(number + 1) % 3],))
            yield Conversation((user, assistant, again, Turn("assistant", (_ANSWERS[(number + 1) % 3],))))


def _difference(tokenizer: PreTrainedTokenizerBase, expected: list[int], found: list[int]) -> str:
    """Name the first tokens that differ."""
    pairs = zip(expected, found, strict=False)
    start = next((idx for idx, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))

    def shown(ids: list[int]) -> str:
        near = ids[max(0, start - 2) : start + 3]
        known = [-1 if token_id == IMAGE_TOKEN_INDEX else token_id for token_id in near]
        return " ".join("<image>" if one < 0 else str(tokenizer.convert_ids_to_tokens(one)) for one in known)

    return f"expected {shown(expected)!r} at token {start}, found {shown(found)!r}"
