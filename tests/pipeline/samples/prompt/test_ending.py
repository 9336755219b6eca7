"""Generation stops where the template ends an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.samples.prompt.ending import Ending, ending_of
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.templates import TEMPLATES
from tests.pipeline.samples.prompt.test_jinja_template import TOKENIZERS

TOKENIZER = TOKENIZERS["trims"]


def ids_of(*tokens: str) -> tuple[int, ...]:
    return tuple(int(TOKENIZER.convert_tokens_to_ids(token)) for token in tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tokens", "text"),
    [
        ("v1", ("</s>",), ""),
        ("llama_2", ("</s>",), ""),
        ("qwen", ("<|im_end|>", "</s>"), ""),
        ("gemma", ("<end_of_turn>", "</s>"), ""),
        ("v0", ("</s>",), "###"),
        ("plain", ("</s>",), "\n"),
        ("tokenizer", ("<|eot_id|>", "</s>"), ""),
    ],
)
def test_ending_is_the_templates_own_or_the_tokenizers(name: str, tokens: tuple[str, ...], text: str) -> None:
    assert ending_of(choose_template(name, TOKENIZER), TOKENIZER) == Ending(ids_of(*tokens), text)


def test_answer_without_any_end_is_refused() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    bare.eos_token = None
    assert ending_of(TEMPLATES["v0"], bare) == Ending((), "###")
    template = TEMPLATES["v1"]
    with pytest.raises(ValueError, match="ends answers with no token"):
        ending_of(type(template)(name="endless"), bare)


class Parrot(LlamaForCausalLM):
    """Says a fixed text, one byte token after the other."""

    script: list[int]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(self.script.pop(0)), self.vocab_size).float()
        return out


@pytest.mark.parametrize(("name", "said"), [("v0", "a ball###Human: more"), ("qwen", "a ball<|im_end|>more")])
def test_generation_stops_there_and_the_end_is_not_part_of_the_answer(name: str, said: str) -> None:
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model: Any = Parrot(config)
    model.script = TOKENIZER(said, add_special_tokens=False).input_ids
    ending = ending_of(TEMPLATES[name], TOKENIZER)
    embeds = torch.zeros(1, 3, 8)
    ids = model.generate(
        inputs_embeds=embeds, max_new_tokens=40, do_sample=False, **ending.generation_options(TOKENIZER)
    )
    assert ids.shape[1] == len(TOKENIZER(said.partition("more")[0].partition("Human")[0]).input_ids)
    assert ending.read_answer(TOKENIZER, ids[0]) == "a ball"
