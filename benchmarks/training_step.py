"""`python -m benchmarks.training_step gpu --out results.json`: check and time the training step on this machine.

Needs neither Ray nor MLflow, no data and no weights. Every result is written as soon as it exists.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from benchmarks.data.data_rate import measure_data_rates
from benchmarks.ranks.several_gpus import RANK_PARTS, describe_gpus, measurements
from benchmarks.step.baseline import time_baseline
from benchmarks.step.correctness import check_all
from benchmarks.step.growth import measure_growth
from benchmarks.step.kernels import measure_ceilings, profile_step
from benchmarks.step.measure import Timing
from benchmarks.step.ours import time_ours
from benchmarks.step.overhead import measure_overhead, measure_packing
from benchmarks.step.report import render
from benchmarks.step.rival import time_rival
from benchmarks.step.scenarios import CPU_SCENARIOS, SCENARIOS, Scenario
from benchmarks.step.shapes import flop_model
from benchmarks.step.side_by_side import compare
from model.llava.attention import AttentionKernel
from model.llava.flash_attention_4 import is_installed
from pipeline.training.session import TrainingSession

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PARTS = ("correctness", "ceilings", "data", "steps")
CPU_PARTS = ("side by side", "packing", "overhead", "growth", "end to end")


@app.callback()
def main() -> None:
    """Benchmarks of the training step."""


@dataclass
class Results:
    """Results so far, written to a file with every addition."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    num_failed: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, *keys: str, value: Any) -> None:
        """Put `value` under nested keys, write the file and print the addition."""
        node = self.content
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        print(f"[{time.perf_counter() - self.started:6.1f} s] {' / '.join(keys)}: {json.dumps(_brief(value))}")

    def attempt(self, *keys: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Add what `measure` returns, or why there is nothing, so that one failure leaves the others their turn."""
        try:
            value = measure()
        except torch.OutOfMemoryError as error:
            value = {"out_of_memory": str(error).splitlines()[0]}
        except Exception as error:
            self.num_failed += 1
            value = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            traceback.print_exc()
        self.add(*keys, value=value)
        torch.compiler.reset()  # compiled layers hold on to the model they were compiled for
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@app.command()
def gpu(
    out: Annotated[Path, typer.Option(help="JSON file for the results.")],
    size: Annotated[str, typer.Option(help="`full`: models of true size, on CUDA; `tiny`: a try anywhere.")] = "full",
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; all by default.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="Only scenarios whose name contains this.")] = None,
    quick: Annotated[bool, typer.Option(help="One measured step, first contender of each side only.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs of the checks.")] = 0,
) -> None:
    """Check fast paths against float32, time the step against transformers' own, profile it, measure the data side."""
    parts = part or list(PARTS)
    if size not in SCENARIOS or not set(parts) <= set(PARTS):
        raise typer.BadParameter(f"expected size {' or '.join(SCENARIOS)} and parts out of {', '.join(PARTS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = Results(out)
    results.add("machine", value=describe_machine(device))
    if "correctness" in parts:
        results.attempt("correctness", measure=lambda: run_checks(device, seed))
    if "ceilings" in parts and device.type == "cuda":
        results.attempt("ceilings", measure=lambda: measure_ceilings(device, _LAYER_PRODUCTS))
    if "data" in parts:
        results.attempt("data", measure=lambda: measure_data_rates(seconds=0.5 if size == "tiny" else 5.0))
    if "steps" in parts:
        for one in SCENARIOS[size]:
            if not scenario or any(text in one.name for text in scenario):
                run_scenario(one.quick if quick else one, device, results)
    if results.num_failed:
        raise typer.Exit(1)


@app.command()
def gpus(
    out: Annotated[Path, typer.Option(help="JSON file for the results.")],
    size: Annotated[str, typer.Option(help="`full`: on two GPUs; `tiny`: a try on CPUs.")] = "full",
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(RANK_PARTS)}; all by default.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="Only scaling cases whose name contains this.")] = None,
) -> None:
    """Compare two ranks with one: results, resumed runs, rate of exchange, weak scaling; time a feature cache."""
    parts = part or list(RANK_PARTS)
    if size not in SCENARIOS or not set(parts) <= set(RANK_PARTS):
        raise typer.BadParameter(f"expected size {' or '.join(SCENARIOS)} and parts out of {', '.join(RANK_PARTS)}")
    results = Results(out)
    results.add("machine", value={**describe_machine(torch.device("cpu")), **describe_gpus()})
    with tempfile.TemporaryDirectory() as folder:
        for keys, measure in measurements(size, parts, Path(folder), scenario or []):
            results.attempt(*keys, measure=measure)
    if results.num_failed:
        raise typer.Exit(1)


@app.command()
def cpu(
    out: Annotated[Path, typer.Option(help="Folder for results.json and results.md.")],
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(CPU_PARTS)}; all by default.")] = None,
    turns: Annotated[int, typer.Option(help="Steps of each side at the small size; the large one takes one.")] = 2,
) -> None:
    """Compare with transformers on the CPU, judge packing, run end to end on Ray, and measure how cost grows."""
    parts = part or list(CPU_PARTS)
    if not set(parts) <= set(CPU_PARTS):
        raise typer.BadParameter(f"expected parts out of {', '.join(CPU_PARTS)}")
    device = torch.device("cpu")
    results = Results(out / "results.json")
    results.add("machine", value={**describe_machine(device), **describe_load()})
    if "packing" in parts:
        results.attempt("packing", measure=measure_packing)
    if "overhead" in parts:
        results.attempt("overhead", measure=measure_overhead)
    if "side by side" in parts:
        for scenario in CPU_SCENARIOS:
            with_memory, num_turns = scenario.stage == "finetune", turns
            if scenario == CPU_SCENARIOS[-1]:  # minutes per step
                with_memory, num_turns = False, 1
            results.attempt("side by side", scenario.name, measure=partial(compare, scenario, num_turns, with_memory))
    if "growth" in parts:
        results.attempt("growth", measure=lambda: measure_growth(torch.get_num_threads()))
    if "end to end" in parts:
        results.attempt("end to end", measure=run_end_to_end)
    results.add("load_after", value=os.getloadavg())
    (out / "results.md").write_text(render(results.content, "make bench"), encoding="utf-8")
    if results.num_failed:
        raise typer.Exit(1)


def run_end_to_end() -> dict[str, Any]:
    """Run the stream and the trainer together on a local Ray."""
    from benchmarks.data.end_to_end import measure_end_to_end  # Ray is not needed for anything else here

    with tempfile.TemporaryDirectory() as folder:
        return measure_end_to_end(Path(folder))


def describe_load() -> dict[str, Any]:
    """Return what else decides the figures of a CPU run."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "ray": version("ray"),
        "load_before": os.getloadavg(),
    }


def _processor_name() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return names[0] if names else platform.machine()


_LAYER_PRODUCTS = {
    "12288 tokens, 7B attention projection": (12288, 4096, 4096),
    "12288 tokens, 7B gate projection": (12288, 11008, 4096),
    "12288 tokens, 7B down projection": (12288, 4096, 11008),
    "12288 tokens, 7B gate weight gradient": (11008, 4096, 12288),
    "16384 tokens, 1.5B query projection": (16384, 1536, 1536),
    "16384 tokens, 1.5B gate projection": (16384, 8960, 1536),
    "16384 tokens, 1.5B down projection": (16384, 1536, 8960),
    "16384 tokens, 1.5B gate weight gradient": (8960, 1536, 16384),
}
"""Name -> (m, n, k) of the decoder's largest matrix products."""


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return hardware and versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def run_checks(device: torch.device, seed: int) -> dict[str, Any]:
    """Run all comparisons with float32; a check that cannot run counts as failed."""
    on_gpu = device.type == "cuda"
    kernels: list[AttentionKernel] = ["sdpa", "varlen", "flex"] if on_gpu else ["sdpa"]
    if on_gpu and is_installed():
        kernels.append("flash_attention_4")
    checks = check_all(
        device,
        kernels=kernels,
        shape="check" if on_gpu else "tiny",
        seed=seed,
        compiled=on_gpu,
    )
    failed = [check.name for check in checks if not check.passed]
    return {"passed": not failed, "failed": failed, "seed": seed, "checks": [check._asdict() for check in checks]}


def run_scenario(scenario: Scenario, device: torch.device, results: Results) -> None:
    """Time every contender of a scenario; the first of ours is profiled as well."""
    flops = flop_model(scenario.shape, scenario.stage, scenario.lora_rank)
    name = results.content["machine"]["device"]

    def report(side: str, label: str, measure: Callable[[], Timing]) -> None:
        results.attempt(scenario.name, side, label, measure=lambda: measure().report(flops, name))

    def profile(session: TrainingSession, step: Callable[[], float]) -> None:
        results.add(scenario.name, "profile", value=profile_step(step, session.workers.device))

    for settings in scenario.ours:
        inspect = profile if settings == scenario.ours[0] and device.type == "cuda" else None
        with tempfile.TemporaryDirectory() as folder:
            report("ours", settings.label, partial(time_ours, scenario, settings, device, Path(folder), inspect))
    for rival in scenario.rivals:
        report("packed transformers", rival.label, partial(time_rival, scenario, rival, device))
    for baseline in scenario.baselines:
        report("transformers", baseline.label, partial(time_baseline, scenario, baseline, device))


def _brief(value: Any) -> Any:
    """Leave lists out of what is printed."""
    if isinstance(value, dict):
        return {key: _brief(item) for key, item in value.items() if not isinstance(item, list)}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    app()
