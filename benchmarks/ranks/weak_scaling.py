"""Weak scaling: the training step on 1 and on W ranks of one machine, with the same batch per rank.

Models, samples and steps are those of the one-GPU benchmark (`scenarios`), cut to what fits 80 GB.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch

from benchmarks.ranks.exchange import profile_exchange
from benchmarks.step.ours import open_session, time_session
from benchmarks.step.scenarios import SCENARIOS, OurSettings, Scenario
from benchmarks.step.shapes import flop_model, skeleton
from pipeline.config import ExperimentConfig
from pipeline.parallel.ranks import Workers
from pipeline.plan.efficiency import measure_packing
from pipeline.tools.estimate.memory import estimate_memory
from pipeline.training.session import TrainingSession


@dataclass(frozen=True)
class RankCase:
    """A scenario on some ranks; its global batch is that of one rank."""

    scenario: Scenario
    settings: OurSettings
    num_ranks: int
    sharding: Literal["none", "fsdp"]
    cpu_offload: bool = False

    @property
    def label(self) -> str:
        """Name in reports."""
        kind = {"none": "replicated", "fsdp": "sharded"}[self.sharding]
        parts = [f"{self.num_ranks} GPUs, {kind}" if self.num_ranks > 1 else "1 GPU", self.settings.label]
        return ", ".join([*parts, "in host memory"] if self.cpu_offload else parts)

    def config(self, run_dir: str) -> ExperimentConfig:
        """Return the config that a run of this case would have."""
        config = self.scenario.config(self.settings, run_dir)
        training = {
            "global_batch_size": self.scenario.global_batch_size * self.num_ranks,
            "sharding": self.sharding,
            "cpu_offload": self.cpu_offload,
        }
        on_gpu = {"use_gpu": torch.cuda.is_available()}
        return config.model_copy(
            update={
                "training": config.training.model_copy(update=training),
                "cluster": config.cluster.model_copy(update=on_gpu),
            }
        )


def measure_case(case: RankCase, workers: Workers) -> dict[str, Any]:
    """Time a case on all of its ranks; rank 0 returns the figures, with a profile of one more step on GPUs."""
    scenario = replace(case.scenario, global_batch_size=case.scenario.global_batch_size * case.num_ranks)
    sizes, profiled = scenario.sizes(), {}

    def inspect(session: TrainingSession, step: Callable[[], float]) -> None:
        if workers.device.type == "cuda":
            profiled.update(profile_exchange(step, session.workers))

    with tempfile.TemporaryDirectory() as folder:
        config, started = case.config(folder), time.perf_counter()
        session = open_session(scenario, config, sizes, workers)
        build_s = time.perf_counter() - started
        timing = time_session(scenario, session, sizes, inspect)
    name = torch.cuda.get_device_name() if workers.device.type == "cuda" else "cpu"
    report = timing.report(flop_model(scenario.shape, scenario.stage), name)
    tokens = measure_packing(session.plan, case.num_ranks).most_tokens
    estimate = estimate_memory(
        skeleton(scenario.shape, scenario.stage), config.recipe, case.num_ranks, tokens, use_gpu=config.cluster.use_gpu
    )
    return {
        "num_ranks": case.num_ranks,
        "global_batch_size": scenario.global_batch_size,
        **report,
        "useful_tokens_per_s_per_gpu": report["useful_tokens_per_s"] / case.num_ranks,
        "most_tokens_per_row": tokens,
        "build_s": build_s,
        "memory_estimate_gib": (estimate.total - estimate.runtime) / 2**30,
        "profile": profiled,
    }


def compare_cases(one: dict[str, Any], several: dict[str, Any]) -> dict[str, float]:
    """Return what several ranks reach of what as many copies of one would."""
    speed = "useful_tokens_per_s_per_gpu"
    return {"efficiency": several[speed] / one[speed], "step_time_ratio": several["step_time_s"] / one["step_time_s"]}


_PRETRAIN_7B, _FINETUNE_7B, _FINETUNE_1B, _ = SCENARIOS["full"]
_TINY_PRETRAIN, _TINY_FINETUNE = SCENARIOS["tiny"]


def _pair(scenario: Scenario, settings: OurSettings, sharding: Literal["none", "fsdp"]) -> tuple[RankCase, RankCase]:
    return RankCase(scenario, settings, 1, "none"), RankCase(scenario, settings, 2, sharding)


_RECOMPUTED: Final = OurSettings(16384, compile=True, gradient_checkpointing=True)
_OFFLOADED: Final = replace(_FINETUNE_7B, num_steps=2, num_warmup_steps=1)

WEAK_SCALING: Final[dict[Literal["full", "tiny"], tuple[tuple[RankCase, ...], ...]]] = {
    "full": (
        _pair(_PRETRAIN_7B, OurSettings(20480, compile=True), "none"),
        (RankCase(_FINETUNE_7B, OurSettings(12288, compile=True), 2, "fsdp"),),
        _pair(_FINETUNE_7B, OurSettings(6144, compile=True), "fsdp"),
        _pair(_FINETUNE_1B, OurSettings(24576, compile=True), "fsdp"),
        _pair(_FINETUNE_7B, _RECOMPUTED, "fsdp"),
        (RankCase(_OFFLOADED, _RECOMPUTED, 2, "fsdp", cpu_offload=True),),
    ),
    "tiny": (
        _pair(_TINY_PRETRAIN, OurSettings(4096, compile=False), "none"),
        _pair(_TINY_FINETUNE, OurSettings(4096, compile=False), "fsdp"),
    ),
}
"""Groups in the order in which they are measured; the first two of a group are compared with each other."""
