"""From the weights of a config to the plan of a mix: shares in whole numbers, epochs, announced changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from pipeline.config import ConfigError, DataConfig, MixChange
from pipeline.plan.mixed import MixedOrder, MixPhase, MixSource, mix_sources

_FLATTENED_UNITS = 10**6
"""Resolution of shares that come from a temperature; roots of sizes are not ratios of whole numbers."""


def order_mix(
    data: DataConfig, sizes: Mapping[str, int], seed: int, global_batch_size: int, num_epochs: float
) -> MixedOrder:
    """Plan how a run draws from the sources of its config.

    One epoch of the run is as many samples as all sources hold together or, with `epochs`, as many as those add up to.

    Args:
        data: names the sources and their weights.
        sizes: usable samples of each source, in the order of their rows.
        seed: of the run.
        global_batch_size: samples of an optimizer step.
        num_epochs: length of the run.

    Raises:
        ValueError: a source with a weight has no usable sample.
    """
    epoch = _samples_per_epoch(data, sizes)
    return mix_sources(
        [MixSource(name, size) for name, size in sizes.items()],
        [
            MixPhase(0, whole_shares(_first_shares(data, sizes))),
            *(
                MixPhase(change.from_step, whole_shares({name: _exact(change.weights[name]) for name in sizes}))
                for change in data.mix_changes
            ),
        ],
        seed=seed,
        global_batch_size=global_batch_size,
        epoch_size=math.ceil(epoch),
        num_samples=math.ceil(epoch * num_epochs),
    )


def check_past_changes(trained: Sequence[MixChange], now: Sequence[MixChange], step: int) -> None:
    """Refuse to resume with other weights for steps that have been trained; those to come may change.

    Args:
        trained: changes announced when the steps before `step` were trained.
        now: changes that the config announces.
        step: next step to train.

    Raises:
        ConfigError: a step before `step` would have had other weights; lists the changes until then.
    """
    past, claimed = ([change for change in changes if change.from_step < step] for changes in (trained, now))
    if past != claimed:
        raise ConfigError(
            f"data.mix_changes: the steps before {step} are trained, with the changes {_describe(past)}; the config "
            f"now says {_describe(claimed)} for them. Restore these, and announce new weights from step {step} on"
        )


def describe_late_changes(changes: Sequence[MixChange], total_steps: int) -> str | None:
    """Warn of announced changes after the last step; they only apply if the run is made longer."""
    late = [change for change in changes if change.from_step >= total_steps]
    if not late:
        return None
    return (
        f"data.mix_changes: the run ends after step {total_steps - 1}, so these changes never take effect: "
        f"{_describe(late)}; lower from_step, or train longer (training.num_epochs, training.max_steps)"
    )


def _describe(changes: Sequence[MixChange]) -> str:
    listed = [f"from {change.from_step}: {dict(sorted(change.weights.items()))}" for change in changes]
    return "; ".join(listed) or "none"


def whole_shares(shares: Mapping[str, Fraction]) -> tuple[int, ...]:
    """Scale shares to whole numbers of exactly the same ratios."""
    scale = math.lcm(*(share.denominator for share in shares.values()))
    return tuple(int(share * scale) for share in shares.values())


def _first_shares(data: DataConfig, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """Return the shares from step 0: by weight, by epochs, or by size flattened by the temperature."""
    shares = {}
    for name, size in sizes.items():
        source = data.sources[name]
        if source.weight is not None:
            shares[name] = _exact(source.weight)
        elif source.epochs is not None:
            shares[name] = _exact(source.epochs) * size
        elif data.mix_temperature == 1:
            shares[name] = Fraction(size)
        else:
            flattened = (size / max(sizes.values())) ** (1 / data.mix_temperature)
            shares[name] = Fraction(round(flattened * _FLATTENED_UNITS))
    return shares


def _samples_per_epoch(data: DataConfig, sizes: Mapping[str, int]) -> Fraction:
    total = Fraction()
    for name, size in sizes.items():
        passes = data.sources[name].epochs
        total += size if passes is None else _exact(passes) * size
    return total


def _exact(number: float) -> Fraction:
    """Read a decimal number exactly as written in the config: 0.1 is one tenth."""
    return Fraction(str(number))
