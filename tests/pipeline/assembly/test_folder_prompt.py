"""A model folder and its export ask and stop as trained, whatever the base's files say about generation."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
)

from jobs.generate import answer, build_conversation
from model.hub.weights import LlavaModel
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.export import export_model
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import open_model, save_model_folder
from pipeline.assembly.parts import describe_images, join_parts
from pipeline.config import ConfigError, ExperimentConfig, load_config
from pipeline.errors import DataError
from pipeline.evaluation.questions import EvaluationSample
from pipeline.evaluation.run import EvaluationSettings, evaluate
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.prompt.conversation import Conversation, Turn
from pipeline.samples.schema import Sample
from tests.model.tiny import save_tiny_tower, tiny_backbone_config
from tests.pipeline.samples.prompt.published_tokenizers import LAYOUTS

QUESTION = "What colour is the ball?"
ROWS = 512


def png(size: int = 31) -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (size, 23), (9, 200, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def write_base(folder: Path, layout: str, kind: str, rows: int = ROWS) -> Path:
    """Write a language model with the files of a published tokenizer next to its weights."""
    folder.mkdir()
    LAYOUTS[layout](folder)
    tokenizer = load_tokenizer(str(folder))
    torch.manual_seed(2)
    config = tiny_backbone_config(kind)
    config.vocab_size, config.max_position_embeddings = rows, 4096
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def config_of(folder: Path, base: Path, template: str, **overrides: object) -> ExperimentConfig:
    tower = folder / "tower"
    if not tower.is_dir():
        save_tiny_tower("clip_vision_model", tower)
    text = f"""
name: t
run_dir: {folder / "run"}
stage: finetune
data: {{shards: [{folder / "none.tar"}], template: {template}, max_length: 512}}
model: {{language_model: {base}, vision_tower: {tower}}}
training: {{global_batch_size: 4, micro_batch_tokens: 601, learning_rate: 0.001, num_epochs: 1}}
cluster: {{launcher: local}}
tracking: {{enabled: false}}
"""
    (folder / "c.yaml").write_text(text)
    return load_config(folder / "c.yaml", [f"{name}={value}" for name, value in overrides.items()])


def encoder_of(config: ExperimentConfig) -> SampleEncoder:
    return build_encoder(config.model, config.data)


def build(config: ExperimentConfig) -> LlavaModel:
    torch.manual_seed(0)
    model = join_parts(config.model, None, torch.float32)
    return describe_images(model, config.data.image_aspect_ratio, config.data.image_grid_pinpoints)


def write_model(folder: Path, config: ExperimentConfig, out: str = "model") -> Path:
    """Write a model folder as finetuning does, without training."""
    model = build(config)
    save_model_folder(model, model.state_dict(), config.model, config.data, folder / out)
    return folder / out


def let_it_always_say(folder: Path, token_id: int) -> None:
    """Give a model folder an output head that makes `token_id` the likeliest next token after QUESTION."""
    opened = open_model(folder)
    ids = torch.from_numpy(opened.encoder.encode_prompt(build_conversation(QUESTION, 0)))[None]
    with torch.no_grad():
        body: Any = opened.model.get_model()
        hidden = body(inputs_embeds=body.embed_tokens(ids)).last_hidden_state[0, -1]
    state = load_file(folder / "model.safetensors")
    head = torch.zeros_like(state["lm_head.weight"])
    head[token_id] = hidden
    save_file(state | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})


def ask_exported(folder: Path, **options: Any) -> list[int]:
    """Answer QUESTION by the code of the model card."""
    processor: Any = AutoProcessor.from_pretrained(folder, backend="pil")
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = model.generate(**inputs, max_new_tokens=20, **options)[0, inputs["input_ids"].shape[1] :]
    ids: list[int] = found.tolist()
    return ids


@pytest.mark.parametrize(
    ("layout", "kind", "template", "end"),
    [
        ("qwen_2.5", "qwen2", "v0", None),
        ("added_tokens", "llama", "qwen", "<|im_end|>"),
        ("gemma", "gemma", "gemma", None),
    ],
)
def test_exported_model_stops_where_generate_stops(
    layout: str, kind: str, template: str, end: str | None, tmp_path: Path
) -> None:
    """Also where the base calls another token its end, and at the base's own stop tokens."""
    base = write_base(tmp_path / "lm", layout, kind)
    further = load_tokenizer(str(base)).convert_tokens_to_ids("b")
    assert isinstance(further, int)
    GenerationConfig(eos_token_id=[further], temperature=0.6, do_sample=True).save_pretrained(base)
    folder = write_model(tmp_path, config_of(tmp_path, base, template))
    tokenizer = load_tokenizer(str(folder))
    ends = {tokenizer.eos_token_id, further, *([tokenizer.convert_tokens_to_ids(end)] if end else [])}
    for token_id in sorted(ends):
        let_it_always_say(folder, token_id)
        assert answer(open_model(folder), tokenizer, build_conversation(QUESTION, 0), [], 20) in ("", "b")
    export_model(folder, tmp_path / "out")
    for place in (folder, tmp_path / "out"):
        saved = json.loads((place / "generation_config.json").read_text())
        assert ends <= set(saved["eos_token_id"])
        assert saved["do_sample"] is False
        assert saved.keys() <= {
            "do_sample", "eos_token_id", "pad_token_id", "bos_token_id", "stop_strings", "transformers_version",
        }  # fmt: skip
    exported: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert ask_exported(tmp_path / "out", tokenizer=exported) == [max(ends)]
    if end:
        assert exported.eos_token == end
    if template == "v0":
        assert saved["stop_strings"] == ["###"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("max_new_tokens=128, tokenizer=processor.tokenizer)" in card) == (template == "v0")


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.7},
        {"num_beams": 3},
        {"forced_eos_token_id": 7},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 9},
        {"stop_strings": ["red"]},
        {"suppress_tokens": [5, 300], "max_new_tokens": 3},
        {"bad_words_ids": [[33]], "cache_implementation": "static"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_answers_are_greedy_whatever_the_base_generates_with(options: dict[str, Any], tmp_path: Path) -> None:
    base = write_base(tmp_path / "lm", "qwen_2.5", "qwen2")
    (base / "generation_config.json").unlink(missing_ok=True)
    config = config_of(tmp_path, base, "qwen")
    question = build_conversation(QUESTION, 0)
    plain = write_model(tmp_path, config, "plain")
    expected = answer(open_model(plain), load_tokenizer(str(plain)), question, [], 24)
    assert len(expected) > 10
    (base / "generation_config.json").write_text(json.dumps(options))
    folder = write_model(tmp_path, config, "asked")
    assert answer(open_model(folder), load_tokenizer(str(folder)), question, [], 24) == expected
    (folder / "generation_config.json").write_text(json.dumps(options))
    opened, tokenizer = open_model(folder), load_tokenizer(str(folder))
    assert answer(opened, tokenizer, question, [], 24) == expected
    sample = Sample("k", "instruction", (), Conversation((*question.turns, Turn("assistant", ("red",)))))
    measured = evaluate(
        opened, tokenizer, [EvaluationSample(sample, ("color",))], EvaluationSettings(max_new_tokens=24)
    )
    assert [given.given for given in measured.answers] == [expected]


def test_prompt_that_is_too_long_is_an_error_and_never_cut(tmp_path: Path) -> None:
    base = write_base(tmp_path / "lm", "vicuna_1.3", "llama")
    first = write_model(tmp_path, config_of(tmp_path, base, "v1", **{"data.max_length": 90}), "first")
    assert json.loads((first / "config.json").read_text())["tokenizer_model_max_length"] == 90
    config = config_of(tmp_path, first, "v1", **{"model.vision_tower": "null", "data.max_length": 333})
    folder = write_model(tmp_path, config, "second")
    assert json.loads((folder / "config.json").read_text())["tokenizer_model_max_length"] == 333
    opened, tokenizer = open_model(folder), load_tokenizer(str(folder))
    encoder: SampleEncoder = opened.encoder
    view = encoder.encode_image(png()).view

    def asked(times: int) -> tuple[Conversation, int]:
        conversation = build_conversation(QUESTION * times, 1)
        return conversation, len(encoder.encode_prompt(conversation)) - 1 + encoder.resolution.tile_features

    fits = next(times for times in range(1, 99) if asked(times + 1)[1] > 333)
    conversation, num_tokens = asked(fits)
    assert 90 < num_tokens <= 333
    assert isinstance(answer(opened, tokenizer, conversation, [png()], 2), str)
    conversation, num_tokens = asked(fits + 1)
    message = rf"takes {num_tokens} tokens, {num_tokens - 333} more than"
    with pytest.raises(DataError, match=message):
        answer(opened, tokenizer, conversation, [png()], 2)
    with pytest.raises(DataError, match=message):
        encoder.encode_prompt(conversation, [view])
    sample = Sample("k7", "instruction", (png(),), Conversation((*conversation.turns, Turn("assistant", ("red",)))))
    with pytest.raises(DataError, match="key k7: "):
        evaluate(opened, tokenizer, [EvaluationSample(sample, ("color",))])
    ids = torch.full((1, 335), 40)
    with pytest.raises(ValueError, match="row 0 takes 335 tokens, 2 more than"):
        opened.model.generate(ids, max_new_tokens=2)


def add(base: Path, *tokens: AddedToken, **roles: str) -> None:
    tokenizer = load_tokenizer(str(base))
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(str(base))
    for name, text in roles.items():
        file = base / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: text}))


def num_tokens(base: Path) -> int:
    return len(load_tokenizer(str(base)))


@pytest.mark.parametrize(
    ("token", "roles", "template"),
    [
        (AddedToken("[loc]"), {}, "v1"),
        (AddedToken("<pad>", special=True), {"pad_token": "<pad>"}, "v1"),
        (AddedToken("<|im_end|>", special=True), {}, "chatml"),
    ],
    ids=["in text", "of the tokenizer", "of the template"],
)
def test_token_without_a_row_is_refused_before_the_run(
    token: AddedToken, roles: dict[str, str], template: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "lm", "vicuna_1.5_json", "llama")
    if template == "chatml":
        add(base, AddedToken("<|im_start|>", special=True))
    rows = num_tokens(base)
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": rows}))
    config = config_of(tmp_path, base, "v1")
    encoder_of(config)
    add(base, token, **roles)
    named = f"more tokens than the model has embedding rows: {rows} .* none for '{token.content}'".replace("[", r"\[")
    named = named.replace("|", r"\|")
    with pytest.raises(ConfigError, match=named):
        encoder_of(config_of(tmp_path, base, template))


def test_control_token_that_nothing_can_produce_needs_no_row(tmp_path: Path) -> None:
    base = write_base(tmp_path / "lm", "vicuna_1.5_json", "llama")
    rows = num_tokens(base)
    add(base, AddedToken("<image_soft_token>", special=True))
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": rows}))
    encoder_of(config_of(tmp_path, base, "v1"))
    encoder_of(config_of(tmp_path, base, "v1", **{"model.mm_use_im_start_end": True}))


@pytest.mark.parametrize(("layout", "template"), [("llama_2", "v1"), ("llama_3", "tokenizer"), ("qwen_3", "tokenizer")])
def test_saved_tokenizer_makes_the_prompts_of_training_itself(layout: str, template: str, tmp_path: Path) -> None:
    """By its chat template: with BOS, the fixed date, and without thoughts."""
    base = write_base(tmp_path / "lm", layout, "llama")
    folder = write_model(tmp_path, config_of(tmp_path, base, template))
    encoder = encoder_of(config_of(tmp_path, base, template))
    saved: Any = AutoTokenizer.from_pretrained(folder)
    ids: Any = saved.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    assert ids == encoder.encode_prompt(build_conversation(QUESTION, 0)).tolist()
    assert open_model(folder).encoder.fingerprint == encoder.fingerprint
