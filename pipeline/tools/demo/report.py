"""The demo's report: one HTML file with the table of results, the loss curves, and answers next to their pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.evaluation.questions import EvaluationSample
from pipeline.evaluation.scores import Answer
from pipeline.tools.demo.results import GUESSING, Point, Row

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #f4f5f7; margin: 0; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 12px; }
p { margin: 0 0 12px; max-width: 78ch; } .quiet { color: #5c6675; }
.panel { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 4px 16px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { padding: 7px 10px; text-align: right; }
th { font-weight: 600; color: #5c6675; border-bottom: 2px solid #dfe3e8; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; } tr + tr td { border-top: 1px solid #eceff2; }
tr.headline td { font-weight: 700; background: #eef4ff; } td { font-variant-numeric: tabular-nums; }
.cards { display: grid; gap: 14px; }
.card { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 14px 16px; display: grid;
  grid-template-columns: 300px 1fr; gap: 20px; align-items: center; }
.pictures { display: flex; gap: 8px; justify-content: center; align-items: center; }
figure { margin: 0; } figcaption { font-size: 12px; color: #5c6675; text-align: center; }
.pictures img { max-height: 128px; max-width: 200px; border: 1px solid #dfe3e8; border-radius: 4px; display: block; }
.several img { max-height: 92px; max-width: 92px; }
.card table { table-layout: fixed; } .card td, .card th { padding: 4px 8px; text-align: left; font-size: 14px; }
.card th:first-child { width: 40%; }
.right { color: #14733b; font-weight: 600; } .wrong { color: #b3261e; font-weight: 600; }
.curves { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; } svg { width: 100%; height: auto; display: block; }
.curves .panel { padding: 12px 16px; } .curves h3 { font-size: 14px; margin: 0 0 6px; }
"""


class Curve(NamedTuple):
    """Training loss of one stage."""

    name: str
    losses: tuple[float, ...]
    """One per optimizer step."""


def render_report(
    points: Sequence[Point],
    rows: Sequence[Row],
    curves: Sequence[Curve],
    samples: Sequence[EvaluationSample],
    num_shown: int = 12,
) -> str:
    """Render the report as one HTML document without external files.

    Args:
        points: evaluations in the order of the columns; all over `samples`.
        rows: the table.
        curves: loss per stage.
        samples: the evaluated samples.
        num_shown: samples shown with their answers: the first with one image and the first with several, half each.
    """
    heads = [*(point.name for point in points), GUESSING]
    cards = "".join(_card(sample, points) for sample in chosen_samples(samples, num_shown))
    charts = "".join(f'<div class="panel"><h3>{html.escape(curve.name)}</h3>{_chart(curve)}</div>' for curve in curves)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>ray-llava demo</title><style>{_STYLE}</style></head><body><main>
<h1>What the demo learnt</h1>
<p class="quiet">Measured on {len(samples)} held-out samples. Answers are generated greedily, with the conversation
before each question taken from the data, and count when they equal the expected word. &ldquo;{GUESSING}&rdquo; always
gives the commonest answer to that kind of question. &ldquo;blanked&rdquo; is the finetuned model with every picture
replaced by one flat colour. A &ldquo;new combination&rdquo; is a colour and a shape that no training picture
combines.</p>
<div class="panel">{_table(heads, rows)}</div>
<h2>Training loss per step</h2><div class="curves">{charts}</div>
<h2>Answers and their pictures</h2>
<p class="quiet">The first held-out samples with one image and the first with several; they were not selected by how
well they are answered.</p>
<div class="cards">{cards}</div>
</main></body></html>
"""


def chosen_samples(samples: Sequence[EvaluationSample], num_shown: int) -> list[EvaluationSample]:
    """Return the first samples with one image, then the first with several, half each."""
    single = [entry for entry in samples if len(entry.sample.images) == 1]
    several = [entry for entry in samples if len(entry.sample.images) > 1]
    return single[: num_shown // 2] + several[: num_shown - num_shown // 2]


def answers_of(point: Point, entry: EvaluationSample) -> list[Answer]:
    """Return the answers to one sample, in the order of its questions."""
    return [answer for answer in point.evaluation.answers if answer.key == entry.sample.key]


def _table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *heads))
    body = "".join(
        f"<tr{' class=headline' if row.is_headline else ''}><td>{html.escape(row.label)}</td>"
        + "".join(f"<td>{cell}</td>" for cell in row.cells)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _card(entry: EvaluationSample, points: Sequence[Point]) -> str:
    several = len(entry.sample.images) > 1
    pictures = "".join(
        f'<figure><img alt="image {number}" src="{_data_uri(data)}">'
        + (f"<figcaption>{number}</figcaption>" if several else "")
        + "</figure>"
        for number, data in enumerate(entry.sample.images, start=1)
    )
    columns = [answers_of(point, entry) for point in points]
    lines = "".join(
        f"<tr><td>{html.escape(_last_line(answers[0].question))}</td>" + "".join(_verdict(a) for a in answers) + "</tr>"
        for answers in zip(*columns, strict=True)
    )
    heads = "".join(f"<th>{html.escape(point.name)}</th>" for point in points)
    return (
        f'<div class="card"><div class="pictures{" several" if several else ""}">{pictures}</div>'
        f"<table><tr><th>question</th>{heads}</tr>{lines}</table></div>"
    )


def _verdict(answer: Answer) -> str:
    name, sign = ("right", "&#10003;") if answer.is_right else ("wrong", "&#10007;")
    return f'<td class="{name}">{sign} {html.escape(_shortened(answer.given)) or "&mdash;"}</td>'


def _shortened(text: str, limit: int = 20) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def _last_line(question: str) -> str:
    return question.strip().rpartition("\n")[2]


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _chart(curve: Curve, width: int = 480, height: int = 170) -> str:
    """Draw a loss curve as SVG, from zero to its largest value."""
    if not curve.losses:
        return '<p class="quiet">no steps</p>'
    left, bottom = 36, 20
    top_value = max(curve.losses) or 1.0
    across = (width - left - 8) / max(1, len(curve.losses) - 1)
    up = (height - bottom - 10) / top_value
    places = ((left + step * across, height - bottom - loss * up) for step, loss in enumerate(curve.losses))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eceff2"/>'
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        for value in (0, top_value / 2, top_value)
        for y in [height - bottom - value * up]
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" font-size="11" fill="#5c6675">{marks}'
        f'<polyline points="{points}" fill="none" stroke="#2f6fed" stroke-width="1.6"/>'
        f'<text x="{width - 8}" y="{height - 4}" text-anchor="end">{len(curve.losses)} steps, '
        f"last {curve.losses[-1]:.3f}</text></svg>"
    )
