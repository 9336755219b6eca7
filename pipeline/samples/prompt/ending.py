"""How a generated answer ends: at the template's own end, not only at the token that the tokenizer calls its end.

Of the base's generation_config only its stop tokens count. Everything else there (sampling, penalties, beams, forced
tokens) would change answers, so `generate`, `evaluate` and the written folders ask greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import GenerationConfig

from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Ending(NamedTuple):
    """What ends an answer."""

    token_ids: tuple[int, ...]
    """Any of these tokens."""
    text: str
    """Or this text, where the template ends answers with ordinary letters; empty for none."""

    def generation_options(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return the keywords of `generate` that stop there."""
        options: dict[str, Any] = {"eos_token_id": list(self.token_ids) or None, "pad_token_id": self.pad_id(tokenizer)}
        return options | ({"stop_strings": [self.text], "tokenizer": tokenizer} if self.text else {})

    def generation_config(self, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
        """Return greedy decoding that stops there, as written to generation_config.json."""
        return GenerationConfig(
            do_sample=False,
            eos_token_id=list(self.token_ids) or None,
            pad_token_id=self.pad_id(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            stop_strings=[self.text] if self.text else None,
        )

    def pad_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return what fills up the rows of a batch whose answers have ended."""
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.token_ids), 0)

    def read_answer(self, tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
        """Spell generated ids [T] up to the end, without white space around."""
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        return (text.partition(self.text)[0] if self.text else text).strip()


def ending_of(
    template: Template | JinjaTemplate, tokenizer: PreTrainedTokenizerBase, further: Sequence[int] = ()
) -> Ending:
    """Find what ends an answer: what the model was taught to write after it, or the tokenizer's end.

    Args:
        template: of the training conversations.
        tokenizer: of the model.
        further: stop tokens of the model's own generation_config.

    Raises:
        ValueError: neither the template nor the tokenizer has an end.
    """
    names = [template.end_of_answer] if template.end_of_answer else []
    ids: list[int] = list(tokenizer.convert_tokens_to_ids(names))  # type: ignore[arg-type]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids += [token_id for token_id in dict.fromkeys([*own, *further]) if token_id not in ids]
    suffix = template.answer_suffix if isinstance(template, Template) and not names else ""
    if not ids and not suffix:
        raise ValueError(f"template {template.name!r} ends answers with no token, and the tokenizer has no eos_token")
    return Ending(tuple(ids), suffix)


def answer_as_trained(
    model: PreTrainedModel, template: Template | JinjaTemplate, tokenizer: PreTrainedTokenizerBase
) -> Ending:
    """Give a model the generation_config that goes with its template, in place; returns what ends its answers.

    Raises:
        ValueError: see `ending_of`.
    """
    ending = ending_of_model(model, template, tokenizer)
    model.generation_config = ending.generation_config(tokenizer)
    return ending


def ending_of_model(
    model: PreTrainedModel, template: Template | JinjaTemplate, tokenizer: PreTrainedTokenizerBase
) -> Ending:
    """Find what ends a model's answers, its own stop tokens included; changes nothing.

    Raises:
        ValueError: see `ending_of`.
    """
    found = None if model.generation_config is None else model.generation_config.eos_token_id
    further = [] if found is None else [found] if isinstance(found, int) else [int(token_id) for token_id in found]
    return ending_of(template, tokenizer, further)
