"""A look at the first samples of a source before anything is written: pictures and text as they would be stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jinja2
import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.index.scan import Checks
from pipeline.samples.image import decode_image
from pipeline.samples.prompt.conversation import Image
from pipeline.samples.schema import Sample, parse_sample
from pipeline.tools.convert.source import Source
from pipeline.tools.inspect.pictures import to_data_uri

_THUMBNAIL_PX = 240
_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
    """<!doctype html><meta charset="utf-8"><title>first samples</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
section{border:1px solid #ccc;border-radius:6px;padding:.8em 1em;margin:1em 0}h2{font-size:1em;margin:0;color:#555}
.role{font-weight:bold}.refused{color:#b00020}img{vertical-align:middle;margin:.2em;border:1px solid #ddd}
p{white-space:pre-wrap;margin:.4em 0;overflow-wrap:anywhere}</style>
<h1>First samples</h1>{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% for one in samples %}<section><h2>{{ one.source }}, row {{ one.row }}</h2>
{% if one.reason %}<p class="refused">refused: {{ one.reason }}, {{ one.detail }}</p>{% endif %}
{% for role, parts in one.turns %}<p><span class="role">{{ role }}</span>: {% for part in parts %}{% if part.uri -%}
<img src="{{ part.uri }}" alt="{{ part.text }}">{% else %}{{ part.text }}{% endif %}{% endfor %}</p>{% endfor %}
</section>{% endfor %}"""
)


class ShownPart(NamedTuple):
    """Text, or a picture with its size as text."""

    text: str
    uri: str = ""


class Shown(NamedTuple):
    """One entry of a source, as it would be written, or why it would not be."""

    source: str
    row: int
    reason: str
    detail: str
    turns: tuple[tuple[str, tuple[ShownPart, ...]], ...] = ()

    def lines(self) -> list[str]:
        """Return the entry as lines of text."""
        if self.reason:
            return [f"row {self.row}: refused: {self.reason}, {self.detail}"]
        said = [
            f"{role}: " + "".join(f"[{part.text}]" if part.uri else part.text for part in parts)
            for role, parts in self.turns
        ]
        return [f"row {self.row}: {said[0]}", *(f"    {one}" for one in said[1:])]


def first_samples(source: Source, number: int, checks: Checks) -> list[Shown]:
    """Return the first entries of a source; of several files some of each.

    Raises:
        DataError: a file cannot be read to its end.
        OSError: storage failed.
    """
    units = source.units()[:number]
    per_unit = -(-number // max(1, len(units)))
    return list(itertools.islice((one for unit in units for one in _of_unit(source, unit, per_unit, checks)), number))


def render_page(samples: list[Shown], notes: tuple[str, ...]) -> str:
    """Return an HTML page without scripts that shows the samples."""
    return _PAGE.render(samples=samples, notes=notes)


def _of_unit(source: Source, unit: str, number: int, checks: Checks) -> Iterator[Shown]:
    for row in source.list_unit(unit).slice(0, number).to_batches(max_chunksize=1):
        entry = pa.Table.from_batches([row])
        place, reason, detail = (entry[name][0].as_py() for name in ("row", "reason", "detail"))
        if reason:
            yield Shown(unit, place, reason, detail)
            continue
        (outcome,) = source.read(unit, entry)
        try:
            if isinstance(outcome.content, DataError):
                raise outcome.content
            yield Shown(unit, place, "", "", _turns(parse_sample("row", outcome.content, checks.policy), checks))
        except DataError as error:
            yield Shown(unit, place, Reason(error.reason).value, error.what)


def _turns(sample: Sample, checks: Checks) -> tuple[tuple[str, tuple[ShownPart, ...]], ...]:
    images = iter(sample.images)

    def part(one: str | Image) -> ShownPart:
        if isinstance(one, str):
            return ShownPart(one)
        pixels = decode_image(next(images), checks.limits)
        return ShownPart(f"picture {pixels.shape[1]} x {pixels.shape[0]}", to_data_uri(pixels, _THUMBNAIL_PX))

    return tuple((turn.role, tuple(part(one) for one in turn.parts)) for turn in sample.conversation.turns)
