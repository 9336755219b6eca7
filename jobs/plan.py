"""`ray-llava plan`: steps, tokens, memory and time of a run, before anything of it runs."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from pipeline.config import Recipe, TrainingConfig
from pipeline.run_folder.place import working_folder

if TYPE_CHECKING:  # torch takes seconds to load; config errors need not wait for it
    from model.hub.weights import LlavaModel
    from pipeline.plan.plan import Plan
    from pipeline.tools.estimate.devices import Device
    from pipeline.tools.estimate.forecast import Forecast
    from pipeline.tools.estimate.probe import Probe
    from pipeline.tools.estimate.work import PlannedWork

_GIB = 2**30
_PROBE_STEPS = 3
_ANY_RATE = 1e12
"""FLOP/s where the device is not known: only proportions of costs matter."""

WorkersOption = Annotated[
    list[int] | None, typer.Option("--workers", min=1, help="Also plan for this number of workers; may be repeated.")
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Device to plan for, such as H200 or A100; default: this machine's.")
]
MeasureOption = Annotated[
    bool, typer.Option("--measure", help="Train a few steps on this machine and throw them away, to know the time.")
]


def run(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    measure: MeasureOption = False,
) -> None:
    """Show what a run would do and need: steps, tokens, packing, memory per worker and time."""
    experiment = read_config(config, overrides).with_absolute_paths()
    console = output_console()

    from pipeline.index.budget import check_rejected
    from pipeline.launch.preflight import check_config, check_data
    from pipeline.launch.prepare import index_run
    from pipeline.launch.run_maps import choose_run_map
    from pipeline.stream.prepare import plan_run
    from pipeline.stream.rank_step import BatchSource
    from pipeline.stream.refused import read_refused
    from pipeline.tools.estimate.devices import device_here, device_named
    from pipeline.tools.estimate.forecast import forecast
    from pipeline.tools.estimate.work import cost_override, measure_work, utilisation
    from pipeline.tools.inspect.sample_view import Inspected

    # 1. The checks that training makes, the index, the plan.
    recipe = experiment.recipe
    use_gpu = experiment.cluster.use_gpu or device is not None
    on_device = experiment.cluster.model_copy(update={"use_gpu": use_gpu})
    encoder, model = check_config(experiment.model_copy(update={"cluster": on_device}), trains_here=device is None)
    data = index_run(experiment, encoder, console, choose_run_map(experiment.cluster))
    check_rejected(data, experiment.data)
    plan = plan_run(recipe.data, recipe.training, experiment.seed, data, encoder)
    refused = read_refused(working_folder(experiment.run_dir), plan.data_fingerprint)
    source = check_data(experiment.recipe, data, BatchSource(plan, data.index, encoder, refused))
    # 2. What a step does, on any machine.
    work = measure_work(Inspected(data.index, data.tokens, encoder), plan, model, recipe)
    console.print(work_table(experiment.name, plan, work))
    # 3. What it needs on this device, for each number of workers.
    numbers = list(dict.fromkeys([experiment.cluster.max_workers, *(workers or [])]))
    devices = [device_named(device) if device else device_here(use_gpu=use_gpu, num_ranks=ranks) for ranks in numbers]
    found = [
        forecast(recipe, model, plan, work, on, ranks, use_gpu=use_gpu)
        for ranks, on in zip(numbers, devices, strict=True)
    ]
    console.print(forecast_table(found, plan))
    _explain(console, recipe.training, found)
    _judge_cache(console, recipe, model, plan, work, found[0])
    # 4. How fast it really is.
    if measure:
        from pipeline.tools.estimate.probe import measure_steps

        probe = measure_steps(
            recipe, source, numbers[0], _PROBE_STEPS, use_gpu=experiment.cluster.use_gpu, seed=experiment.seed
        )
        _print_probe(console, probe, source.plan.total_steps, numbers[0])
        rate = work.flops_per_step / numbers[0] / max(1e-9, probe.step_time_s)
    else:
        peak = next((on.peak_flops for on in devices if on is not None and on.peak_flops), _ANY_RATE)
        rate = peak * utilisation(recipe.training)
    console.print(
        f"to balance workers by time instead of tokens: '{cost_override(model, recipe, rate)}'",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def work_table(name: str, plan: "Plan", work: "PlannedWork") -> Table:
    """Render what the run does, independent of the device."""
    table = Table("", "", title=f"{name}: plan")
    table.columns[1].justify = "right"
    counts, epochs = work.counts, plan.order.epochs_done(plan.total_steps)
    table.add_row("usable samples", f"{plan.num_samples:,}")
    table.add_row("steps", f"{plan.total_steps:,} ({epochs:.3g} epochs)")
    table.add_row("samples trained", f"{plan.num_planned(plan.total_steps):,}")
    for source, number in plan.planned_by_source(plan.total_steps).items():
        table.add_row(f"  of source {source}", f"{number:,}")
    table.add_row("fused tokens per step", f"{counts.tokens:,.0f}")
    table.add_row("trained on", f"{counts.targets / counts.tokens:.1%} of them")
    table.add_row("fused tokens of the run", f"{counts.tokens * plan.total_steps:,.3g}")
    table.add_row("images per step", f"{counts.images:,.1f}, as {counts.tiles:,.1f} tiles")
    table.add_row("FLOPs per step", f"{work.flops_per_step:.3g}")
    table.add_row("  of them in the vision tower and projector", f"{work.vision_share:.1%}")
    return table


def forecast_table(found: "list[Forecast]", plan: "Plan") -> Table:
    """Render memory and time, one column per number of workers."""
    table = Table("", *(f"{one.packing.num_ranks} workers" for one in found), title="Estimates")
    for column in table.columns[1:]:
        column.justify = "right"
    rows: dict[str, Callable[[Forecast], str]] = {
        "micro-batches per step": lambda one: f"{one.packing.micro_batches_per_step:.1f}",
        "token budget filled": lambda one: f"{one.packing.fill:.1%}",
        "padding, and that of padded batches": lambda one: f"0 %, {one.packing.padding_avoided:.1%}",
        "mean load / busiest": lambda one: f"{one.packing.balance:.1%}",
        "memory: weights": lambda one: _gib(one.memory.weights),
        "  gradients": lambda one: _gib(one.memory.gradients),
        "  optimizer": lambda one: _gib(one.memory.optimizer),
        "  casts and gathered weights": lambda one: _gib(one.memory.casts),
        "  activations, largest micro-batch": lambda one: _gib(one.memory.activations),
        "  logits chunk and head": lambda one: _gib(one.memory.loss),
        "  tower, before activations": lambda one: _gib(one.memory.vision),
        "  runtime": lambda one: _gib(one.memory.runtime),
        "memory per worker, peak": lambda one: _gib(one.memory.total),
        "fits": _verdict,
        "step": lambda one: "?" if one.step_time_s is None else f"{one.step_time_s:.2f} s",
        "run": lambda one: "?" if one.step_time_s is None else _duration(one.step_time_s * plan.total_steps),
    }
    for name, show in rows.items():
        table.add_row(name, *(show(one) for one in found))
    return table


def _explain(console: Console, training: TrainingConfig, found: "list[Forecast]") -> None:
    """Print what the estimates assume, and what to change if the run does not fit."""
    from pipeline.tools.estimate.work import utilisation

    timed = next((one.device for one in found if one.step_time_s is not None), None)
    if timed is not None and timed.peak_flops is not None:
        share = utilisation(training)
        console.print(
            f"time: FLOPs at {share:.0%} of the {timed.peak_flops / 1e12:.0f} TFLOP/s of one {timed.name}, "
            f"{'compiled' if training.compile else 'not compiled'}; exchange between workers and waiting for "
            "data not included. --measure times real steps"
        )
    else:
        console.print("time: not estimated without a listed GPU and bfloat16; --measure times real steps here")
    for one in found:
        if one.fits is not False or one.device is None:
            continue
        wanted = [f"{change.overrides} ({_gib(change.total_bytes)})" for change in one.changes]
        hint = " or ".join(wanted) or "nothing in the config is enough: use a smaller model, LoRA or larger devices"
        console.print(
            f"[bold red]{one.packing.num_ranks} workers: out of memory[/] on {one.device.name}, "
            f"{_gib(one.memory.total)} of {_gib(one.device.usable_bytes)}; what fits: {hint}"
        )


def _judge_cache(
    console: Console, recipe: Recipe, model: "LlavaModel", plan: "Plan", work: "PlannedWork", on: "Forecast"
) -> None:
    """Say whether a cache of the tower's features would pay; nothing where the tower learns."""
    from pipeline.tools.estimate.feature_cache import describe_cache, estimate_cache

    tower = model.get_vision_tower()
    if tower is None or not work.tower_flops:
        return
    value_bytes = 2 if recipe.training.precision == "bfloat16" else 4
    epochs = plan.order.epochs_done(plan.total_steps)
    is_cached = recipe.data.feature_cache is not None
    estimate = estimate_cache(
        work,
        is_cached=is_cached,
        tile_bytes=tower.num_features * tower.hidden_size * value_bytes,
        num_samples=plan.num_samples,
        epochs=epochs,
        num_ranks=on.packing.num_ranks,
        step_time_s=on.step_time_s,
    )
    epoch_time_s = None
    if on.step_time_s is not None:
        uncached = on.step_time_s * (1 + work.tower_flops / work.flops_per_step * is_cached)
        epoch_time_s = uncached * plan.total_steps / epochs
    console.print(describe_cache(estimate, epoch_time_s))


def _print_probe(console: Console, probe: "Probe", total_steps: int, num_ranks: int) -> None:
    whole = _duration(probe.step_time_s * total_steps)
    processes = math.ceil(probe.data_time_s / probe.step_time_s)
    console.print(
        f"measured on this machine, one worker of {num_ranks}: {probe.step_time_s:.3g} s per step, {whole} for the "
        f"run, peak {_gib(probe.memory_peak_bytes)}; one process prepares a step's data in {probe.data_time_s:.3g} s, "
        f"so {processes} of them per worker keep up"
    )


def _verdict(one: "Forecast") -> str:
    device: Device | None = one.device
    if device is None or one.fits is None:
        return "?"
    return f"{'yes' if one.fits else '[bold red]no[/]'}, {_gib(device.usable_bytes)} usable"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
