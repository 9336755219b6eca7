"""Laying views out as one HTML file: no script, nothing fetched, every text from the data escaped by the template."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jinja2
import pyarrow as pa

from pipeline.errors import Reason, advice
from pipeline.plan.efficiency import PackingReport
from pipeline.tools.inspect.histograms import Histogram, count_reasons, data_histograms
from pipeline.tools.inspect.hygiene_view import HygienePage
from pipeline.tools.inspect.sample_view import Inspected, SampleView
from pipeline.tools.inspect.step_view import StepView


class Fact(NamedTuple):
    """A number at the top of a page."""

    name: str
    value: str


class Rejection(NamedTuple):
    """A reason of rejection and what to do about it."""

    reason: str
    num_samples: int
    advice: str


class Overview(NamedTuple):
    """What the page on a whole data set shows."""

    facts: tuple[Fact, ...]
    histograms: tuple[Histogram, ...]
    rejections: tuple[Rejection, ...]
    defective_shards: tuple[tuple[str, str, str], ...]
    """URL, reason, detail."""
    packing: PackingReport | None
    """None when no sample is usable."""
    samples: tuple[SampleView, ...]
    rejected: tuple[SampleView, ...]


class RunLabel(NamedTuple):
    """What every page says of the run that it is about."""

    name: str
    stage: str
    template: str
    micro_batch_tokens: int


def describe_data(data: Inspected, packing: PackingReport | None, total_steps: int) -> Overview:
    """Return the overview of a data set, without samples."""
    reasons = count_reasons(data.tokens)
    num_rejected = sum(reasons.values())
    num_tokens, num_supervised = (_total(data.tokens, name) for name in ("num_tokens", "num_supervised_tokens"))
    facts = (
        Fact("usable samples", f"{data.index.num_samples - num_rejected:,}"),
        Fact("rejected samples", f"{num_rejected:,}"),
        Fact("shards", f"{len(data.index.shards):,}"),
        Fact("fused tokens per epoch", f"{num_tokens:,}"),
        Fact("trained on", f"{num_supervised / max(1, num_tokens):.1%} of them"),
        Fact("steps of the run", f"{total_steps:,}"),
    )
    defective = tuple(
        (shard.url, shard.defect_reason, shard.defect_detail) for shard in data.index.shards if shard.defect_reason
    )
    return Overview(
        facts=facts,
        histograms=tuple(data_histograms(data.index, data.tokens)),
        rejections=tuple(Rejection(reason, count, advice(Reason(reason))) for reason, count in reasons.items()),
        defective_shards=defective,
        packing=packing,
        samples=(),
        rejected=(),
    )


def render_overview(run: RunLabel, overview: Overview) -> str:
    """Render the page on a data set."""
    return _render("overview.html.j2", title=f"{run.name}: data", run=run, overview=overview)


def render_sample(run: RunLabel, sample: SampleView) -> str:
    """Render the page on one sample."""
    title = f"{run.name}: sample {sample.sample_id}"
    return _render("sample.html.j2", title=title, run=run, sample=sample)


def render_step(run: RunLabel, step: StepView) -> str:
    """Render the page on one global step."""
    return _render("step.html.j2", title=f"{run.name}: step {step.step}", run=run, step=step)


def render_hygiene(run: RunLabel, page: HygienePage) -> str:
    """Render the page on what is odd in a data set."""
    return _render("hygiene.html.j2", title=f"{run.name}: hygiene", run=run, page=page)


def _total(tokens: pa.Table, name: str) -> int:
    return int(tokens[name].to_numpy().sum(dtype="int64"))


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.tools.inspect"),
        autoescape=True,  # for every template: samples may hold markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
