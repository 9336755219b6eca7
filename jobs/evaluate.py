"""`ray-llava evaluate`: held-out loss and answer accuracy of a trained model, with and without its images."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.console import output_console
from jobs.generate import tokenizer_source
from jobs.model_place import folder_here

if TYPE_CHECKING:  # torch takes seconds to load; usage errors need not wait for it
    from pipeline.tools.evaluation.scores import Evaluation

Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", parser=folder_here, help="Folder or URL of a finished run, or a model folder."),
]
Shards = Annotated[list[str], typer.Argument(metavar="SHARDS...", help="Held-out instruction shards: paths or URLs.")]
MaxSamples = Annotated[int | None, typer.Option(min=1, help="Evaluate no more than this many samples.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Report = Annotated[Path | None, typer.Option(help="Write figures and every answer to this JSON file.")]


def run(
    model: Model,
    shards: Shards,
    max_samples: MaxSamples = None,
    batch_size: BatchSize = 32,
    max_new_tokens: MaxNewTokens = 16,
    device: Device = "cpu",
    report: Report = None,
) -> None:
    """Measure a model, also with blanked images: answers that stay right do not depend on the image."""
    from pipeline.assembly.facts import load_tokenizer
    from pipeline.assembly.folder import open_model
    from pipeline.index.build import build_index
    from pipeline.shards.listing import expand_shards
    from pipeline.tools.evaluation.questions import read_evaluation_samples
    from pipeline.tools.evaluation.run import EvaluationSettings, evaluate

    opened = open_model(model, device)
    with tempfile.TemporaryDirectory() as folder:
        samples = read_evaluation_samples(build_index(expand_shards(shards), folder), max_samples)
    tokenizer = load_tokenizer(tokenizer_source(model))
    seeing, blind = (
        evaluate(opened, tokenizer, samples, EvaluationSettings(blank, batch_size, max_new_tokens))
        for blank in (False, True)
    )
    console = output_console()
    console.print(f"{len(samples)} samples; loss {seeing.loss:.4f}, with blanked images {blind.loss:.4f}")
    console.print(build_table(seeing, blind))
    if report is not None:
        report.write_text(json.dumps({"seeing": to_json(seeing), "blanked": to_json(blind)}, indent=1))


def build_table(seeing: "Evaluation", blind: "Evaluation") -> Table:
    """Compare accuracy with and without images, per kind of question and per number of images."""
    table = Table("questions", "number", "accuracy", "blanked images", "majority answer", title="Answer accuracy")
    groups = {"all with images": (seeing.overall, blind.overall)}
    groups |= {kind: (score, blind.by_kind()[kind]) for kind, score in seeing.by_kind().items()}
    groups |= {name: (score, blind.by_images()[name]) for name, score in seeing.by_images().items()}
    for name, (score, blanked) in groups.items():
        shares = (score.accuracy, blanked.accuracy, score.majority)
        table.add_row(name, str(score.num_answers), *(f"{100 * share:.1f} %" for share in shares))
    return table


def to_json(evaluation: "Evaluation") -> dict[str, object]:
    """Return figures and answers as JSON-serialisable facts."""
    groups = {"overall": evaluation.overall, **evaluation.by_kind(), **evaluation.by_images()}
    return {
        "loss": evaluation.loss,
        "scores": {name: score._asdict() for name, score in groups.items()},
        "answers": [answer._asdict() for answer in evaluation.answers],
    }
