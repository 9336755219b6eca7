"""The plan of indexed data: lengths, order and mix of a run, put together once before any worker starts."""

from __future__ import annotations

from pipeline.config import DataConfig, TrainingConfig
from pipeline.index.dataset import IndexedData
from pipeline.plan.epochs import EpochOrder
from pipeline.plan.mix import order_mix
from pipeline.plan.plan import Order, Plan, check_lengths
from pipeline.plan.sources import Sources
from pipeline.samples.encode import SampleEncoder
from pipeline.stream.costs import sample_costs


def plan_run(
    data_config: DataConfig, training: TrainingConfig, seed: int, data: IndexedData, encoder: SampleEncoder
) -> Plan:
    """Plan a run over indexed data.

    Raises:
        ValueError: no sample is usable, or one is longer than a micro-batch.
    """
    selected = [] if data.left_out is None else [data.left_out.fingerprint]
    num_tokens = data.tokens["num_tokens"].to_numpy()
    usable = check_lengths(num_tokens, training.micro_batch_tokens)
    order: Order
    if data_config.sources:
        sizes = {name: usable.count(first, end) for name, first, end in data.sources}
        order = order_mix(data_config, sizes, seed, training.global_batch_size, training.num_epochs)
    else:
        order = EpochOrder(len(usable), seed, training.global_batch_size, training.num_epochs)
    return Plan(
        num_tokens=num_tokens,
        usable=usable,
        order=order,
        sources=Sources(tuple(data_config.sources), tuple(source.end_row for source in data.sources)),
        data_fingerprint=":".join([data.index.fingerprint, encoder.fingerprint, *selected]),
        seed=seed,
        max_steps=training.max_steps,
        micro_batch_tokens=training.micro_batch_tokens,
        costs=sample_costs(training.cost, data, encoder),
    )
