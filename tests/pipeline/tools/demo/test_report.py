"""The table of results, the report and the answer sheet show what was measured."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.evaluation.questions import EvaluationSample
from pipeline.evaluation.scores import Answer, Evaluation
from pipeline.samples.prompt.conversation import Conversation
from pipeline.samples.schema import Sample
from pipeline.tools.demo.answer_sheet import render_answer_sheet
from pipeline.tools.demo.drawing import draw_scene, encode_picture
from pipeline.tools.demo.report import Curve, chosen_samples, render_report
from pipeline.tools.demo.results import Point, flat_metrics, table_rows
from pipeline.tools.demo.samples import caption_sample
from pipeline.tools.demo.session import read_losses


def entry(key: str, num_images: int) -> EvaluationSample:
    pictures = [
        encode_picture(draw_scene(caption_sample("held_out", number).scene, 16), "png") for number in range(num_images)
    ]
    return EvaluationSample(Sample(key, "instruction", tuple(pictures), Conversation(())), ("color", "count"))


SAMPLES = [entry("a", 1), entry("b", 2), entry("c", 0), entry("d", 3), entry("e", 1)]


def point(name: str, given: str, loss: float) -> Point:
    answers = tuple(
        Answer(sample.sample.key, turn, kind, len(sample.sample.images), f"<q{turn}> object?", "red", given)
        for sample in SAMPLES
        for turn, kind in enumerate(sample.kinds)
    )
    return Point(name, Evaluation(loss, 13, answers))


POINTS = [
    point("before training", "b<l>ue", 2.5),
    point("after pretraining", "blue", 1.25),
    point("after", "Red.", 0.5),
]

GROUPS = {"chosen": {"b", "c", "e"}, "none": {"x"}}


def test_table_rows_give_loss_and_accuracy_per_group() -> None:
    rows = {row.label: row.cells for row in table_rows(POINTS, GROUPS)}
    assert rows == {
        "held-out loss": ("2.500", "1.250", "0.500", ""),
        "all image questions (8)": ("0.0%", "0.0%", "100.0%", "100.0%"),
        "color (4)": ("0.0%", "0.0%", "100.0%", "100.0%"),
        "count (4)": ("0.0%", "0.0%", "100.0%", "100.0%"),
        "one image (4)": ("0.0%", "0.0%", "100.0%", "100.0%"),
        "several images (4)": ("0.0%", "0.0%", "100.0%", "100.0%"),
        "text only (2)": ("0.0%", "0.0%", "100.0%", "100.0%"),
        "chosen (4)": ("0.0%", "0.0%", "100.0%", "100.0%"),
    }
    assert [row.label for row in table_rows(POINTS, {}) if row.is_headline] == ["all image questions (8)"]


def test_table_rows_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="no evaluation"):
        table_rows([], {})


def test_flat_metrics_have_names_a_tracker_takes() -> None:
    metrics = flat_metrics(POINTS[2].evaluation)
    assert metrics["loss"] == 0.5
    assert set(metrics) == {
        "loss",
        "accuracy",
        "accuracy/color",
        "accuracy/count",
        "accuracy/one_image",
        "accuracy/several_images",
        "accuracy/text_only",
    }


def test_chosen_samples_are_the_first_with_one_and_with_several_images() -> None:
    assert [sample.sample.key for sample in chosen_samples(SAMPLES, 4)] == ["a", "e", "b", "d"]
    assert [sample.sample.key for sample in chosen_samples(SAMPLES, 2)] == ["a", "b"]


def test_render_report_is_one_escaped_document_with_pictures() -> None:
    curves = [Curve("first stage", (2.0, 1.0, 0.5)), Curve("second stage", ())]
    text = render_report(POINTS, table_rows(POINTS, {}), curves, SAMPLES)
    assert text.count("data:image/png;base64,") == 1 + 2 + 3 + 1
    assert "&lt;q0&gt;" in text
    assert "b&lt;l&gt;ue" in text
    assert "<q0>" not in text
    assert "3 steps, last 0.500" in text
    assert "no steps" in text
    assert 'src="http' not in text


def test_render_answer_sheet_has_a_card_per_sample() -> None:
    sheet = Image.open(io.BytesIO(render_answer_sheet(POINTS[2], SAMPLES)))
    assert (sheet.format, sheet.size) == ("PNG", (2 * 680, 2 * 280))


def test_read_losses_keeps_the_last_of_a_repeated_step(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "metrics": {"train/loss": 3.0}},
        {"step": 2, "metrics": {"train/loss": 2.0}},
        {"step": 2, "metrics": {"other": 7.0}},
        {"step": 2, "metrics": {"train/loss": 1.5}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_losses(tmp_path) == (3.0, 1.5)
