"""Every template: its prompt written out by hand, and what is learnt of any conversation."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.config import TemplateName
from pipeline.samples.prompt.conversation import Conversation, Image, Span, Turn, render, render_prompt
from pipeline.samples.prompt.templates import TEMPLATES, get_template
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import encode_prompt, encode_text

TALK = Conversation(
    (
        Turn("system", ("S",)),
        Turn("user", (Image(), "q")),
        Turn("assistant", ("a",)),
        Turn("user", ("r",)),
        Turn("assistant", ("b",)),
    )
)
WRITTEN = {
    "plain": "<image>a\nb\n",
    "v0": "S###Human: <image>\nq###Assistant: a###Human: r###Assistant: b###",
    "v1": "S USER: <image>\nq ASSISTANT: a</s>USER: r ASSISTANT: b</s>",
    "llama_2": "[INST] <<SYS>>\nS\n<</SYS>>\n\n<image>\nq [/INST] a </s><s>[INST] r [/INST] b </s>",
    "mistral_instruct": "[INST] <<SYS>>\nS\n<</SYS>>\n\n<image>\nq [/INST] a </s>[INST] r [/INST] b </s>",
    "llama_3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\nq<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>",
    "mpt": "<|im_start|>system\nS<|im_end|><|im_start|>user\n<image>\nq<|im_end|><|im_start|>assistant\na<|im_end|>"
    "<|im_start|>user\nr<|im_end|><|im_start|>assistant\nb<|im_end|>",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<image>\nq<|im_end|>\n"
    "<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
    "gemma": "<start_of_turn>user\nS\n\n<image>\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
    "<start_of_turn>user\nr<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n",
    "phi": "<|system|>\nS<|end|>\n<|user|>\n<image>\nq<|end|>\n<|assistant|>\na<|end|>\n"
    "<|user|>\nr<|end|>\n<|assistant|>\nb<|end|>\n",
}
WRITTEN["qwen"] = WRITTEN["chatml"]
LEARNT_AFTER = {
    "plain": "\n", "v0": "###", "v1": "</s>", "llama_2": " </s>", "mistral_instruct": " </s>", "llama_3": "<|eot_id|>",
    "mpt": "<|im_end|>", "chatml": "<|im_end|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>", "phi": "<|end|>",
}  # fmt: skip
CONTROLS = sorted(set().union(*(template.controls for template in TEMPLATES.values())))


def written(spans: list[Span]) -> str:
    return "".join("<image>" if span.kind == "image" else span.text for span in spans)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus every control token of every template; no BOS."""
    alphabet = {letter: idx for idx, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROLS])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_config_and_registry_name_the_same_templates() -> None:
    assert set(get_args(TemplateName)) - {"tokenizer"} == set(TEMPLATES) == set(WRITTEN)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_is_spelled_as_published(name: str) -> None:
    assert written(render(TALK, TEMPLATES[name])) == WRITTEN[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_declared_control_tokens_are_special(name: str) -> None:
    spans = render(TALK, TEMPLATES[name])
    assert {span.text for span in spans if span.kind == "special"} <= TEMPLATES[name].controls
    text = "".join(span.text for span in spans if span.kind == "text")
    assert not [token for token in CONTROLS if token in text]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("v0", "A chat between a curious human and an artificial intelligence assistant."),
        ("llama_2", "[INST] <<SYS>>\nYou are a helpful language and vision assistant."),
        ("mistral_instruct", "[INST] q"),
        ("mpt", "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant."),
        ("chatml", "<|im_start|>user\nq"),
        ("qwen", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nq"),
        ("gemma", "<start_of_turn>user\nq"),
        ("phi", "<|user|>\nq"),
    ],
)
def test_default_system_text(name: str, start: str) -> None:
    assert written(render_prompt(Conversation((Turn("user", ("q",)),)), TEMPLATES[name])).startswith(start)


texts = st.lists(st.sampled_from(["dog", "red ball", " ", "\n", "ball?", *CONTROLS]), min_size=1, max_size=4).map(
    "".join
)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
@settings(deadline=None, max_examples=40)
@given(rounds=st.lists(st.tuples(texts, texts, st.integers(0, 2)), min_size=1, max_size=3), system=texts)
def test_answers_and_their_ends_are_learnt_and_nothing_else(
    name: str, tokenizer: PreTrainedTokenizerFast, rounds: list[tuple[str, str, int]], system: str
) -> None:
    """Also when the text of a turn spells control tokens, of this template or of another."""
    template = TEMPLATES[name]
    turns = [Turn("system", (system,))]
    for question, answer, num_images in rounds:
        turns += [Turn("user", (*[Image()] * num_images, question)), Turn("assistant", (answer,))]
    conversation = Conversation(tuple(turns))
    encoded = encode_text(render(conversation, template), TextTokenizer(tokenizer), None, features_per_image=3)
    learnt = encoded.labels[encoded.labels != IGNORE_INDEX]
    wanted = "".join(template.answer_prefix + answer + LEARNT_AFTER[name] for _, answer, _ in rounds)
    assert tokenizer.decode(learnt, skip_special_tokens=False) == wanted
    assert int((encoded.input_ids == IMAGE_TOKEN_INDEX).sum()) == sum(count for _, _, count in rounds)
    specials = set(tokenizer.convert_tokens_to_ids(list(CONTROLS)))  # type: ignore[arg-type]
    structural = [span.text for span in render(conversation, template) if span.kind == "special"]
    found = [int(token) for token in encoded.input_ids if token in specials]
    assert found == tokenizer.convert_tokens_to_ids(structural)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_for_generation_is_a_prefix_of_training(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    wrapped, template = TextTokenizer(tokenizer), TEMPLATES[name]
    prompt = encode_prompt(render_prompt(Conversation(TALK.turns[:-1]), template), wrapped)
    whole = encode_text(render(TALK, template), wrapped, None, features_per_image=3).input_ids
    assert prompt.tolist() == whole[: len(prompt)].tolist()


def test_get_template_of_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"known ones: chatml, gemma, .*, v1"):
        get_template("vicuna")
