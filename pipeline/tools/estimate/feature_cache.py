"""Whether a cache of a frozen tower's features would pay: what it saves per epoch, its size, and its filling."""

from __future__ import annotations

from typing import Final, NamedTuple

from pipeline.tools.estimate.work import PlannedWork

READ_BYTES_PER_S: Final = 1e9
"""Assumed rate at which the data workers of one rank read features from local or parallel storage."""
FILL_TILES_PER_S: Final = 300.0
"""Assumed rate at which the one process that fills a cache reads, decodes and resizes; a core that does nothing else
manages 700 to 900 photographs of 640 x 480 per second."""
_WORTH_SHARE: Final = 0.05
"""Least share of a run's work that must be left after filling: less is lost in what an estimate does not know."""


class CacheEstimate(NamedTuple):
    """A feature cache for a run."""

    disk_bytes: int
    """All features; images that occur more than once in a shard are counted every time."""
    saved: float
    """Share of the tower in the work of an epoch without a cache, 0 to 1."""
    net_saved: float
    """Share of the run that is left after filling the cache once; negative when filling costs more."""
    read_bytes_per_step: float
    """Of one rank."""
    read_time_s: float
    """Of these bytes at the assumed rate."""
    compute_time_s: float | None
    """Of a step on features, None where the device's rate is not known."""

    @property
    def keeps_up(self) -> bool:
        """Whether reading is hidden behind computing, as far as that is known."""
        return self.compute_time_s is None or self.read_time_s <= self.compute_time_s

    @property
    def is_worth_it(self) -> bool:
        """Whether the run alone, without others that use the cache too, would gain."""
        return self.net_saved >= _WORTH_SHARE and self.keeps_up


def estimate_cache(
    work: PlannedWork,
    *,
    is_cached: bool,
    tile_bytes: int,
    num_samples: int,
    epochs: float,
    num_ranks: int,
    step_time_s: float | None,
) -> CacheEstimate:
    """Estimate what a feature cache does for a run.

    Args:
        work: of a mean step.
        is_cached: whether `work` and `step_time_s` are those of a run on a cache.
        tile_bytes: features of one tile.
        num_samples: usable samples, each shown once per epoch.
        epochs: that the run lasts.
        num_ranks: number of workers W.
        step_time_s: estimated time of a step; None where it is not known.
    """
    flops = work.flops_per_step + (work.tower_flops if is_cached else 0.0)
    saved = work.tower_flops / flops
    compute_time_s = None if step_time_s is None else step_time_s * (flops - work.tower_flops) / work.flops_per_step
    read_bytes = work.counts.tiles * tile_bytes / num_ranks
    num_tiles = work.counts.tiles / work.counts.samples * num_samples
    filling = saved  # in epochs: the tower's share of one, if times are unknown
    if step_time_s is not None:
        epoch_time_s = step_time_s * flops / work.flops_per_step * num_samples / work.counts.samples
        # one process fills what all ranks would compute
        filling = max(saved * num_ranks, num_tiles / FILL_TILES_PER_S / epoch_time_s)
    return CacheEstimate(
        disk_bytes=round(num_tiles * tile_bytes),
        saved=saved,
        net_saved=saved - filling / epochs,
        read_bytes_per_step=read_bytes,
        read_time_s=read_bytes / READ_BYTES_PER_S,
        compute_time_s=compute_time_s,
    )


def describe_cache(estimate: CacheEstimate, epoch_time_s: float | None) -> str:
    """Return the verdict in a sentence.

    Args:
        estimate: of the run.
        epoch_time_s: time of an epoch without a cache; None where it is not known, then shares stand for times.
    """
    if epoch_time_s is None:
        gain = f"{estimate.saved:.0%} of the FLOPs of an epoch"
    else:
        gain = f"{estimate.saved * epoch_time_s / 60:.3g} of {epoch_time_s / 60:.3g} minutes per epoch"
    if estimate.is_worth_it:
        verdict = "worth it: run cache-features, then train with data.feature_cache"
    elif not estimate.keeps_up:
        verdict = (
            f"not worth it: a step reads {estimate.read_bytes_per_step / 1e6:.3g} MB per worker, which at "
            f"{READ_BYTES_PER_S / 1e9:.3g} GB/s takes longer than the rest of the step"
        )
    else:
        verdict = f"not worth it for this run alone: after filling it once, {max(0.0, estimate.net_saved):.0%} is left"
    return f"a feature cache would save about {gain} and take {estimate.disk_bytes / 1e9:.3g} GB: {verdict}"
