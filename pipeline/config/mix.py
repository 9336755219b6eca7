"""Config of a mix: several sources of shards, how often each is drawn from, and announced changes of that."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from pipeline.config.section import Fixed, Section
from pipeline.storage.urls import check_shard_urls

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)]
"""Part of metric names and of the index folder."""
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SourceConfig(Section):
    """One source of a mix."""

    shards: Annotated[tuple[str, ...], Fixed, Field(min_length=1)]
    """Shard paths or URLs, as in `data.shards`."""
    weight: Annotated[Weight | None, Fixed] = None
    """Share of the samples, relative to the other weights; 0 waits for a change. All sources have one, or none has."""
    epochs: Annotated[float | None, Fixed, Field(gt=0, allow_inf_nan=False)] = None
    """Instead of weights: passes over this source in one epoch of the run. Set it on all sources or on none."""

    @field_validator("shards")
    @classmethod
    def _check_shards(cls, shards: tuple[str, ...]) -> tuple[str, ...]:
        return check_shard_urls(shards)


class MixChange(Section):
    """Other weights from an announced step on."""

    from_step: Annotated[int, Fixed, Field(ge=1)]
    """First global step that is drawn with these weights."""
    weights: Annotated[dict[SourceName, Weight], Fixed]
    """Weight of every source."""


def check_mix(sources: dict[str, SourceConfig], temperature: float, changes: tuple[MixChange, ...]) -> None:
    """Check what holds between the sources of a mix and its changes.

    Raises:
        ValueError: weights that are missing or contradict each other; names them.
    """
    for name in ("weight", "epochs"):
        given = [key for key, source in sources.items() if source.__getattribute__(name) is not None]
        if given and len(given) < len(sources):
            lacking = ", ".join(key for key in sources if key not in given)
            raise ValueError(f"sources: {', '.join(given)} set {name}, {lacking} do not; set it for all or for none")
    weighted = [source.weight for source in sources.values() if source.weight is not None]
    timed = [source.epochs for source in sources.values() if source.epochs is not None]
    if weighted and timed:
        raise ValueError("sources: weight and epochs say the same thing in two ways; keep one of them")
    if (weighted or timed) and temperature != 1:
        raise ValueError("mix_temperature flattens shares by size; it does not go with weight or epochs of sources")
    if weighted and not any(weighted):
        raise ValueError("sources: every weight is 0; give at least one source a positive one")
    for earlier, change in zip((None, *changes), changes, strict=False):
        if earlier is not None and earlier.from_step >= change.from_step:
            raise ValueError(f"mix_changes: from_step {change.from_step} does not come after {earlier.from_step}")
        if change.weights.keys() != sources.keys():
            raise ValueError(
                f"mix_changes from step {change.from_step}: expected a weight for each of {', '.join(sources)}, found "
                f"{', '.join(change.weights) or 'none'}"
            )
        if not any(change.weights.values()):
            raise ValueError(f"mix_changes from step {change.from_step}: every weight is 0")
