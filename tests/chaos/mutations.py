"""Known defects of peers, put back one by one into a training process, to see the suite turn red.

Each replaces one function of the product by what a peer does or did. A defect reports itself when it takes effect, so
that a scenario which never reaches it cannot pass for one that survived it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint import manifest, state, verification
from pipeline.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.config import TrainingConfig
from pipeline.index.read import read_sample
from pipeline.launch import local_stream
from pipeline.plan.plan import Plan, RankPlan
from pipeline.run_folder.metrics_log import MetricsLog
from pipeline.stream import rank_step
from pipeline.tracking.journal import MetricPoint
from pipeline.training import loop, optim, worker

Scenario = Literal["kill", "damage", "two ranks", "save", "flip", "replay"]
"""What must notice a defect: see `mutants`."""

_MARK = "CHAOS DEFECT IN EFFECT"


class Mutation(NamedTuple):
    """One defect."""

    install: Callable[[], None]
    scenario: Scenario
    story: str
    """What the peer does, in words."""


def mutate(name: str) -> None:
    """Run this process with the defect `name`.

    Raises:
        KeyError: there is none of this name.
    """
    MUTATIONS[name].install()


def took_effect(output: str) -> bool:
    """Return whether a process that printed `output` ran into its defect."""
    return _MARK in output


def _replace(owner: Any, name: str, defective: Callable[..., Any]) -> None:
    """Put a defective function in the place of `owner.name`, which must be there."""
    if name not in vars(owner):
        raise AttributeError(f"{owner} has no {name} any more; the defect must be put back elsewhere")
    setattr(owner, name, defective)


def _report() -> None:
    os.write(2, f"{_MARK}\n".encode())


def _newest_folder_step() -> int:
    folders = sorted(_run_dir().glob("checkpoints/step-*"))
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _run_dir() -> Path:
    return Path(os.environ["CHAOS_RUN_DIR"])


def _shift_stream(start_of: Callable[[int], int]) -> None:
    """Open the data at another step than the weights came from."""
    original = rank_step.iterate_locally

    def iterate(source: rank_step.BatchSource, *, start_step: int, **settings: Any) -> Iterator[rank_step.RankStep]:
        shifted = start_of(start_step)
        if shifted != start_step:
            _report()
        return original(source, start_step=shifted, **settings)

    _replace(local_stream, "iterate_locally", iterate)


def _cursor_from_newest_folder() -> None:
    _shift_stream(lambda start_step: max(start_step, _newest_folder_step()))


def _stream_one_prefetch_ahead() -> None:
    _shift_stream(lambda start_step: start_step + 1 if start_step else 0)


def _retry_on_advanced_stream() -> None:
    def advanced(start_step: int) -> int:
        lines = (_run_dir() / "metrics.jsonl").read_text().splitlines() if start_step else []
        return max(start_step, len(lines))

    _shift_stream(advanced)


def _remainder_dropped_by_split() -> None:
    original = Plan.split

    def split(self: Plan, step: int, num_ranks: int) -> tuple[RankPlan, ...]:
        surplus = len(self.samples(step)) % num_ranks
        plans = list(original(self, step, num_ranks))
        for _ in range(surplus):
            _report()
            longest = max(range(num_ranks), key=lambda rank: sum(map(len, plans[rank].micro_batches)))
            batches = [list(batch) for batch in plans[longest].micro_batches]
            max(batches, key=len).pop()
            plans[longest] = plans[longest]._replace(micro_batches=tuple(map(tuple, batches)))
        return tuple(plans)

    _replace(Plan, "split", split)


def _order_changed_within_step() -> None:
    original = Plan.samples

    def samples(self: Plan, step: int) -> npt.NDArray[np.int64]:
        ids = original(self, step)
        if not _newest_folder_step():
            return ids
        _report()
        return ids[::-1].copy()

    _replace(Plan, "samples", samples)


def _random_state_not_restored() -> None:
    def restore(*_: object) -> None:
        _report()

    _replace(worker, "_restore_random_state", restore)


def _iterator_draws_from_global_random() -> None:
    original = rank_step.iterate_locally

    def iterate(*arguments: Any, **settings: Any) -> Iterator[rank_step.RankStep]:
        _report()
        torch.empty((), dtype=torch.int64).random_()
        return original(*arguments, **settings)

    _replace(local_stream, "iterate_locally", iterate)


def _moments_not_restored() -> None:
    original = state.restore

    def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: Checkpoint) -> None:
        _report()
        original(model, optimizer, saved)
        optimizer.state.clear()

    _replace(worker, "restore", restore)


def _schedule_by_local_step() -> None:
    original = optim.learning_rate_factor
    num_calls = 0

    def factor(step: int, total_steps: int, config: TrainingConfig) -> float:
        nonlocal num_calls
        if step != num_calls:
            _report()
        num_calls += 1
        return original(num_calls - 1, total_steps, config)

    _replace(loop, "learning_rate_factor", factor)


def _metrics_of_repeated_steps_appended() -> None:
    def append(self: MetricsLog, step: int, metrics: Mapping[str, float]) -> None:
        if step in self._seen:
            _report()
        entry = {"step": step, "time_s": round(time.time(), 3), "metrics": dict(metrics)}
        self._file.write(json.dumps(entry).encode() + b"\n")

    _replace(MetricsLog, "append", append)


def _sample_substituted() -> None:
    original = read_sample

    def read(index: Any, sample_id: int) -> Any:
        if sample_id == 17:
            _report()
            sample_id = 18
        return original(index, sample_id)

    _replace(rank_step, "read_sample", read)


def _latest_not_atomic() -> None:
    """Files go straight to their place, and the newest folder is taken for whole."""

    def save(
        self: CheckpointStore,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        score: float | None = None,
    ) -> str:
        _report()
        target = Path(self.storage.location) / f"step-{step:08d}"
        target.mkdir(parents=True, exist_ok=True)
        (target / "state.json").write_text(json.dumps({**state, "score": score}))
        for name, group in tensors.items():
            save_file(dict(group), target / f"{name}.safetensors")
        for old in sorted(target.parent.glob("step-*"))[:-2]:
            shutil.rmtree(old)
        return target.name

    _replace(CheckpointStore, "save", save)
    _replace(CheckpointStore, "latest", _newest_unverified)


def _newest_unverified(store: CheckpointStore) -> Checkpoint | None:
    folders = sorted(Path(store.storage.location).glob("step-*"))
    if not folders:
        return None
    state = json.loads((folders[-1] / "state.json").read_text())
    return Checkpoint(folders[-1], int(folders[-1].name.removeprefix("step-")), state)


def _old_deleted_before_new_is_durable() -> None:
    original = CheckpointStore._commit

    def commit(self: CheckpointStore, place: str, proof: manifest.Manifest) -> str:
        for generation in self.storage.generations():
            _report()
            self.storage.remove(generation.name)
        return original(self, place, proof)

    _replace(CheckpointStore, "_commit", commit)


def _content_not_verified() -> None:
    def check(found: manifest.FileProof, expected: manifest.FileProof, where: str) -> None:
        _report()
        if found.size != expected.size:
            raise manifest.CheckpointError(where)

    _replace(verification, "check_proof", check)


def _points_stamped_with_time_of_sending() -> None:
    from pipeline.tracking.mlflow_run import MlflowRun

    original = MlflowRun.log_points

    def log_points(self: MlflowRun, points: Sequence[MetricPoint]) -> None:
        _report()
        original(self, [point._replace(time_s=time.time()) for point in points])

    _replace(MlflowRun, "log_points", log_points)


MUTATIONS: dict[str, Mutation] = {
    "cursor_from_newest_folder": Mutation(
        _cursor_from_newest_folder, "damage", "data continue from a newer folder than the weights"
    ),
    "stream_one_prefetch_ahead": Mutation(
        _stream_one_prefetch_ahead, "kill", "saved iterator state is ahead by what was prefetched"
    ),
    "retry_on_advanced_stream": Mutation(
        _retry_on_advanced_stream, "kill", "weights go back to the checkpoint, the data do not"
    ),
    "remainder_dropped_by_split": Mutation(
        _remainder_dropped_by_split, "two ranks", "an equal split drops what it cannot divide"
    ),
    "order_changed_within_step": Mutation(
        _order_changed_within_step, "kill", "the same samples in another order, which comparing sets accepts"
    ),
    "random_state_not_restored": Mutation(_random_state_not_restored, "kill", "dropout starts again from the seed"),
    "iterator_draws_from_global_random": Mutation(
        _iterator_draws_from_global_random, "kill", "opening the data draws from the generator of dropout"
    ),
    "moments_not_restored": Mutation(_moments_not_restored, "kill", "the optimizer forgets its moments"),
    "schedule_by_local_step": Mutation(
        _schedule_by_local_step, "kill", "the learning rate follows the steps of this process"
    ),
    "metrics_of_repeated_steps_appended": Mutation(
        _metrics_of_repeated_steps_appended, "kill", "steps computed again show twice in the curves"
    ),
    "sample_substituted": Mutation(_sample_substituted, "kill", "another sample in place of one that is refused"),
    "latest_not_atomic": Mutation(
        _latest_not_atomic, "save", "checkpoints are written in place and the newest is believed"
    ),
    "old_deleted_before_new_is_durable": Mutation(
        _old_deleted_before_new_is_durable, "save", "the previous checkpoint goes before the next one counts"
    ),
    "content_not_verified": Mutation(_content_not_verified, "flip", "sizes are checked, bytes are not"),
    "points_stamped_with_time_of_sending": Mutation(
        _points_stamped_with_time_of_sending, "replay", "a replay makes new points of old ones"
    ),
}
