"""Steps prepared in a thread of their own, and the end of that thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.training import batches
from pipeline.training.batches import prepare_ahead


def test_closing_early_waits_for_the_thread_that_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "prepare", lambda rank_step, *_: rank_step)
    asked, release, ended = threading.Event(), threading.Event(), threading.Event()

    def rank_steps() -> Iterator[Any]:
        yield "first"
        asked.set()
        release.wait(60)
        ended.set()
        yield "second"

    nothing: Any = None
    steps: Any = prepare_ahead(rank_steps(), nothing, torch.device("cpu"))
    assert next(steps) == "first"
    assert asked.wait(60)
    threading.Timer(0.3, release.set).start()
    steps.close()
    assert ended.is_set()
    assert not any(thread.name == "prepare-ahead" for thread in threading.enumerate())
