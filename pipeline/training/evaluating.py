"""Evaluation between two optimizer steps, on the ranks that train; it leaves everything that trains as it was.

Each rank answers its share of every set. With a sharded model all ranks answer everything, since every forward pass
needs all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from model.hub.weights import LlavaModel
from pipeline.assembly.facts import read_model_tokenizer
from pipeline.assembly.folder import OpenedModel
from pipeline.assembly.precision import autocast
from pipeline.config import BestMetric, EvaluationConfig, ModelConfig
from pipeline.evaluation.results import SetResult, measure_views, prepare_questions, settings_of
from pipeline.evaluation.run import EvaluationSettings, evaluate
from pipeline.evaluation.scores import Answer
from pipeline.evaluation.sets import HeldOutSet
from pipeline.parallel.ranks import Workers
from pipeline.samples.encode import SampleEncoder
from pipeline.training.session import TrainingSession
from pipeline.training.snapshot import random_state


class Evaluated(NamedTuple):
    """What an evaluation between two steps brought."""

    figures: dict[str, float]
    """Named as in metrics.jsonl; empty when none was due."""
    is_best: bool
    """Whether the deciding metric has a new best value."""


VIEWS = ("seeing", "blank")
"""What is measured while training; `ray-llava evaluate` also shuffles images."""


class Evaluator:
    """Evaluates a model that is being trained."""

    def __init__(
        self,
        config: EvaluationConfig,
        sets: Sequence[HeldOutSet],
        parts: ModelConfig,
        encoder: SampleEncoder,
        precision: str,
        best: BestMetric | None,
    ) -> None:
        """Take what stays the same during a run.

        Args:
            config: when and how.
            sets: what on.
            parts: of the model; its tokenizer spells the answers.
            encoder: of the run.
            precision: of forward passes.
            best: what decides which checkpoints are the best.
        """
        self._config, self._sets, self._encoder, self._precision = config, tuple(sets), encoder, precision
        self._tokenizer, self._best = read_model_tokenizer(parts), best

    def after(self, session: TrainingSession, next_step: int, *, is_last: bool) -> Evaluated:
        """Evaluate if the steps before this one end with an evaluation, and note the best value; on all ranks."""
        if not self._config.is_due(next_step, is_last=is_last):
            return Evaluated({}, is_best=False)
        started = time.perf_counter()
        figures = self.figures(session.model, session.workers)
        is_best = self._best is not None and session.best.add(self._best, figures[self._best.name], next_step)
        return Evaluated(figures | {"perf/evaluation_s": time.perf_counter() - started}, is_best)

    def figures(self, model: LlavaModel, workers: Workers) -> dict[str, float]:
        """Evaluate on all sets; all ranks take part and get the same figures, named eval/..."""
        found: dict[str, float] = {}
        with undisturbed(model, workers.device), autocast(self._precision, workers.device):
            for one in self._sets:
                result = self._evaluate(model, workers, one)
                found |= {one.prefix + name: value for name, value in result.flat(intervals=True).items()}
        return found

    def _evaluate(self, model: LlavaModel, workers: Workers, one: HeldOutSet) -> SetResult:
        questions = prepare_questions(one.samples, one.metrics)
        is_shared = workers.world_size > 1 and not isinstance(model, FSDPModule)
        chosen = range(len(questions))[workers.rank :: workers.world_size] if is_shared else range(len(questions))
        opened = OpenedModel(model, self._encoder)
        own = [questions[idx] for idx in chosen]
        answers: dict[str, list[Answer]] = {}
        settings = EvaluationSettings(batch_size=self._config.batch_size, max_new_tokens=self._config.max_new_tokens)
        for view in VIEWS:
            how = settings_of(settings, view, one.metrics)
            given = iter(evaluate(opened, self._tokenizer, own, how).answers if own else ())
            mine = [(idx, [next(given) for _ in questions[idx].asked]) for idx in chosen]
            if is_shared:
                workers.wait_patiently()
                mine = sorted(pair for pairs in workers.gather(mine) for pair in pairs)
            answers[view] = [answer for _, group in mine for answer in group]
        return measure_views(len(one.samples), one.metrics, answers)


@contextmanager
def undisturbed(model: LlavaModel, device: torch.device) -> Iterator[None]:
    """Put the model into evaluation mode, and leave it and all random generators as they were."""
    modes = {module: module.training for module in model.modules()}
    states, python, numpy = random_state(device), random.getstate(), np.random.get_state()
    model.train(False)
    try:
        # eager, because other shapes would make compiled layers be compiled again, for training too
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
            if isinstance(module, FSDPModule):
                module.reshard()
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
        random.setstate(python)
        np.random.set_state(numpy)
