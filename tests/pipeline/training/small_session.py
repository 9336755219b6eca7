"""A training session around a tiny model with random weights, and rank-steps made up to fit its plan."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.step.shapes import build_model, features_per_image, image_size, resolution
from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.hub.weights import Stage, set_trainable
from pipeline.config import parse_config
from pipeline.parallel.ranks import Workers
from pipeline.plan.plan import Plan, build_plan
from pipeline.plan.sources import NO_MIX, Sources
from pipeline.run_folder.metrics_log import MetricsLog
from pipeline.stream.rank_step import RankStep
from pipeline.training.batches import PreparedStep, prepare
from pipeline.training.loop import train
from pipeline.training.measures.metrics import Ledger
from pipeline.training.measures.trend import LossTrend
from pipeline.training.optim import build_optimizer
from pipeline.training.session import TrainingSession
from pipeline.training.snapshot import Snapshots

CPU = torch.device("cpu")
NUM_SAMPLES = 23
BATCH = 7
SOURCES = Sources(("captions", "chat"), (9, NUM_SAMPLES))
_TINY = resolution("tiny")


def sample(sample_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels of 5 to 11 tokens, with one image; sample 0 has nothing to learn."""
    generator = torch.Generator().manual_seed(sample_id)
    ids = torch.randint(3, 331, (5 + sample_id % 7,), generator=generator)
    ids[1] = IMAGE_TOKEN_INDEX
    labels = ids.clone()
    labels[: 3 if sample_id else len(ids)] = IGNORE_INDEX
    return ids, labels


def picture(sample_id: int) -> Tensor:
    """Return pixels `[1, H, W, 3]`."""
    side = image_size("tiny")
    return torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(sample_id)).to(torch.uint8)


def make_plan(sources: Sources = NO_MIX, num_epochs: int = 1) -> Plan:
    """Plan 4 steps an epoch, of 7 samples and the last of 2, in micro-batches of at most 31 tokens."""
    num_tokens = [len(sample(idx)[0]) - 1 + features_per_image("tiny") for idx in range(NUM_SAMPLES)]
    plan = build_plan(
        np.array(num_tokens, np.int32), data_fingerprint="f", seed=3, global_batch_size=BATCH, num_epochs=num_epochs,
        max_steps=None, micro_batch_tokens=31,
    )  # fmt: skip
    # the order is not that of a mix, but what is counted by source depends on ids only
    return dataclasses.replace(plan, sources=sources)


def make_rank_step(plan: Plan, step: int, rank: int = 0, num_ranks: int = 1) -> RankStep:
    """Build what a rank receives for a step."""
    own = plan.split(step, num_ranks)[rank]
    ids = [sample_id for batch in own.micro_batches for sample_id in batch]
    texts = [sample(sample_id) for sample_id in ids]
    none = [torch.zeros(0, dtype=torch.int32)]
    side = image_size("tiny")
    return RankStep(
        step=step,
        rank=rank,
        checksum=own.checksum,
        sample_ids=torch.tensor(ids, dtype=torch.int64),
        batch_sizes=torch.tensor([len(batch) for batch in own.micro_batches], dtype=torch.int32),
        text_lengths=torch.tensor([len(text) for text, _ in texts], dtype=torch.int32),
        num_images=torch.ones(len(ids), dtype=torch.int32),
        input_ids=torch.cat(none + [text.to(torch.int32) for text, _ in texts]),
        labels=torch.cat(none + [labels.to(torch.int32) for _, labels in texts]),
        image_ids=torch.arange(len(ids), dtype=torch.int32),
        views=torch.tensor([[side, side, 0]] * len(ids), dtype=torch.int32).view(-1, 3),
        pixels=torch.cat([torch.zeros(0, side, side, 3, dtype=torch.uint8), *map(picture, ids)]),
        rejected=(),
    )


def prepared_steps(session: TrainingSession, start: int = 0) -> Iterator[PreparedStep]:
    """Yield the rank's steps from `start` to the end of the run."""
    workers = session.workers
    for step in range(start, session.plan.total_steps):
        rank_step = make_rank_step(session.plan, step, workers.rank, workers.world_size)
        yield prepare(rank_step, _TINY, CPU, session.plan.sources)


@dataclass
class Snapshot:
    """Stands for `Snapshots`: remembers what it was asked for."""

    every_steps: int = 100
    asked: list[tuple[str, int]] = field(default_factory=list)
    taken: dict[str, float] = field(default_factory=dict)

    def is_due(self, next_step: int) -> bool:
        return next_step % self.every_steps == 0

    def times(self) -> dict[str, float]:
        return self.taken

    def save(self, session: TrainingSession, next_step: int) -> None:
        self.asked.append(("save", next_step))

    def keep(self, session: TrainingSession, next_step: int) -> None:
        self.asked.append(("keep", next_step))

    def finish(self, session: TrainingSession) -> None:
        self.asked.append(("finish", session.current_step))


@dataclass
class Notice:
    """Stands for `Notices`: which steps done it speaks up after."""

    session: TrainingSession | None = None
    stop_after: int | None = None
    leaving_after: Sequence[int] = ()
    due_after: Sequence[int] | None = None
    """None: whenever a machine is leaving."""

    @property
    def _done(self) -> int:
        assert self.session is not None
        return self.session.current_step

    def stop_requested(self) -> bool:
        return self._done == self.stop_after

    def check_is_due(self) -> bool:
        return self._done in (self.leaving_after if self.due_after is None else self.due_after)

    def machine_is_leaving(self) -> bool:
        return self._done in self.leaving_after


@dataclass(frozen=True)
class Threads(Workers):
    """Ranks that are threads, with the collectives of the loop."""

    shared: list[Any] = field(default_factory=list)
    met: threading.Barrier | None = None

    def _all(self, value: Any) -> list[Any]:
        assert self.met is not None
        self.shared[self.rank] = value
        self.met.wait()
        values = list(self.shared)
        self.met.wait()
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        return [sum(each) for each in zip(*self._all(list(values)), strict=True)]

    def max(self, values: Sequence[float]) -> list[float]:
        return [max(each) for each in zip(*self._all(list(values)), strict=True)]

    def gather(self, value: Any) -> list[Any]:
        return self._all(value)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:  # type: ignore[override]
        own = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]
        for parameter, *gradients in zip(parameters, *self._all(own), strict=True):
            parameter.grad = torch.stack(gradients).sum(0)


def make_model(stage: Stage = "finetune", trains_tower: bool = False) -> LlavaLlamaForCausalLM:
    """Build the tiny model, each time with the same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = build_model("tiny", CPU, torch.float32, attention="sdpa")
    set_trainable(model, stage)
    if trains_tower:
        tower = model.get_vision_tower()
        assert tower is not None
        tower.set_frozen(False)
    return model


@dataclass
class SmallSession(TrainingSession):
    """A session with the stand-in that its snapshots would be asked of."""

    snapshots: Snapshot = field(default_factory=Snapshot)


def train_all(session: SmallSession, steps: Iterator[PreparedStep]) -> dict[str, float]:
    """Call the loop with the session's stand-in for snapshots."""
    return train(session, cast(Snapshots, session.snapshots), steps)


def make_session(
    run_dir: Path,
    *,
    workers: Workers | None = None,
    plan: Plan | None = None,
    notices: Notice | None = None,
    stage: Stage = "finetune",
    sections: dict[str, dict[str, Any]] | None = None,
    **training: Any,
) -> SmallSession:
    """Put a session together; `training` and `sections` are config values."""
    workers = workers or Workers(0, 1, CPU)
    tree: dict[str, dict[str, Any]] = {
        "data": {"shards": ["a.tar"], "max_length": 16},
        "checkpoint": {"every_steps": 100},
        "training": {
            "global_batch_size": BATCH, "micro_batch_tokens": 31, "learning_rate": 0.01, "warmup_ratio": 0.5, **training
        },
    }  # fmt: skip
    for name, values in (sections or {}).items():
        tree[name] = {**tree.get(name, {}), **values}
    facts = {"name": "small", "run_dir": str(run_dir), "stage": stage, "model": {"language_model": "lm"}}
    config = parse_config({**facts, **tree}, where="test")
    model = make_model(stage, config.training.vision_tower_lr is not None)
    notices = notices or Notice()
    session = SmallSession(
        run_dir=run_dir,
        training=config.training,
        data=config.data,
        plan=plan or make_plan(),
        describe_sample=lambda sample_id: {"sample_id": sample_id},
        workers=workers,
        model=model,
        optimizer=build_optimizer(model, config.training),
        snapshots=Snapshot(every_steps=config.checkpoint.every_steps),
        log=MetricsLog(run_dir / "metrics.jsonl") if workers.is_first else None,
        ledger=Ledger(),
        trend=LossTrend(),
        attempt=1,
        quarantine_file=run_dir / "quarantine" / "rank-00000.jsonl",
        notices=notices,
    )
    notices.session = session
    return session
