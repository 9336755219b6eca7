"""Evaluation with the demo's backbones: batching changes nothing, and agrees with the model's own forward pass."""

import math
from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from model.fusion.resolution import Resolution
from model.hub.weights import build_llava
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import OpenedModel
from pipeline.evaluation.questions import EvaluationSample, read_evaluation_samples
from pipeline.evaluation.run import EvaluationSettings, evaluate
from pipeline.index.build import build_index
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER
from pipeline.tools.demo.shards import DemoSizes, write_demo_shards

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads with matrices this small wait for each other most of the time when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(LANGUAGE_MODEL))


@pytest.fixture(scope="module")
def opened(tokenizer: PreTrainedTokenizerBase) -> OpenedModel:
    torch.manual_seed(7)
    model = build_llava(language_model=str(LANGUAGE_MODEL), vision_tower=str(TOWER), projector_type="linear")
    model.train(False)
    return OpenedModel(
        model, SampleEncoder(tokenizer, "v1", ImageSpec(96, MEAN, STD), Resolution("pad", 96, 36, 6), 384)
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationSample]:
    folder = tmp_path_factory.mktemp("held_out")
    shards = write_demo_shards(folder, DemoSizes(pretrain=1, finetune=1, held_out=7))
    return read_evaluation_samples(build_index(shards["held_out"], folder / "index"))


def test_evaluate_with_any_batch_size_gives_the_same_answers(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, samples: list[EvaluationSample]
) -> None:
    few, many = (evaluate(opened, tokenizer, samples, EvaluationSettings(batch_size=size)) for size in (3, 64))
    assert few.answers == many.answers
    assert few.num_targets == many.num_targets
    assert math.isclose(few.loss, many.loss, rel_tol=1e-5)


def test_evaluate_asks_every_question_in_order(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, samples: list[EvaluationSample]
) -> None:
    answers = evaluate(opened, tokenizer, samples, EvaluationSettings(max_new_tokens=2)).answers
    expected = [
        (entry.sample.key, turn, kind, len(entry.sample.images))
        for entry in samples
        for turn, kind in enumerate(entry.kinds)
    ]
    assert [(a.key, a.turn, a.kind, a.num_images) for a in answers] == expected
    assert {answer.num_images for answer in answers} >= {1, 2}


def test_evaluate_loss_and_answers_equal_the_models_forward_pass_sample_by_sample(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, samples: list[EvaluationSample]
) -> None:
    evaluation = evaluate(opened, tokenizer, samples, EvaluationSettings(max_new_tokens=1))
    total, count, first_words = 0.0, 0, []
    for entry in samples:
        encoded = opened.encoder.encode(entry.sample)
        ids, labels = torch.from_numpy(encoded.input_ids)[None], torch.from_numpy(encoded.labels)[None]
        stats = pixel_stats_of(opened.model.config)
        tiles = [torch.from_numpy(image.pixels) for image in encoded.images]
        images = normalize_pixels(torch.cat(tiles), stats, torch.float32) if tiles else None
        with torch.no_grad():
            output = opened.model(ids, labels=labels, images=images)
        targets = int((labels[:, 1:] >= 0).sum())
        total, count = total + float(output.loss) * targets, count + targets
        fused_labels = torch.cat(
            [label.repeat(36 if token == -200 else 1) for token, label in zip(ids[0], labels[0], strict=True)]
        )
        starts = (fused_labels[1:] >= 0) & (fused_labels[:-1] < 0)
        first_words += [str(tokenizer.decode(token)).strip() for token in output.logits[0, :-1][starts].argmax(-1)]
    assert evaluation.num_targets == count
    assert math.isclose(evaluation.loss, total / count, rel_tol=1e-4)
    given = [answer.given for answer in evaluation.answers]
    assert given == ["" if word == "</s>" else word for word in first_words]


def test_evaluate_with_blank_images_hides_the_pictures(
    opened: OpenedModel, tokenizer: PreTrainedTokenizerBase, samples: list[EvaluationSample]
) -> None:
    settings = EvaluationSettings(images="blanked", max_new_tokens=2)
    swapped = [
        entry._replace(sample=entry.sample._replace(images=tuple(reversed(entry.sample.images)))) for entry in samples
    ]
    blank = evaluate(opened, tokenizer, samples, settings)
    assert blank.answers == evaluate(opened, tokenizer, swapped, settings).answers
    assert blank.loss != evaluate(opened, tokenizer, samples).loss


def test_evaluate_without_samples_says_so(opened: OpenedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(opened, tokenizer, [])
