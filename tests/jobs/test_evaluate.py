"""`evaluate` reports every metric that is asked for, and refuses samples that lack what a metric needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import webdataset as wds

from model.hub.weights import build_llava, save_projector
from pipeline.config.evaluation import METRIC_NAMES
from pipeline.evaluation.metrics.vqa import normalize_vqa
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER
from tests.jobs.conftest import RunCommand, png

QUESTION = "<image>\nIs it red?"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run, as far as `evaluate` looks at it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(
        f"""
name: r
run_dir: {folder}
stage: pretrain
data: {{shards: [a.tar], template: v1}}
model: {{language_model: {LANGUAGE_MODEL}, vision_tower: {TOWER}}}
training: {{global_batch_size: 7, learning_rate: 0.001}}
"""
    )
    torch.manual_seed(5)
    model = build_llava(language_model=str(LANGUAGE_MODEL), vision_tower=str(TOWER))
    save_projector(model, folder / "projector" / "mm_projector.safetensors")
    return folder


def write_shard(path: Path, number: int, **fields: object) -> Path:
    with wds.TarWriter(str(path)) as writer:
        for idx in range(number):
            turns = [
                {"from": "human", "value": QUESTION if idx % 3 else "Is it red?"},
                {"from": "gpt", "value": "yes" if idx % 2 else "no"},
            ]
            tree: dict[str, object] = {"conversations": turns, **fields}
            images = {"png": png(idx, 40 + idx, 37)} if idx % 3 else {}
            writer.write({"__key__": f"s{idx}", "json": tree, **images})
    return path


def test_report_has_a_key_per_metric_and_its_blind_twins(
    run_command: RunCommand, run_dir: Path, tmp_path: Path
) -> None:
    people = ["yes"] * 2 + ["no"] * 3 + ["maybe"] * 5
    shard = write_shard(tmp_path / "a.tar", 7, answers=people)
    asked = ("exact_match", "vqa_accuracy", "pope", "perplexity", "cider")
    options = [part for name in asked for part in ("--metric", name)]
    report = tmp_path / "figures.json"
    ended = run_command(
        "evaluate", str(run_dir), str(shard), *options, "--report", str(report), "--device", "cpu",
        "--max-new-tokens", "5", "--batch-size", "3",
    )  # fmt: skip
    assert ended.exit_code in (None, 0), ended.messages
    found = json.loads(report.read_text())
    answers = found["answers"]["seeing"]
    assert [answer["key"] for answer in answers] == [f"s{idx}" for idx in range(7)]
    for name in (*asked, "loss"):
        assert {name, f"{name}_blank", f"{name}_shuffled"} <= found.keys()
        low, high = found["details"][name]["interval"]
        assert low <= found[name] <= high or name == "perplexity"
    assert {"pope_f1", "pope_yes_ratio", "exact_match_majority"} <= found.keys()
    given = [normalize_vqa(answer["given"]) for answer in answers]
    share = {"yes": 0.8 * 2 / 3 + 0.2 / 3, "no": 0.7 + 0.3 * 2 / 3, "maybe": 1.0}
    assert found["vqa_accuracy"] == pytest.approx(sum(share.get(text, 0) for text in given) / 7)
    assert found["loss"] == pytest.approx(
        sum(answer["loss"] for answer in answers) / sum(answer["num_targets"] for answer in answers)
    )
    assert "vqa_accuracy" in ended.output


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("vqa_accuracy", "sample s0: vqa_accuracy needs"),
        ("multiple_choice", "sample s0: multiple_choice needs options"),
        ("accuracy", "--metric accuracy: unknown; choose among exact_match"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_is_opened(
    run_command: RunCommand, tmp_path: Path, metric: str, message: str
) -> None:
    shard = write_shard(tmp_path / "a.tar", 2)
    ended = run_command("evaluate", str(tmp_path / "no_model"), str(shard), "--metric", metric)
    assert ended.exit_code == 2
    assert message in " ".join(ended.messages.split())
    assert "Traceback" not in ended.messages


def test_help_names_every_metric(run_command: RunCommand) -> None:
    helped = run_command("evaluate", "--help").output
    assert [name for name in METRIC_NAMES if name not in helped] == []


def test_benchmark_is_measured_by_its_own_metric(run_command: RunCommand, run_dir: Path, tmp_path: Path) -> None:
    rows = [{"question_id": idx, "image": "a.png", "text": "Is it red?", "label": "yes"} for idx in range(2)]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.png").write_bytes(png(3, 40, 40))
    report = tmp_path / "figures.json"
    given = ["--benchmark", "pope", str(tmp_path / "coco_pope_random.json"), "--images", str(tmp_path)]
    ended = run_command("evaluate", str(run_dir), *given, "--report", str(report), "--max-new-tokens", "3")
    assert ended.exit_code in (None, 0), ended.messages
    assert {"pope", "pope_f1", "pope_blank", "loss"} <= json.loads(report.read_text()).keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name SHARDS..., or --benchmark KIND FILE"),
        (("a.tar", "--benchmark", "pope", "b.json"), "name SHARDS..., or --benchmark KIND FILE"),
        (("--benchmark", "vqa3", "b.json"), "--benchmark vqa3: unknown; choose among vqav2"),
        (("--benchmark", "pope", "gone.json"), "--benchmark pope gone.json: no such file"),
    ],
)
def test_benchmarks_that_are_not_there_are_refused(
    run_command: RunCommand, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = run_command("evaluate", str(tmp_path), *arguments)
    assert ended.exit_code == 2
    assert message in " ".join(ended.messages.split())
