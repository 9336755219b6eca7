"""The demo from start to end: shards, both stages through the product's own launcher, and evaluations in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console

from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import OpenedModel, assemble_model, open_model
from pipeline.assembly.parts import find_projector
from pipeline.config import DataConfig, ModelConfig
from pipeline.evaluation.questions import EvaluationSample, read_evaluation_samples
from pipeline.evaluation.run import EvaluationSettings, Images, evaluate
from pipeline.evaluation.scores import Answer, Evaluation
from pipeline.index.build import build_index
from pipeline.launch.run import TrainingResult
from pipeline.tools.demo.answer_sheet import render_answer_sheet
from pipeline.tools.demo.report import Curve, render_report
from pipeline.tools.demo.results import Point, Row, flat_metrics, table_rows
from pipeline.tools.demo.shards import DemoSizes, ensure_demo_shards, new_combination_keys

if TYPE_CHECKING:
    from pipeline.tracking import TrackedRun

SIZES = DemoSizes(pretrain=4800, finetune=4000, held_out=250)
_LONGEST_ANSWER = 8  # tokens; the expected answers have two
_SEND_TIMEOUT_S = 60.0


class DemoResult(NamedTuple):
    """What the demo leaves behind."""

    points: list[Point]
    rows: list[Row]
    """The table, a column per point."""
    report: Path
    """HTML file."""
    run_dir: Path
    """Folder of the finetuning run."""
    tracking_uri: str | None
    """Where MLflow has the runs; None when tracking is off."""
    example: Answer
    """A question about one held-out picture."""
    example_picture: Path


class DemoStage(NamedTuple):
    """A stage of the demo, as the product's own verbs would run it."""

    run_dir: Path
    seed: int
    model: ModelConfig
    data: DataConfig
    train: Callable[[], TrainingResult]
    tracked: TrackedRun | None
    """None when tracking is off."""


def run_demo(pretrain: DemoStage, finetune: DemoStage, folder: Path, console: Console) -> DemoResult:
    """Run everything; a demo that was interrupted in this folder continues.

    Args:
        pretrain: the first stage; trains on the shards `pretrain-*.tar` of `folder/shards`.
        finetune: the second stage; also defines the model of the evaluations.
        folder: receives shards and report.
        console: where progress is shown.
    """
    console.print(f"Writing {sum(SIZES)} samples to {folder / 'shards'}")
    shards = ensure_demo_shards(folder / "shards", SIZES)
    samples = read_evaluation_samples(build_index(shards["held_out"], folder / "held_out_index"))

    points = [Point("before", _evaluate(finetune, _assembled(finetune, None), samples))]
    pretrained = pretrain.train()
    projector = find_projector(str(pretrain.run_dir))
    points.append(Point("pretrained", _evaluate(finetune, _assembled(finetune, projector), samples)))
    finetuned = finetune.train()
    opened = open_model(finetune.run_dir)
    points.append(Point("finetuned", _evaluate(finetune, opened, samples)))
    points.append(Point("blanked", _evaluate(finetune, opened, samples, "blanked")))

    rows = table_rows(points, {"showing a new combination": new_combination_keys(SIZES.held_out)})
    report = _write_report(folder / "report", points, rows, samples, (pretrain, finetune))
    before, after_pretraining, after_finetuning, blanked = (point.evaluation for point in points)
    _log(pretrain, {0: _metrics(before), pretrained.steps: _metrics(after_pretraining)}, None)
    final = {**_metrics(after_finetuning), **_metrics(blanked, "held_out_blanked")}
    uri = _log(finetune, {0: _metrics(after_pretraining), finetuned.steps: final}, report.parent)
    example, picture = _write_example(report.parent, samples, after_finetuning)
    return DemoResult(points, rows, report, finetuned.run_dir, uri, example, picture)


def _assembled(stage: DemoStage, projector: str | None) -> OpenedModel:
    torch.manual_seed(stage.seed)  # an untrained projector is random, but the same every time
    return assemble_model(stage.model, stage.data, projector=projector)


def _evaluate(
    stage: DemoStage, opened: OpenedModel, samples: Sequence[EvaluationSample], images: Images = "shown"
) -> Evaluation:
    settings = EvaluationSettings(images=images, max_new_tokens=_LONGEST_ANSWER)
    with _one_thread():
        return evaluate(opened, load_tokenizer(stage.model.language_model), samples, settings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: with matrices this small, two on a busy machine wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_report(
    folder: Path,
    points: Sequence[Point],
    rows: Sequence[Row],
    samples: Sequence[EvaluationSample],
    stages: tuple[DemoStage, DemoStage],
) -> Path:
    """Write the HTML report, the answer sheet and the figures as JSON; returns the HTML file."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("pretraining: projector only, on captions", "finetuning: projector and language model, on conversations")
    curves = [Curve(name, read_losses(stage.run_dir)) for name, stage in zip(names, stages, strict=True)]
    (folder / "answers.png").write_bytes(render_answer_sheet(points[2], samples))
    figures = {point.name: flat_metrics(point.evaluation) for point in points}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    report = folder / "report.html"
    report.write_text(render_report(points, rows, curves, samples), encoding="utf-8")
    return report


def _write_example(folder: Path, samples: Sequence[EvaluationSample], evaluation: Evaluation) -> tuple[Answer, Path]:
    """Write the first picture that a sample has to itself, to be asked about by hand."""
    sample = next(entry.sample for entry in samples if len(entry.sample.images) == 1)
    suffix = "png" if sample.images[0].startswith(b"\x89PNG") else "jpg"
    picture = folder / f"example.{suffix}"
    picture.write_bytes(sample.images[0])
    return next(answer for answer in evaluation.answers if answer.key == sample.key), picture


def read_losses(run_dir: Path) -> tuple[float, ...]:
    """Return a run's training loss per step; of a step that was repeated after a restart, the last."""
    by_step: dict[int, float] = {}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "train/loss" in record["metrics"]:
            by_step[record["step"]] = record["metrics"]["train/loss"]
    return tuple(loss for _, loss in sorted(by_step.items()))


def _metrics(evaluation: Evaluation, group: str = "held_out") -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in flat_metrics(evaluation).items()}


def _log(stage: DemoStage, metrics: dict[int, dict[str, float]], report: Path | None) -> str | None:
    """Add what was measured to the MLflow run of a stage, which is finished already."""
    if stage.tracked is None:
        return None
    from pipeline.tracking import open_run  # an untracked run needs no MLflow

    tracker = open_run(stage.tracked, {})
    for step, values in metrics.items():
        tracker.log_metrics(values, step)
    if report is not None:
        tracker.log_artifacts(report, "report")
    tracker.finish("FINISHED")
    tracker.close(_SEND_TIMEOUT_S)
    return tracker.tracking_uri
