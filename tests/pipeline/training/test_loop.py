"""The loop: one update per step, the same on any number of ranks; when it saves, stops, and refuses to go on."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.step.shapes import features_per_image
from model.fusion.packed import pack_samples
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.training import loop
from pipeline.training.batches import PreparedStep
from pipeline.training.loop import NonFiniteError, observe_loss, read_notices, run_step
from pipeline.training.measures.flops import FlopModel
from pipeline.training.measures.speed import SpeedMeter
from pipeline.training.optim import build_optimizer, learning_rate_factor
from pipeline.training.records import NONFINITE_FILE, SPIKE_FILE
from pipeline.training.session import TrainingSession
from tests.pipeline.training.small_session import (
    BATCH,
    CPU,
    SOURCES,
    Notice,
    SmallSession,
    Threads,
    make_model,
    make_plan,
    make_session,
    picture,
    prepared_steps,
    sample,
    train_all,
)


def weights(session: TrainingSession) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in session.model.named_parameters() if one.requires_grad}


def asked(session: SmallSession) -> list[tuple[str, int]]:
    return session.snapshots.asked


def logged(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_run_step_updates_as_adamw_does_with_the_clipped_gradient_of_the_mean(tmp_path: Path) -> None:
    session = make_session(tmp_path, max_grad_norm=0.1)
    outcome = run_step(session, next(prepared_steps(session)))

    model = make_model()
    optimizer = build_optimizer(model, session.training)
    losses, targets = [], 0
    for sample_id in session.plan.samples(0).tolist():
        batch = pack_samples([sample(sample_id)], [features_per_image("tiny")])
        losses.append(model.packed_loss(batch, model.encode_vision(picture(sample_id))))
        targets += len(batch.targets)
    loss = torch.stack(losses).sum() / targets
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1).item()
    assert norm > 0.1
    for group in optimizer.param_groups:
        group["lr"] = 0.01 / 2  # the first of two steps of warm-up
    optimizer.step()

    assert outcome.loss == pytest.approx(loss.item(), rel=1e-5)
    assert outcome.grad_norm == pytest.approx(norm, rel=1e-4)
    assert outcome.learning_rate == 0.005
    assert (outcome.counts.samples, outcome.counts.targets, outcome.counts.images) == (7, targets, 7)
    assert outcome.by_source == {}
    assert_same(weights(session), {name: one.detach() for name, one in model.named_parameters() if one.requires_grad})


def test_run_step_begins_with_no_gradient_of_the_step_before(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    for parameter in session.trained:
        parameter.grad = torch.full_like(parameter, 1e3)
    fresh = make_session(tmp_path / "fresh")
    assert run_step(session, next(prepared_steps(session))) == run_step(fresh, next(prepared_steps(fresh)))
    assert_same(weights(session), weights(fresh))


def test_run_step_learning_rate_is_that_of_the_step_number(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    steps = list(prepared_steps(session))
    for step in (0, 1, 3):
        factor = learning_rate_factor(step, session.plan.total_steps, session.training)
        assert run_step(session, steps[step]).learning_rate == pytest.approx(0.01 * factor)


def run_ranks(tmp_path: Path, num_ranks: int) -> list[SmallSession]:
    """Train the whole plan on threads that are ranks; returns their sessions."""
    met, shared = threading.Barrier(num_ranks, timeout=120), [None] * num_ranks
    sessions, errors = [], []
    for rank in range(num_ranks):
        workers = Threads(rank, num_ranks, CPU, shared=shared, met=met)
        sessions.append(make_session(tmp_path / str(num_ranks), workers=workers, plan=make_plan(SOURCES)))

    def work(session: SmallSession) -> None:
        try:
            train_all(session, prepared_steps(session))
        except BaseException as error:
            errors.append(error)
            met.abort()

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return sessions


def test_train_on_two_ranks_equals_one_rank(tmp_path: Path) -> None:
    (alone,) = run_ranks(tmp_path, 1)
    first, second = run_ranks(tmp_path, 2)
    assert_same(weights(first), weights(second))
    assert_same(weights(first), weights(alone))
    assert first.ledger == second.ledger == alone.ledger
    assert second.log is None
    lines, wanted = (logged(tmp_path / name) for name in ("2", "1"))
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line, other in zip(lines, wanted, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/supervised_tokens", "train/loss/chat", "data/epoch"):
            assert line["metrics"].get(name) == pytest.approx(other["metrics"].get(name), rel=1e-3), name


def test_run_step_sums_gradients_itself_only_where_nothing_is_sharded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("pipeline.parallel.ranks.Workers.sum_gradients", lambda *_: calls.append("summed"))
    for sharding, expected in (("fsdp", []), ("none", ["summed"])):
        session = make_session(tmp_path / sharding, sharding=sharding)
        run_step(session, next(prepared_steps(session)))
        assert calls == expected


def without_targets(step: PreparedStep) -> PreparedStep:
    nothing = torch.zeros(0, dtype=torch.int64)
    batches = [
        batch._replace(packed=batch.packed._replace(target_positions=nothing, targets=nothing), target_sources=nothing)
        for batch in step.micro_batches
    ]
    step.counts.targets = 0.0
    return step._replace(micro_batches=tuple(batches))


def test_run_step_without_a_supervised_token_changes_nothing(tmp_path: Path) -> None:
    session = make_session(tmp_path, weight_decay=0.1)
    before = weights(session)
    outcome = run_step(session, without_targets(next(prepared_steps(session))))
    assert (outcome.loss, outcome.grad_norm) == (0, 0)
    for name, tensor in weights(session).items():
        assert torch.equal(tensor, before[name]), name


def test_train_steps_without_a_supervised_token_are_not_taken_for_steps_that_learn_nothing(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    before = weights(session)
    train_all(session, map(without_targets, prepared_steps(session)))
    assert session.current_step == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(session).items())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_train_number_that_is_not_finite_ends_the_run_before_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    session = make_session(tmp_path)
    steps = list(prepared_steps(session))
    if what == "loss":
        pixels = torch.full((BATCH, 3, *steps[1].pixels.shape[1:3]), math.nan)
        steps[1] = steps[1]._replace(pixels=pixels)
    else:
        norms = iter([torch.tensor(1.0), torch.tensor(math.inf)])
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: next(norms))
    before: list[dict[str, Tensor]] = []

    def watched() -> Iterator[PreparedStep]:
        for step in steps:
            before.append(weights(session))
            yield step

    ids = session.plan.samples(1).tolist()
    with pytest.raises(NonFiniteError, match=r"step 1: loss .*, gradient norm .*nothing was updated") as caught:
        train_all(session, watched())
    assert str(ids) in str(caught.value)
    for name, tensor in weights(session).items():
        assert torch.equal(tensor, before[1][name]), name
    assert asked(session) == [("keep", 1)]
    (line,) = [json.loads(line) for line in (tmp_path / NONFINITE_FILE).read_text().splitlines()]
    assert line["step"] == 1
    assert line["grad_norm"] == ("nan" if what == "loss" else "inf")
    assert (line["loss"] == "nan") is (what == "loss")
    assert sorted(entry["sample_id"] for entry in line["samples"]) == sorted(ids)
    assert [entry["step"] for entry in logged(tmp_path)] == [0]


@pytest.mark.parametrize(
    ("every_steps", "expected"),
    [
        (100, [("save", 4), ("finish", 4)]),
        (2, [("save", 2), ("save", 4), ("finish", 4)]),
        (3, [("save", 3), ("save", 4), ("finish", 4)]),
    ],
)
def test_train_saves_every_so_many_steps_and_waits_for_the_last(
    tmp_path: Path, every_steps: int, expected: list[tuple[str, int]]
) -> None:
    session = make_session(tmp_path, sections={"checkpoint": {"every_steps": every_steps}})
    metrics = train_all(session, prepared_steps(session))
    assert asked(session) == expected
    assert session.current_step == 4
    assert [line["step"] for line in logged(tmp_path)] == [0, 1, 2, 3]
    assert metrics == logged(tmp_path)[-1]["metrics"]
    assert (session.ledger.trained, len(session.trend.recent)) == (23, 4)


def test_train_without_a_step_returns_no_metrics(tmp_path: Path) -> None:
    assert train_all(make_session(tmp_path), iter([])) == {}


def test_train_asked_to_stop_saves_waits_and_says_so(tmp_path: Path) -> None:
    session = make_session(tmp_path, notices=Notice(stop_after=2))
    with pytest.raises(StopRequestedError, match="stopped after step 1 as asked"):
        train_all(session, prepared_steps(session))
    assert asked(session) == [("save", 2), ("finish", 2)]
    assert [line["step"] for line in logged(tmp_path)] == [0, 1]


def test_train_asked_to_stop_after_the_last_step_ends_as_usual(tmp_path: Path) -> None:
    session = make_session(tmp_path, notices=Notice(stop_after=4))
    train_all(session, prepared_steps(session))
    assert asked(session) == [("save", 4), ("finish", 4)]


def test_train_machine_leaving_saves_once_per_notice_and_goes_on(tmp_path: Path) -> None:
    session = make_session(tmp_path, notices=Notice(leaving_after=(1, 2, 3)))
    train_all(session, prepared_steps(session))
    assert asked(session) == [("save", 1), ("finish", 1), ("finish", 2), ("finish", 3), ("save", 4), ("finish", 4)]


def test_train_machine_leaving_is_told_once_however_rarely_it_is_asked(tmp_path: Path) -> None:
    session = make_session(tmp_path, notices=Notice(leaving_after=(1, 2, 3), due_after=(1, 3)))
    train_all(session, prepared_steps(session))
    assert asked(session) == [("save", 1), ("finish", 1), ("finish", 3), ("save", 4), ("finish", 4)]


@pytest.mark.parametrize(
    ("notice", "expected"),
    [
        (Notice(), (False, False)),
        (Notice(stop_after=0), (True, False)),
        (Notice(leaving_after=(0,)), (False, True)),
        (Notice(leaving_after=(0,), due_after=()), (False, False)),
        (Notice(due_after=(0,)), (False, False)),
        (Notice(stop_after=0, leaving_after=(0,)), (True, True)),
    ],
)
def test_read_notices_asks_about_the_machine_only_when_it_is_time(
    tmp_path: Path, notice: Notice, expected: tuple[bool, bool]
) -> None:
    assert read_notices(make_session(tmp_path, notices=notice)) == expected


def test_observe_loss_records_the_samples_of_a_spike_and_keeps_it_out_of_the_range(tmp_path: Path) -> None:
    session = make_session(tmp_path, plan=make_plan(num_epochs=9), loss_spike_deviations=5)
    for step in range(20):
        observe_loss(session, step, 2.0 + 0.1 * (step % 3))
    bound = session.trend.bound(5)
    assert bound is not None
    recent = list(session.trend.recent)
    observe_loss(session, 20, bound + 1e-6)
    assert (session.trend.num_spikes, session.trend.recent) == (1, recent)
    observe_loss(session, 21, bound)
    assert (session.trend.num_spikes, len(session.trend.recent)) == (1, 21)
    (line,) = [json.loads(line) for line in (tmp_path / SPIKE_FILE).read_text().splitlines()]
    assert (line["step"], line["loss"], line["bound"]) == (20, bound + 1e-6, bound)
    assert sorted(entry["sample_id"] for entry in line["samples"]) == sorted(session.plan.samples(20).tolist())


def test_observe_loss_calls_nothing_a_spike_before_there_is_a_range(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    for loss in (1.0, 1e9):
        observe_loss(session, 0, loss)
    assert (session.trend.num_spikes, session.trend.recent) == (0, [1.0, 1e9])


def test_train_times_steps_from_the_wait_for_their_data_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(100.0)  # a clock that goes on by a second each time it is looked at
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    session = make_session(tmp_path)
    train_all(session, prepared_steps(session))
    for line in logged(tmp_path):
        assert line["metrics"]["perf/step_time_s"] == 2
        assert line["metrics"]["perf/data_wait_fraction"] == 0.5


@pytest.mark.parametrize("is_cached", [False, True])
def test_train_counts_the_work_of_the_tower_unless_its_features_come_from_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool
) -> None:
    meters: list[tuple[FlopModel, float | None, int]] = []

    class Meter(SpeedMeter):
        def __init__(self, flops: FlopModel, peak_flops: float | None, num_devices: int) -> None:
            meters.append((flops, peak_flops, num_devices))
            super().__init__(flops, peak_flops, num_devices)

    monkeypatch.setattr(loop, "SpeedMeter", Meter)
    data = {"feature_cache": str(tmp_path)} if is_cached else {}
    session = make_session(tmp_path, sections={"data": data})
    train_all(session, iter([]))
    flops = FlopModel.of(session.model)
    assert meters == [(flops.without_tower() if is_cached else flops, None, 1)]


def test_train_tells_the_profiler_of_each_step_and_of_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, bool]] = []

    class Profiler:
        def __init__(self, steps: tuple[int, int] | None, run_dir: Path, *, is_first: bool) -> None:
            assert (steps, run_dir, is_first) == ((1, 2), tmp_path, True)

        def before(self, step: int) -> None:
            told.append(("before", step, False))

        def after(self, step: int, *, is_last: bool) -> None:
            told.append(("after", step, is_last))

    monkeypatch.setattr(loop, "StepProfiler", Profiler)
    session = make_session(tmp_path, profile_steps=(1, 2))
    train_all(session, prepared_steps(session))
    assert told == [(when, step, when == "after" and step == 3) for step in range(4) for when in ("before", "after")]
