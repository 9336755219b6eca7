"""The lessons run, their examples are laid out as the product lays out images, and the committed models know them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.demo_parts.backbones import save_language_model, save_tower
from benchmarks.demo_parts.schedule import cosine_with_warmup
from benchmarks.demo_parts.teach_language_model import LanguageLesson, answer_accuracy, teach_language_model
from benchmarks.demo_parts.teach_tower import TowerLesson, labelled_images, teach_tower
from benchmarks.demo_parts.vocabulary import build_tokenizer
from benchmarks.demo_parts.worded_scenes import EMPTY, ExampleWriter, cell_words, find_word_ids, write_examples
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.assembly.facts import load_tokenizer
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER, WEIGHTS
from pipeline.tools.demo.samples import caption_sample, conversation_sample
from pipeline.tools.demo.scenes import GRID

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(LANGUAGE_MODEL))


def test_cell_words_describe_things_and_empty_cells(tokenizer: PreTrainedTokenizerBase) -> None:
    scene = caption_sample("backbones", 3).scene
    words = cell_words(find_word_ids(tokenizer), scene)
    thing = scene.things[0]
    cell = words[thing.row * GRID + thing.column]
    assert tokenizer.decode(cell[:2]) == f" {thing.color} {thing.shape}"
    empty = find_word_ids(tokenizer)[EMPTY]
    assert int((words[:, 0] == empty).sum()) == GRID * GRID - len(scene.things)


def test_examples_have_one_position_per_cell_and_learn_only_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    writer = ExampleWriter(tokenizer, "conversation", "backbones")
    for index in range(20):
        sample, example = conversation_sample("backbones", index), writer(index)
        assert int((example.input_ids == IMAGE_TOKEN_INDEX).sum()) == len(sample.scenes) * GRID * GRID
        learnt = example.labels[example.labels != IGNORE_INDEX]
        text = "".join(f" {question.answer}</s>" for question in sample.questions)
        assert tokenizer.decode(learnt) == text


def test_labelled_images_mark_the_cells_of_things() -> None:
    images = labelled_images(range(5), num_processes=1)
    assert images.pixels.shape == (5, 3, 96, 96)
    for index in range(5):
        things = caption_sample("backbones", index).scene.things
        cells = sorted(thing.row * GRID + thing.column for thing in things)
        assert images.colors[index].nonzero()[:, 0].tolist() == images.shapes[index].nonzero()[:, 0].tolist() == cells
        assert images.presence[index].sum() == len({(thing.color, thing.shape) for thing in things})


def test_teaching_and_saving_runs_with_little_data(tmp_path: Path) -> None:
    tower = teach_tower(TowerLesson(num_images=16, num_steps=2, batch_size=4, num_held_out=3), CPU, num_processes=1)
    save_tower(tower, tmp_path / "tower")
    tokenizer = build_tokenizer()
    lesson = replace(LanguageLesson(), num_captions=4, num_conversations=12, num_steps=2, batch_size=2, num_held_out=7)
    save_language_model(teach_language_model(lesson, tokenizer, CPU, 1), tokenizer, tmp_path / "lm")
    assert CLIPVisionModel.from_pretrained(tmp_path / "tower").dtype == torch.float32
    assert LlamaForCausalLM.from_pretrained(tmp_path / "lm").dtype == torch.float32


def test_committed_language_model_answers_about_worded_scenes(tokenizer: PreTrainedTokenizerBase) -> None:
    model = LlamaForCausalLM.from_pretrained(LANGUAGE_MODEL)
    examples = write_examples(ExampleWriter(tokenizer, "conversation", "backbones_held_out"), range(40), 1)
    accuracies = {group.cells.shape[1]: answer_accuracy(model, group) for group in examples}
    assert set(accuracies) >= {1, 2}
    assert min(accuracies.values()) > 0.8


def test_committed_tower_tells_things_from_background() -> None:
    tower = CLIPVisionModel.from_pretrained(TOWER)
    images = labelled_images(range(60), num_processes=1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        states = tower((images.pixels / 255 - mean) / std, output_hidden_states=True).hidden_states[-2][:, 1:]
    features, colors = states.flatten(0, 1).numpy(), images.colors.flatten().numpy()
    fitted = slice(0, 40 * GRID * GRID)
    # A linear map fitted by least squares on 40 images reads the colours off the other 20.
    inputs = np.hstack([features, np.ones((len(features), 1))])
    weights, *_ = np.linalg.lstsq(inputs[fitted], np.eye(8)[colors[fitted]], rcond=None)
    rest = slice(40 * GRID * GRID, None)
    things = colors[rest] > 0
    guessed = (inputs[rest] @ weights).argmax(1)
    assert (guessed[things] == colors[rest][things]).mean() > 0.9
    assert (guessed[~things] == 0).mean() > 0.99


def test_committed_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 5_000_000


def test_cosine_with_warmup_rises_then_falls_to_zero() -> None:
    values = [cosine_with_warmup(step, 101, warmup_fraction=0.05) for step in (0, 4, 5, 53, 101)]
    assert values == pytest.approx([0.2, 1.0, 1.0, 0.5, 0.0])
